"""Rows of benchmarks of checkpoints: printed, and merged into results/checkpoints.json; files made durable or cold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from holdall.report import provenance

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    """Print a row and merge it into the results."""
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{part}: {name:42s} {told}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault(part, {})[name] = row
    found["provenance"] = provenance()
    RESULTS.write_text(json.dumps(found, indent=1))


def synced(folder: Path, forget: bool = False) -> None:
    """Make what was written there durable. forget: and let the page cache go of it."""
    for file in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        if forget:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
