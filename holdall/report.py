"""Report: what was measured, each figure with its unit, as JSON or as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdall.errors import BadInput, human_bytes

UNITS: dict[str, str] = {
    "bytes": "B", "peak_bytes": "B", "read_bytes": "B", "written_bytes": "B", "seconds": "s",
    "cpu_seconds": "s", "joules": "J", "tokens_per_second": "1/s", "bits_per_weight": "bit",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Rows of measured figures.

    rows: subject -> {measure: value}, such as {"original": {"bytes": 10}, "packed": {"bytes": 4}}.
    baseline: the subject that the others are compared with.
    units: measure -> unit, for measures that `report.UNITS` does not name ("" for plain ratios).
    provenance: versions, machine, budget, method: what is needed to measure it again.
    """

    rows: Mapping[str, Mapping[str, float]]
    baseline: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline not in self.rows:
            raise BadInput("report baseline", self.baseline, f"one of its rows: {list(self.rows)}")

    def __getitem__(self, measure: str) -> float:
        """The figure of the last row: `report["bytes"]`."""
        return list(self.rows.values())[-1][measure]

    def unit(self, measure: str) -> str:
        return self.units.get(measure, UNITS.get(measure, ""))

    def measures(self) -> list[str]:
        return list(dict.fromkeys(m for row in self.rows.values() for m in row))

    def ratio(self, measure: str, subject: str) -> float:
        """The subject's figure over the baseline's."""
        if self.baseline is None:
            raise BadInput("report", "no baseline", "a baseline to compare with")
        return self.rows[subject][measure] / self.rows[self.baseline][measure]

    def to_dict(self) -> dict[str, Any]:
        units = {m: self.unit(m) for m in self.measures() if self.unit(m)}
        return {
            "rows": {k: dict(v) for k, v in self.rows.items()},
            "baseline": self.baseline,
            "units": units,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Report:
        return cls(d["rows"], d.get("baseline"), d.get("units", {}), d.get("provenance", {}))

    def to_json(self, **more: Any) -> str:
        return json.dumps({**self.to_dict(), **more}, indent=1)

    def cells(self, measures: Sequence[str] | None = None) -> list[list[str]]:
        """The table as text cells: a heading, then a line a subject."""
        shown = list(measures or self.measures())
        lines = [["", *(m.replace("_", " ") for m in shown)]]
        return lines + [[s, *(self._cell(s, row, m) for m in shown)] for s, row in self.rows.items()]

    def as_table(self, measures: Sequence[str] | None = None, title: str = "") -> str:
        """Plain text: a row a subject, a column a measure, and its ratio to the baseline in brackets."""
        lines = self.cells(measures)
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = []
        for first, *rest in lines:
            padded = [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
            text.append("  ".join([first.ljust(widths[0]), *padded]))
        text.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([title, *text] if title else text)

    def _cell(self, subject: str, row: Mapping[str, float], measure: str) -> str:
        value = row.get(measure)
        if value is None:
            return "-"
        text = human_bytes(value) if self.unit(measure) == "B" else f"{value:.4g}"
        if self.baseline in (None, subject) or not self.rows[str(self.baseline)].get(measure):
            return text
        return f"{text} (x{self.ratio(measure, subject):.3g})"


def provenance(**facts: Any) -> dict[str, Any]:
    """The machine and the versions, plus what the caller knows."""
    import os
    import platform
    from importlib import metadata

    from holdall import __version__

    versions = {}
    for package in ("numpy", "torch", "transformers", "numba", "zstandard", "brotli", "pyppmd"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "holdall": __version__,
        "python": platform.python_version(),
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions,
        **facts,
    }


def _cpu_model() -> str:
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
