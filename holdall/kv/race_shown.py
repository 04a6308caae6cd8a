"""What a race shows: a table with a row for each method and budget, and a picture with a panel for each question."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdall.errors import human_bytes
from holdall.kv.race import FLOORS
from holdall.picture import Panel, panels
from holdall.report import Report


def _two(value: float) -> str:
    return f"{value:.2f}"


_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "bytes": ("bytes", human_bytes),
    "share": ("share", lambda v: f"{100 * v:.1f}%"),
    "recall": ("recall", _two),
    "greedy": ("greedy", _two),
    "recall_late": ("late", _two),
    "greedy_late": ("late greedy", _two),
    "copy": ("copy", _two),
    "recall_first": ("first", _two),
    "greedy_first": ("first greedy", _two),
    "perplexity": ("perplexity", lambda v: f"{v:.4g}"),
    "perplexity_ratio": ("ratio", lambda v: f"x{v:.2f}"),
    "peak_bytes": ("peak", human_bytes),
    "cpu_seconds": ("CPU seconds", lambda v: f"{v:.3g}"),
}  # fmt: skip
_PANELS: dict[str, tuple[str, str, bool]] = {
    "recall": ("Question read before the cache shrinks", "recall (share of facts; chance 0.17)", False),
    "recall_late": ("Question asked after it shrank", "recall (share of facts; chance 0.17)", False),
    "copy": ("Earlier passages copied", "tokens given back (share)", False),
    "recall_first": ("Question before the text", "recall (share of facts; chance 0.17)", False),
    "perplexity_ratio": ("What follows the text", "perplexity (ratio to the whole cache's)", True),
}


def told(report: Report) -> str:
    """With what it was measured."""
    facts = report.provenance
    texts = facts["facts"] // 10
    many = "a text" if texts == 1 else f"{texts} texts"
    return f"{facts['model']} in {facts['dtype']}, ten facts in {many} of {facts['tokens']:,} tokens"


def table(report: Report, title: str = "") -> str:
    """Plain text: a row for each method and budget, a column for each figure of the arms that ran."""
    shown = [m for m in _COLUMNS if m in report.measures()]
    lines = [["", *(_COLUMNS[m][0] for m in shown)]]
    for subject, row in report.rows.items():
        lines.append([subject, *(_COLUMNS[m][1](row[m]) if m in row else "-" for m in shown)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * w for w in widths])
    text = [
        "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
        for name, *cells in lines
    ]
    refused: Mapping[str, str] = report.provenance.get("refused", {})
    return "\n".join([*([title] if title else ()), *text, *refused.values()])


def draw(report: Report, png: str, title: str) -> None:
    """Each figure over the share of the whole cache's bytes, a line a method, a panel an arm."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for subject, row in report.rows.items():
        if subject == report.baseline:
            continue
        for measure in _PANELS:
            if measure in row:
                points = lines.setdefault(measure, {}).setdefault(subject.split(" ")[0], [])
                points.append((100 * row["share"], row[measure]))
    full = report.rows[str(report.baseline)]
    made = [
        Panel(_PANELS[m][0], _PANELS[m][1], lines[m], level=full[m], log_y=_PANELS[m][2])
        for m in _PANELS
        if m in lines
    ]
    panels(
        made, png, title=title, x="bytes held (% of the whole cache's)", floors=FLOORS, level="whole cache"
    )
