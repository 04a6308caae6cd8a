"""Where the time of a checkpoint went: phases of each rank, their bytes, and which rank the others wait for."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdall.errors import human_bytes

PHASES = ("plan", "copy", "write", "upload", "agree", "read", "place", "exchange")
_SHADES = " .:-=+*#%@"


class Watch:
    """Phases of one rank, added up; safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._born = time.perf_counter()
        self.phases: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def phase(self, name: str, nbytes: int = 0) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, began, time.perf_counter(), nbytes)

    def add(self, name: str, began: float, ended: float, nbytes: int = 0) -> None:
        with self._lock:
            new = {"began": began - self._born, "ended": 0.0, "seconds": 0.0, "bytes": 0}
            row = self.phases.setdefault(name, new)
            row["ended"] = max(row["ended"], ended - self._born)
            row["seconds"] += ended - began
            row["bytes"] += nbytes

    def told(self) -> dict[str, dict[str, float]]:
        """Plain, for a message."""
        with self._lock:
            return {name: dict(row) for name, row in self.phases.items()}


@dataclass(frozen=True)
class Timeline:
    """What all ranks told of one save or load. `print` shows a table; `to_dict` is ready for JSON."""

    what: str
    step: int
    ranks: Sequence[dict[str, dict[str, float]]] = field(default_factory=tuple)

    def phases(self) -> list[str]:
        named = {name for rank in self.ranks for name in rank}
        return sorted(named, key=lambda n: (PHASES.index(n) if n in PHASES else len(PHASES), n))

    def seconds(self, phase: str) -> list[float]:
        return [rank.get(phase, {}).get("seconds", 0.0) for rank in self.ranks]

    def nbytes(self, phase: str) -> int:
        return int(sum(rank.get(phase, {}).get("bytes", 0) for rank in self.ranks))

    def bandwidth(self, phase: str) -> float:
        """Bytes a second of all ranks together: their bytes over the time of the slowest; 0 where none were moved."""
        slowest = max(self.seconds(phase), default=0.0)
        return self.nbytes(phase) / slowest if slowest else 0.0

    def stragglers(self, factor: float = 1.5, least: float = 0.01) -> list[tuple[int, str, float]]:
        """(rank, phase, times the median) of those that took that much longer than the others, the worst first."""
        found = []
        for phase in self.phases():
            took = self.seconds(phase)
            usual = statistics.median(took)
            for rank, seconds in enumerate(took):
                if seconds - usual > least and seconds > factor * usual:
                    found.append((rank, phase, seconds / usual if usual else float("inf")))
        return sorted(found, key=lambda f: -f[2])

    def to_dict(self) -> dict[str, Any]:
        rows = {
            p: {"seconds": self.seconds(p), "bytes": self.nbytes(p), "bytes_per_second": self.bandwidth(p)}
            for p in self.phases()
        }
        late = [{"rank": r, "phase": p, "of_median": x} for r, p, x in self.stragglers()]
        return {
            "what": self.what,
            "step": self.step,
            "ranks": len(self.ranks),
            "phases": rows,
            "stragglers": late,
        }

    def __str__(self) -> str:
        """A line for each phase; the map at its end has a sign for each rank, the darker the longer it took."""
        lines = [f"{self.what} of step {self.step}, {len(self.ranks)} ranks"]
        lines.append(
            f"{'phase':9s} {'median':>8s} {'slowest':>8s} {'rank':>5s} {'bytes':>9s} {'a second':>9s}  ranks"
        )
        for phase in self.phases():
            took = self.seconds(phase)
            worst = max(took)
            heat = "".join(_SHADES[round(t / worst * (len(_SHADES) - 1)) if worst else 0] for t in took)
            moved = human_bytes(self.nbytes(phase)), human_bytes(self.bandwidth(phase))
            lines.append(
                f"{phase:9s} {statistics.median(took):8.4f} {worst:8.4f} {took.index(worst):5d} "
                f"{moved[0]:>9s} {moved[1]:>9s}  {heat}"
            )
        lines += [f"rank {r} took {x:.3g} times the median to {p}" for r, p, x in self.stragglers()]
        return "\n".join(lines)
