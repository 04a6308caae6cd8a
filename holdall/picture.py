"""Pictures of reports: a PNG, and one HTML file that holds the same picture and its table."""

from __future__ import annotations

import html
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdall.errors import BadInput, human_bytes
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


@dataclass(frozen=True)
class Panel:
    """One of several pictures side by side: lines of (x, y) points under a title.

    level: a height that is drawn from side to side, such as what nothing lost would reach.
    """

    title: str
    y: str
    lines: Mapping[str, Sequence[Point]]
    level: float | None = None
    log_y: bool = False


def panels(
    shown: Sequence[Panel], png: str, *, title: str, x: str, floors: Collection[str] = (), level: str = ""
) -> None:
    """Draw panels that share the axis `x`, in percent and logarithmic, and one legend, into `png`.

    A line has the same colour and mark in each; colours also differ in brightness. floors: lines that are grey and
    dashed. level: what the panels' levels are called.
    """
    need("matplotlib", "plot")
    from matplotlib.figure import Figure

    if not shown:
        raise BadInput("picture", "nothing to draw", "at least one panel")
    across = 1 if len(shown) == 1 else 2
    down = -(-len(shown) // across)
    figure = Figure(figsize=(6.4 * across, 1.2 + 3.8 * down), layout="constrained")
    styles = _styles(list(dict.fromkeys(n for p in shown for n in p.lines)), floors)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, panel in zip(grid, shown, strict=False):
        _panel(axes, panel, styles, x, level)
    for axes in grid[len(shown) :]:
        axes.remove()
    entries = {
        name: line
        for axes in figure.axes
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=5)
    figure.suptitle(title)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=120)
    _write(png, raw.getvalue())


def _styles(names: Sequence[str], floors: Collection[str]) -> dict[str, dict[str, Any]]:
    """Colours from dark to light, so that they tell lines apart in grey too; every line has a mark of its own."""
    from matplotlib import colormaps

    bright = [n for n in names if n not in floors]
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate((*bright, *(n for n in names if n in floors))):
        grey = name in floors
        found[name] = {
            "color": "0.6" if grey else colormaps["viridis"](0.88 * i / max(1, len(bright) - 1)),
            "linestyle": "--" if grey else "-",
            "marker": "osD^vPX*<>dhp"[i % 13],
            "zorder": 2 if grey else 3,
        }
    return found


def _panel(axes: Any, panel: Panel, styles: Mapping[str, Mapping[str, Any]], x: str, level: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    for name, style in styles.items():
        if at := sorted(panel.lines.get(name, ())):
            axes.plot(
                [p[0] for p in at], [p[1] for p in at], label=name, markersize=5, linewidth=1.4, **style
            )
    if panel.level is not None:
        axes.axhline(panel.level, color="black", linestyle=":", linewidth=1.2, label=level or None)
    axes.set(title=panel.title, xlabel=x, ylabel=panel.y, xscale="log")
    axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}%"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(8))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)


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
