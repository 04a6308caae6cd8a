"""holdall measure: what a method costs in quality, on your model and your data."""

from __future__ import annotations

from typing import Annotated

import typer

from holdall.cli.output import JSON, as_json

Name = Annotated[
    str, typer.Argument(metavar="METHOD", help="Such as kv.snapkv (holdall methods lists them).")
]
BudgetText = Annotated[
    str | None, typer.Option("--budget", "-b", help='"25%", "45MB", "3bit"; none: the paper\'s own.')
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A model to measure with (a path, or smollm2).")
]
On = Annotated[str | None, typer.Option("--on", help="A file to measure on, or a test that the room knows.")]
Quick = Annotated[bool, typer.Option("--quick", help="Less data, sooner done.")]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("measure", context_settings=loose)(measure)


def measure(
    context: typer.Context,
    name: Name,
    budget: BudgetText = None,
    model: ModelName = None,
    on: On = None,
    quick: Quick = False,
    json: JSON = False,
) -> None:
    """Measure a method beside its room's floor: bytes, quality, time. Its fields are options, as with pack."""
    import importlib

    from holdall.cli.knobs import configured, separate
    from holdall.errors import BadInput
    from holdall.registry import get

    words, options = separate(context.args)
    cls = get(name)
    method, spare = configured(cls, options)
    if words or spare:
        raise BadInput("argument", (words + spare)[0], "one method; a file goes behind --on")
    quality = importlib.import_module(f"holdall.{cls.room}.{cls.measured_by}")
    report = quality.measure(method, budget, model=model, on=on, quick=quick)
    if json:
        last = list(report.rows.values())[-1]
        as_json({"method": name, "budget": budget, **last, "report": report.to_dict()})
    else:
        print(report.as_table(title=f"{name} at {budget or 'its own budget'}"))
