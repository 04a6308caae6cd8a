"""holdall info: what is in a `.hold` file, from its header alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdall.cli.output import JSON, as_json, table

File = Annotated[str, typer.Argument(metavar="FILE.hold", help="A path or URL; only its header is read.")]
_MANY = 24  # sections are listed one by one up to so many, and by kind from there on


def register(app: typer.Typer) -> None:
    app.command("info")(info)


def info(file: File, json: JSON = False) -> None:
    """Tell what a .hold file holds: room, method and knobs, sections, bytes, and the report if it has one."""
    from holdall.errors import human_bytes
    from holdall.packed import Packed

    with Packed.open(state_of(file)) as packed:
        told = {"file": file, **describe(packed)}
    if json:
        as_json(told)
        return
    print(
        f"{file}: {human_bytes(told['bytes'])} ({told['bytes']:,} bytes), room {told['room']}, {told['method']}"
    )
    for name, value in told["knobs"].items():
        print(f"  {name} = {value}")
    if {"count", "dim"} <= set(told):
        print(f"  {told['count']:,} vectors of {told['dim']}")
    rows = [[s["name"], str(s["count"]), s["type"], f"{s['bytes']:,}"] for s in told["sections"]]
    table(["section", "count", "type", "bytes"], rows)
    if told["report"]:
        from holdall.report import Report

        print(Report.from_dict(told["report"]).as_table())


def state_of(file: str) -> str:
    """The file that tells what something is: itself, or an index folder's state."""
    from holdall.places import is_file
    from holdall.vectors.folder import STATE

    inside = f"{file.rstrip('/')}/{STATE}"
    return inside if not is_file(file) and is_file(inside) else file


def describe(packed: Any) -> dict[str, Any]:
    """The header, ready for JSON."""
    method = packed.meta.get("method")
    knobs = dict(method) if isinstance(method, dict) else {}
    counts = {n: packed.meta[n] for n in ("count", "dim") if isinstance(packed.meta.get(n), int)}
    return {
        **counts,
        "room": packed.meta.get("room"),
        "method": knobs.pop("method", None),
        "knobs": knobs,
        "bytes": packed.nbytes,
        "sections": _summary(packed.arrays.sections),
        "report": packed.meta.get("report"),
    }


def _summary(sections: Any) -> list[dict[str, Any]]:
    """One entry a section, or one a kind of section when there are many (names without their numbers)."""
    named = [s for s in sections if not s.name.startswith("~")]
    groups: dict[tuple[str, str], list[Any]] = {}
    for s in named:
        key = s.name if len(named) <= _MANY else "".join("#" if c.isdigit() else c for c in s.name)
        while "##" in key and len(named) > _MANY:
            key = key.replace("##", "#")
        groups.setdefault((key, s.tag), []).append(s)
    return [
        {"name": name, "type": tag, "count": len(found), "bytes": sum(s.stop - s.start for s in found)}
        for (name, tag), found in groups.items()
    ]
