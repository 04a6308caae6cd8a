"""The command line as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

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


def process(*words: object, **more: object) -> Result:
    """The same as a process of its own."""
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, env=ENV, **more)  # type: ignore[call-overload]
    return Result(done.returncode, done.stdout, done.stderr)
