"""holdall plan: what each method would give at each size, before you spend the time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table

ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model as `pack` takes it: a path, a URL, or smollm2.")
]
Into = Annotated[
    str, typer.Option("--into", help='Sizes of the file, commas between: "60MB,80MB", "25%", "3bit".')
]
Among = Annotated[
    str | None, typer.Option("--with", help="Only these methods, commas between.", metavar="METHODS")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Pack the whole model each time, and show what came of it.")
]
Trained = Annotated[
    bool, typer.Option("--trained", help="Also methods that train (minutes to hours with --measure).")
]
Calibrate = Annotated[
    str | None, typer.Option("--calibrate", help="A text that methods learn from; its last fifth judges.")
]
_SHOWN = {"perplexity_ratio": "perplexity", "cosine": "cosine", "lost": "loss"}


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(
    model: ModelPath,
    into: Into,
    with_: Among = None,
    measure: Measure = False,
    trained: Trained = False,
    calibrate: Calibrate = None,
    json: JSON = False,
) -> None:
    """Tell what each method would give at each size: bytes, quality, time, or the least that it can do.

    `holdall plan model/ --into 60MB,80MB,120MB` predicts from a sample of the model; perplexities are ratios to the
    original's on held-out text. `--measure` packs everything and shows both side by side.
    """
    from holdall.weights.base import WeightCodec
    from holdall.weights.forecast import forecast
    from holdall.weights.trial import candidates

    budgets = sizes(into)
    tried = candidates(tuple(n.strip() for n in with_.split(",")) if with_ else (), trained)
    x = WeightCodec.read_input(model)
    if calibrate is not None:
        from holdall.verbs import text_of

        x.calibration = text_of(calibrate)
    limits = {b: WeightCodec.allowed(x, b) or 0 for b in budgets}
    cells = forecast(x, list(limits.values()), tried, measure=measure)
    if json:
        named = {limit: b for b, limit in limits.items()}
        as_json({"model": model, "cells": [{"into": named[c.limit], **c.to_dict()} for c in cells]})
        return
    for budget, limit in limits.items():
        show(budget, limit, [c for c in cells if c.limit == limit], measure)


def sizes(text: str) -> list[str]:
    from holdall.budget import Budget
    from holdall.errors import BadInput

    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise BadInput("--into", text, 'sizes ("60MB,80MB")')
    for part in found:
        Budget.parse(part)
    return list(dict.fromkeys(found))


def show(budget: str, limit: int, cells: list[Any], measured: bool) -> None:
    """One table a size, the best first; methods that do not fit come last with their least."""
    from holdall.errors import human_bytes
    from holdall.weights.trial import called

    def place(cell: Any) -> tuple[bool, float]:
        known = cell.measured or cell.predicted
        return "lost" not in known, known.get("lost", known.get("least_bytes", 0.0))

    seen = {q for c in cells for found in (c.predicted, c.measured or {}) for q in found}
    quality = next((q for q in _SHOWN if q in seen), "lost")
    head = ["method", "file", _SHOWN[quality], "packing"]
    if measured:
        head += [f"measured {h}" for h in head[1:]]
    rows = []
    for cell in sorted(cells, key=place):
        row = [called(cell.method), *_figures(cell.predicted, quality)]
        rows.append(row + (_figures(cell.measured or {}, quality) if measured else []))
    print(f"{budget} ({human_bytes(limit)}):")
    table(head, [head, *rows] if not _terminal() else rows)


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _figures(found: dict[str, float], quality: str) -> list[str]:
    from holdall.errors import human_bytes

    if "least_bytes" in found:
        return [f"needs {human_bytes(found['least_bytes'])}", "-", "-"]
    mark = "x" if quality == "perplexity_ratio" else ""
    return [human_bytes(found["bytes"]), f"{mark}{found[quality]:.3g}", f"{found['seconds']:.0f} s"]
