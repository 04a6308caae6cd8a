"""Rows of benchmarks: printed as they come, and merged into a file, so that parts can be run one by one.

keep = keeper(RESULTS, 28)
keep("speed", "massa", {"seconds": 1.5})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdall.report import provenance

Keep = Callable[[str, str, Mapping[str, Any]], None]


def keeper(results: Path, width: int, digits: int = 4) -> Keep:
    """keep(part, name, row). width: of names, as they are printed; digits: of figures."""

    def keep(part: str, name: str, row: Mapping[str, Any]) -> None:
        told = (f"{k} {v:.{digits}g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
        print(f"{part}: {name:{width}s} {'  '.join(told)}", flush=True)
        found = json.loads(results.read_text()) if results.exists() else {}
        found.setdefault(part, {})[name] = row
        found["provenance"] = provenance()
        results.write_text(json.dumps(found, indent=1))

    return keep
