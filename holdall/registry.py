"""The registry is the rooms' own imports: this only walks them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from holdall.errors import BadInput, UnknownMethod
from holdall.method import Cited


@cache
def rooms() -> tuple[str, ...]:
    """Names of the rooms: the sub-packages that have a contract (`base.py`)."""
    here = Path(__file__).parent
    return tuple(
        m.name for m in pkgutil.iter_modules([str(here)]) if m.ispkg and (here / m.name / "base.py").exists()
    )


def methods(room: str | None = None) -> dict[str, type[Any]]:
    """Every method class by full name ("kv.snapkv"), in the order in which its room imports it."""
    if room is not None and room not in rooms():
        raise BadInput("room", room, f"one of {', '.join(rooms())}")
    found: dict[str, type[Any]] = {}
    for name in [room] if room else rooms():
        module = importlib.import_module(f"holdall.{name}")
        for exported in module.__all__:
            thing = getattr(module, exported)
            if isinstance(thing, type) and issubclass(thing, Cited) and hasattr(thing, "name"):
                found[thing.full_name()] = thing
    return found


def get(name: str) -> type[Any]:
    """The method class of that name: get("kv.snapkv")."""
    room = name.split(".")[0]
    known = methods(room) if room in rooms() else {}
    if name in known:
        return known[name]
    every = methods()
    near = difflib.get_close_matches(name, every, n=3, cutoff=0.6)
    raise UnknownMethod(name, near or [n for n in every if n.split(".")[1] == name])
