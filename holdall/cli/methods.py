"""holdall methods: what there is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table

Room = Annotated[str | None, typer.Argument(help="Only this room.")]


def register(app: typer.Typer) -> None:
    app.command("methods")(methods)


def methods(room: Room = None, json: JSON = False) -> None:
    """List the methods: name, kind, what each does, and its paper."""
    from holdall import registry

    rows = [told(cls) for cls in registry.methods(room).values()]
    if json:
        as_json(rows)
    else:
        table(
            ["method", "kind", "what it does", "paper"],
            [[r["method"], r["kind"], r["does"], r["paper"]] for r in rows],
        )


def told(cls: type[Any]) -> dict[str, str]:
    """One method in a line."""
    does = (cls.__doc__ or "").strip().partition("\n")[0]
    return {"method": cls.full_name(), "kind": cls.kind, "does": does, "paper": cls.paper.cite}
