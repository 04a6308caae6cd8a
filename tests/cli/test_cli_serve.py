"""holdall serve: mistakes are told in one line, before anybody can connect."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from server.models import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "1MB"], "the least that"),
        (["--memory", "25%"], "bytes"),
        (["--memory", "900TB"], "free here"),
        (["--context", "9999"], "512"),
        (["--with", "logs.zstd"], "kv"),
        (["--with", "kv.vattention"], "selector"),
        (["--windwo", "3"], "--windwo"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--body", "half"], "budget"),
        (["more"], "one model"),
    ],
)
def test_a_mistake_is_one_line(call, tiny: str, words: list[str], says: str) -> None:
    told = call("serve", tiny, "--port", "0", *words)
    assert told.code == 2 and says in told.one_line() and told.out == ""


def test_a_port_that_is_taken_and_a_report_that_is_none(call, tiny: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = call("serve", tiny, "--port", taken.getsockname()[1])
    assert told.code == 2 and "free" in told.one_line()
    report = tmp_path / "report.json"
    report.write_text("{")
    assert "holdall measure" in call("serve", tiny, "--port", "0", "--report", report).one_line()
    report.write_text(json.dumps({"method": "kv.h2o", "report": {"rows": {}}}))
    told = call("serve", tiny, "--port", "0", "--kv", "50%", "--report", report)
    assert "a measurement of kv.snapkv" in told.one_line()
