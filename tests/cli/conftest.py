"""Calling the command line inside this process, for speed; `processes.py` has the real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.processes import Result


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`call("pack", "x")` runs the command's own main in this process."""
    from holdall.cli import main

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["holdall", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", None)
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return Result(int(left.value.code or 0), out, err)

    return run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A small log of a made-up service: fixed templates, counters and a rare line."""
    where = tmp_path / "app.log"
    lines = []
    for i in range(3000):
        lines.append(
            f"2026-11-01 10:{i // 60 % 60:02d}:{i % 60:02d} INFO worker-{i % 7} took {i * 37 % 977} ms (id={i})"
        )
        if i % 500 == 250:
            lines.append(f"2026-11-01 10:{i // 60 % 60:02d}:{i % 60:02d} ERROR disk [sd{i % 3}] is full")
    where.write_text("\n".join(lines) + "\n")
    return where
