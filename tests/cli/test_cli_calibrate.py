"""`pack --calibrate`: one way for every method that learns from text; who does not says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdall.weights import quality


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("weights.efficientqat", ["--windows", "4", "--window", "32", "--steps", "2"]),
        ("weights.bitstack", ["--windows", "2", "--window", "32", "--slope-windows", "1"]),
    ],
)
def test_a_text_is_learned_from(call, tmp_path: Path, method: str, more: list[str]) -> None:
    quality.real().write(str(tmp_path / "model"))
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    made = []
    for asked in ([], ["--calibrate", text]):
        out = tmp_path / f"{len(made)}.hold"
        done = call("pack", tmp_path / "model", "--with", method, "-b", "4bit", "-o", out, *more, *asked)
        assert done.code == 0, done.err
        made.append(out.read_bytes())
    assert made[0] != made[1]
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize(
    ("method", "raw", "told"),
    [
        ("weights.rtn", b"text", "does not calibrate"),
        ("weights.efficientqat", b"\xff\xfe\x00", "UTF-8"),
        ("weights.efficientqat", b"", "calibration text"),
    ],
)
def test_a_text_that_cannot_be_used_is_told_in_a_line(
    call, tmp_path: Path, method: str, raw: bytes, told: str
) -> None:
    quality.real().write(str(tmp_path / "model"))
    (tmp_path / "text.txt").write_bytes(raw)
    done = call("pack", tmp_path / "model", "--with", method, "--calibrate", tmp_path / "text.txt")
    assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1


def test_logs_do_not_learn_from_text(call, log: Path) -> None:
    done = call("pack", log, "--calibrate", log)
    assert done.code == 2 and "does not calibrate" in done.err
