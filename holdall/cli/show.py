"""holdall show: everything about one method, from its own class."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table
from holdall.method import Method, fields

Name = Annotated[
    str, typer.Argument(metavar="METHOD", help="Such as kv.snapkv (holdall methods lists them).")
]


def register(app: typer.Typer) -> None:
    app.command("show")(show)


def show(name: Name, json: JSON = False) -> None:
    """Explain a method: what it does and when it is poor, its knobs, how it differs from its paper."""
    from holdall.registry import get

    cls = get(name)
    if json:
        as_json(everything(cls))
        return
    print(f"{cls.full_name()} ({cls.kind})\n\n{inspect.getdoc(cls)}\n")
    rows = [[k["option"], k["default"], k["unit"], k["paper"], k["doc"]] for k in knobs(cls)]
    if rows:
        table(["option", "default", "unit", "paper's", "what it does"], rows)
    print(f"\n{citation(cls)}")


def everything(cls: type[Any]) -> dict[str, Any]:
    return {
        "method": cls.full_name(),
        "kind": cls.kind,
        "doc": inspect.getdoc(cls),
        "knobs": knobs(cls),
        "paper": dataclasses.asdict(cls.paper),
    }


def knobs(cls: type[Any]) -> list[dict[str, str]]:
    """Each field: its option, default, unit, the paper's value and one line."""
    return [
        {
            "option": "--" + f.name.replace("_", "-") if issubclass(cls, Method) else f.name,
            "default": _shown(f.default),
            "unit": f.metadata.get("unit", ""),
            "paper": _shown(f.default if f.metadata.get("paper") is None else f.metadata["paper"]),
            "doc": f.metadata.get("doc", ""),
        }
        for f in fields(cls)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def citation(cls: type[Any]) -> str:
    paper = cls.paper
    if not paper.number:
        return f"No paper claims this: {paper.title}"
    return f"{paper.title}. {paper.cite}. {paper.url}"
