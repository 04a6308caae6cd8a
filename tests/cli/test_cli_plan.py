"""`plan` tells what fits and what it costs; `pack` without --with shows what it tried and keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import tiny

from holdall.weights import auto


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "_WORTH", 0)
    tiny(spread=0.15).write(str(tmp_path / "model"))
    return tmp_path / "model"


def test_plan_predicts_and_measures(call, model: Path) -> None:
    words = ["plan", model, "--into", "2bit,5.2bit,9.6bit", "--with", "weights.rtn"]
    told = json.loads(call(*words, "--measure", "--json").out)
    assert [c["into"] for c in told["cells"][:3]] == ["2bit", "5.2bit", "9.6bit"] and len(told["cells"]) == 9
    small, middle, large = (c for c in told["cells"] if c["called"] == "weights.rtn")
    assert small["predicted"]["least_bytes"] > small["into_bytes"] and "bytes" not in small["measured"]
    for cell in (middle, large):
        for figures in (cell["predicted"], cell["measured"]):
            assert figures["bytes"] <= cell["into_bytes"] and figures["seconds"] > 0
        assert cell["predicted"]["perplexity_ratio"] == pytest.approx(
            cell["measured"]["perplexity_ratio"], rel=0.1
        )
    assert middle["measured"]["lost"] > large["measured"]["lost"]
    shown = call(*words).out
    assert "needs" in shown and "weights.rtn --group 32" in shown and shown.count("perplexity") == 2
    tight = shown.split("5.2bit")[1].split("9.6bit")[0]
    assert tight.index("weights.rtn\t") < tight.index("weights.rtn --group 32")  # the best first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere", "--into", "4bit"], "exists"),
        (["MODEL", "--into", "lots"], "budget"),
        (["MODEL", "--into", ","], "--into"),
        (["MODEL", "--into", "4bit", "--with", "kv.snapkv"], "packs models"),
        (["MODEL", "--into", "4bit", "--with", "weights.rtm"], "did you mean"),
        (["MODEL", "--into", "4bit", "--calibrate", "EMPTY"], "calibration text"),
    ],
)
def test_mistakes_are_told_in_a_line(call, model: Path, tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    named = {"MODEL": model, "EMPTY": tmp_path / "empty.txt"}
    done = call("plan", *(named.get(w, w) for w in words))
    assert done.code == 2 and told in done.one_line()


def test_pack_without_a_method_tries_shows_and_remembers(call, model: Path, tmp_path: Path) -> None:
    words = ["pack", model, "-b", "5.7bit", "--among", "weights.rtn,weights.formats", "--windows", "1"]
    first = call(*words, "-o", tmp_path / "a.hold")
    assert first.code == 0 and "tried on" in first.err and "looked up" not in first.err
    assert first.err.index("weights.rtn --group 32") < first.err.index("weights.formats")
    assert first.out.rstrip().endswith("weights.rtn")
    again = call(*words, "-o", tmp_path / "b.hold")
    assert "looked up" in again.err
    anew = json.loads(call(*words, "-o", tmp_path / "c.hold", "--no-cache", "--json").out)
    assert anew["method"] == "weights.rtn" and anew["knobs"]["group"] == 32
    assert anew["search"]["provenance"]["looked_up"] is False
    assert anew["search"]["rows"]["weights.formats"]["least_bytes"] > anew["bytes"]
    made = {(tmp_path / f"{n}.hold").read_bytes() for n in "abc"}
    named = call(
        "pack", model, "-b", "5.7bit", "--with", "weights.rtn", "--group", "32", "-o", tmp_path / "d.hold"
    )
    assert named.code == 0 and made == {(tmp_path / "d.hold").read_bytes()}
