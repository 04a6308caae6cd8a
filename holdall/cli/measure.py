"""holdall measure: what a method costs in quality, or every method of a room, on your model and your data."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json

Name = Annotated[
    str,
    typer.Argument(
        metavar="METHOD", help="Such as kv.snapkv (holdall methods lists them), or kv: all of the room."
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        help='"25%", "45MB", "3bit"; of kv also several: "5%,10%"; none: the paper\'s own, of a room 5%,10%,25%,50%.',
    ),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A model to measure with (a path, or smollm2).")
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        help="A file to measure on; of kv also what to ask: needle (before the cache shrinks), recall (after it, and "
        "copies), perplexity, first (before the text), reading (memory, seconds); commas between.",
    ),
]
Queries = Annotated[
    str | None, typer.Option("--queries", help="Of vectors: a file of queries; none: some of the vectors.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Less data, sooner done.")]
Png = Annotated[
    str | None,
    typer.Option("--png", help="Where to draw quality over bytes, of kv; kv.png where a room is measured."),
]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("measure", context_settings=loose)(measure)


def measure(
    context: typer.Context,
    name: Name,
    budget: BudgetText = None,
    model: ModelName = None,
    on: On = None,
    queries: Queries = None,
    quick: Quick = False,
    png: Png = None,
    json: JSON = False,
) -> None:
    """Measure a method beside its room's floors: bytes, quality, time. Its fields are options, as with pack.

    `holdall measure kv --budget 5%,25% --on needle,perplexity` measures every method of the room beside the others.
    """
    from holdall.errors import BadInput
    from holdall.registry import rooms

    asked: dict[str, Any] = {"model": model, "on": on, "quick": quick}
    if queries is not None:
        if name.partition(".")[0] != "vectors":
            raise BadInput("--queries", queries, f"none: only vectors are measured with queries, not {name}")
        asked["queries"] = queries
    if name in rooms():
        methods, left = _entrants(name, context.args)
        _race(name, methods, budget, asked, _drawable(png or f"{name}.png", png is not None), json, left)
        return
    method = _configured(name, context.args)
    if method.measured_by == "quality" and _races(method.room):
        _race(name, [method], budget, asked, _drawable(png, True), json)
        return
    _one_at_a_time(name, budget, png)
    quality = importlib.import_module(f"holdall.{method.room}.{method.measured_by}")
    report = quality.measure(method, budget, **asked)
    if json:
        _as_json(name, budget, report)
    else:
        print(report.as_table(title=f"{name} at {budget or 'its own budget'}"))


def _configured(name: str, args: Sequence[str]) -> Any:
    from holdall.cli.knobs import configured, separate
    from holdall.errors import BadInput
    from holdall.registry import get

    words, options = separate(args)
    method, spare = configured(get(name), options)
    if words or spare:
        raise BadInput("argument", (words + spare)[0], "one method; a file goes behind --on")
    return method


def _races(room: str) -> bool:
    """Whether methods of the room can be measured beside each other."""
    return importlib.util.find_spec(f"holdall.{room}.race") is not None


def _entrants(room: str, args: Sequence[str]) -> tuple[list[Any], str]:
    """The methods of a room, and which are left out and why."""
    from holdall.errors import BadInput
    from holdall.registry import methods, rooms

    if not _races(room):
        able = ", ".join(r for r in rooms() if _races(r))
        known = ", ".join(methods(room))
        raise BadInput("measure", room, f"one method of that room ({known}); whole rooms: {able}")
    if args:
        raise BadInput(
            "argument", args[0], f"no more: settings go with one method ({', '.join(methods(room))})"
        )
    entrants: tuple[list[Any], str] = importlib.import_module(f"holdall.{room}.race").entrants()
    return entrants


def _one_at_a_time(name: str, budget: str | None, png: str | None) -> None:
    from holdall.errors import BadInput

    if png is not None:
        raise BadInput("--png", png, f"a method that is measured beside others; {name} is measured alone")
    if budget is not None and "," in budget:
        raise BadInput("--budget", budget, f"one budget; {name} is measured at one at a time")


def _drawable(png: str | None, wanted: bool) -> str | None:
    """The picture's place, known to be good before hours are spent; None where there is none to draw."""
    from holdall.errors import BadInput, NeedsExtra
    from holdall.optional import need

    if png is None:
        return None
    try:
        need("matplotlib", "plot")
    except NeedsExtra as missing:
        if wanted:
            raise
        print(f"no picture: {missing}", file=sys.stderr)
        return None
    if "://" not in png and (Path(png).is_dir() or not Path(png).absolute().parent.is_dir()):
        raise BadInput("--png", png, "a file in a folder that exists")
    return png


def _race(
    name: str,
    methods: list[Any],
    budget: str | None,
    asked: dict[str, Any],
    png: str | None,
    json: bool,
    left: str = "",
) -> None:
    room = methods[0].room
    race, shown = (importlib.import_module(f"holdall.{room}.{part}") for part in ("race", "race_shown"))
    budgets = race.listed(budget or (race.BUDGETS if name == room else None)) or [None]
    at = ", ".join(budgets) if budgets != [None] else "its own budget"
    race.asked_for(asked["on"], ())  # a mistake is told before anything is read
    if left:
        names = ", ".join(m.full_name() for m in methods)
        print(f"measuring {names} at {at}; left out: {left}", file=sys.stderr)
    report = race.compare(methods, budgets, **asked)
    title = f"{name} at {at}: {shown.told(report)}"
    if json:
        flat = len(methods) == len(budgets) == 1
        _as_json(name, budget if flat else ",".join(budgets), report, flat)
    else:
        print(shown.table(report, title), flush=True)
    if png is not None:
        shown.draw(report, png, title)
        print(f"picture: {png}", file=sys.stderr)
    if report.provenance["interrupted"]:
        raise typer.Exit(130)


def _as_json(name: str, budget: str | None, report: Any, flat: bool = True) -> None:
    last = list(report.rows.values())[-1] if flat else {}
    as_json({"method": name, "budget": budget, **last, "report": report.to_dict()})
