"""Rows of benchmarks of checkpoints: printed, and merged into results/checkpoints.json; files made durable or cold."""

from __future__ import annotations

import os
from pathlib import Path

from keeping import keeper

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"


keep = keeper(RESULTS, 42)


def synced(folder: Path, forget: bool = False) -> None:
    """Make what was written there durable. forget: and let the page cache go of it."""
    for file in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        if forget:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
