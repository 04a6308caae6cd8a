"""Pictures of reports: a PNG, and one HTML file that holds the same picture and its table."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from holdall.errors import human_bytes
from holdall.files import atomic_write
from holdall.optional import need
from holdall.report import Report

Point = tuple[float, float]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse;margin:1.5rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}p.note{color:#555}
"""


def curves(
    lines: Mapping[str, Sequence[Point]],
    png: str,
    *,
    title: str,
    x: str,
    y: str,
    log_y: bool = False,
    page: str | None = None,
    table: Report | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Draw named lines of (x, y) points into `png`, and into the self-contained HTML file `page` if it is given.

    x, y: axis labels with units; an x label that ends in "(bytes)" is ticked in kB, MB, GB. table: shown under
    the picture in the page. Needs matplotlib (`holdall[plot]`).
    """
    figure = _draw(lines, title, x, y, log_y)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=144)
    _write(png, raw.getvalue())
    if page is not None:
        vector = io.StringIO()
        figure.savefig(vector, format="svg", metadata={"Date": None})
        _write(page, _page(title, vector.getvalue(), table, notes).encode())


def _draw(lines: Mapping[str, Sequence[Point]], title: str, x: str, y: str, log_y: bool) -> Any:
    need("matplotlib", "plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        at = sorted(points)
        axes.plot(
            [p[0] for p in at], [p[1] for p in at], "o-" if len(at) > 1 else "s", label=name, markersize=5
        )
    axes.set(title=title, xlabel=x, ylabel=y)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(8))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    if x.endswith("(bytes)"):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: human_bytes(v)))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _page(title: str, svg: str, table: Report | None, notes: Sequence[str]) -> str:
    drawing = svg[svg.index("<svg") :]
    said = "".join(f'<p class="note">{html.escape(n)}</p>' for n in notes)
    rows = _rows(table) if table is not None else ""
    named = f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{named}'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{drawing}{rows}{said}</body></html>'


def _rows(table: Report) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    head, *body = table.cells()
    return "<table>" + line(head, "th") + "".join(line(r, "td") for r in body) + "</table>"


def _write(url: str, raw: bytes) -> None:
    with atomic_write(url) as f:
        f.write(raw)
        f.publish()
