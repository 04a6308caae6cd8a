"""holdall pack: any artefact into a `.hold` file within a budget."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT...", help="Files, folders, URLs, globs, or names of models (smollm2)."),
]
With = Annotated[
    str | None, typer.Option("--with", help="The method; without it the file decides.", metavar="METHOD")
]
BudgetText = Annotated[
    str | None, typer.Option("--budget", "-b", help='"25%", "45MB", "3bit"; none: the paper\'s own.')
]
Out = Annotated[str | None, typer.Option("--output", "-o", help="A file, or a folder for several inputs.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="knob=value, another way to write --knob value.")
]
Calibrate = Annotated[
    str | None, typer.Option("--calibrate", help="A text that methods which learn from text learn from.")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Inputs packed at the same time.", min=1)]
On = Annotated[str, typer.Option("--engine", help="Where several inputs are packed: processes or ray.")]


def register(app: typer.Typer) -> None:
    loose = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("pack", context_settings=loose)(pack)


def pack(
    inputs: Inputs,
    with_: With = None,
    budget: BudgetText = None,
    output: Out = None,
    sets: Sets = None,
    calibrate: Calibrate = None,
    jobs: Jobs = 1,
    engine: On = "processes",
    json: JSON = False,
) -> None:
    """Pack files into .hold files within a budget.

    Each INPUT becomes INPUT.hold, or what -o names. Options of a method are its fields:
    `holdall pack model.gguf --with weights.rtn --bits 4`; `holdall show weights.rtn` lists them.
    Without --with a model's method is the one that measures best on a sample of it (`holdall show weights.auto`).
    """
    from holdall.budget import Budget
    from holdall.cli.batch import each, job, outputs
    from holdall.cli.knobs import separate

    given, options = separate(inputs, sets or ())
    Budget.parse(budget)
    method, given = _method(with_, options, given)
    found = expand(given)
    targets = outputs(found, output)
    calls = [
        (source, method or _sniffed(source, options), budget, to, calibrate)
        for source, to in zip(found, targets, strict=True)
    ]
    rows, faults = each(job, calls, jobs=jobs, engine=engine)
    for row in rows:
        if not json:
            if "search" in row:
                print(_searched(row["search"]), file=sys.stderr)
            print(_line(row))
    if json:
        as_json(rows[0] if len(found) == 1 and rows else rows)
    for fault in faults:
        print(f"holdall: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(2)


def _method(with_: str | None, options: list[Any], given: list[str]) -> tuple[Any, list[str]]:
    """The method that was named, with its knobs, and the inputs."""
    if with_ is None:
        return None, given
    from holdall.cli.knobs import configured
    from holdall.registry import get

    method, spare = configured(get(with_), options)
    return method, given + spare


def _sniffed(source: str, options: list[Any]) -> Any:
    from holdall.cli.knobs import configured
    from holdall.errors import BadInput
    from holdall.verbs import codec_for

    method = codec_for(source)
    if not options:
        return method
    chosen, spare = configured(type(method), options)
    if spare:
        raise BadInput("option", spare[0], "inputs before the options")
    return chosen


def expand(given: list[str]) -> list[str]:
    """Globs that the shell left alone, local or remote; what they name must exist."""
    from holdall.errors import BadInput
    from holdall.places import glob, is_file

    found: list[str] = []
    for text in given:
        if any(c in text for c in "*?[") and not is_file(text):
            matched = [m for m in glob(text) if not m.endswith(".hold")]
            if not matched:
                raise BadInput("input", text, "a pattern that matches a file")
            found += matched
        else:
            found.append(text)
    if not found:
        raise BadInput("input", "nothing", "at least one file, folder, URL or name of a model")
    return list(dict.fromkeys(found))


def _searched(search: dict[str, Any]) -> str:
    """The table of what was tried, the best first."""
    from holdall.report import Report

    report = Report.from_dict(search)
    known = report.provenance
    title = f"tried on {known['sample']}{' (looked up)' if known['looked_up'] else ''}, the best first:"
    return report.as_table(title=title)


def _line(row: dict[str, Any]) -> str:
    from holdall.errors import human_bytes

    return (
        f"{row['input']} -> {row['output']}  {human_bytes(row['input_bytes'])} -> {human_bytes(row['bytes'])}"
        f"  x{row['ratio']:.2f}  {row['seconds']:.1f} s  peak {human_bytes(row['peak_bytes'])}  {row['method']}"
    )
