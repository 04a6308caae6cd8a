"""Calling the command line: inside this process for speed, as a real process for codes, signals and pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from holdall.cli import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@dataclass
class Result:
    code: int
    out: str
    err: str

    def one_line(self) -> str:
        """The single line that a mistake is told in."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("holdall: "), self.err
        assert "Traceback" not in self.err
        return lines[0]


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


def process(*words: object, **more: object) -> Result:
    """The same as a process of its own."""
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, env=ENV, **more)  # type: ignore[call-overload]
    return Result(done.returncode, done.stdout, done.stderr)


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
