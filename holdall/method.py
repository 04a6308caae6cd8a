"""Paper, Cited and Method: a method is a frozen recipe with one citation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from holdall.errors import BadInput


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. `number` is its card; floors that no paper claims carry number 0."""

    number: int
    title: str
    cite: str
    url: str = ""


class Cited:
    """Has a name, a room, a kind and a paper; also for classes whose contract is somebody else's."""

    name: ClassVar[str]
    room: ClassVar[str]
    kind: ClassVar[str]
    paper: ClassVar[Paper]
    measured_by: ClassVar[str] = "quality"  # the room's module with its specimens and measures
    skips: ClassVar[Mapping[str, str]] = {}  # check name -> the reason why it does not apply
    brief: ClassVar[Mapping[str, Any]] = {}  # knobs of the checks' runs, where the defaults take long
    knobs: ClassVar[Mapping[str, Any]] = {}  # made with knob(), of classes whose contract is somebody else's

    @classmethod
    def full_name(cls) -> str:
        return f"{cls.room}.{cls.name}"


def knob(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    paper: Any = None,
    other: Any,
    at: Mapping[str, Any] | None = None,
    changes: str = "output",
) -> Any:
    """A field of a method.

    doc: one line for `--help`. unit: of the value. paper: the paper's own value when the default differs.
    other: another value which must change what the method gives, at the other fields `at` (and at the
    budget `at["budget"]`, if it is there). changes: "output", or "nothing" for a knob that may only move
    speed or memory, in which case the output must *not* change; of a runtime also "traffic": what it counts
    must change, and the output must not.
    """
    meta = {
        "doc": doc,
        "unit": unit,
        "paper": paper,
        "other": other,
        "at": dict(at or {}),
        "changes": changes,
    }
    return dataclasses.field(default=default, metadata=meta)


def fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """The knobs of a class: a recipe's fields, or what a class with a foreign contract says of its arguments."""
    if dataclasses.is_dataclass(cls):
        return dataclasses.fields(cls)
    for name, field in cls.knobs.items():
        field.name = name
    return tuple(cls.knobs.values())


@dataclass(frozen=True, kw_only=True)
class Method(Cited):
    """A recipe: what to do, never what was learned. Fields are its knobs; the budget is never one.

    Subclasses are decorated with `@dataclass(frozen=True, kw_only=True)` and build without arguments.
    """

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: {"method": "room.name", knob: value, ...}; a held method nests."""
        knobs = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: v.to_dict() if isinstance(v, Method) else v for k, v in knobs.items()}
        return {"method": self.full_name(), **plain}

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> Method:
        """The inverse of `to_dict`; unknown names and knobs raise."""
        from holdall.registry import get

        if not isinstance(d, Mapping) or not isinstance(d.get("method"), str):
            raise BadInput("method", str(d), 'a mapping with a "method" name')
        cls = get(d["method"])
        if not issubclass(cls, Method):
            raise BadInput("method", d["method"], f"a recipe: an {cls.kind} is built in Python")
        return cls(**{k: _knob_value(v) for k, v in d.items() if k != "method"})

    def but(self, **knobs: Any) -> Self:
        """The same recipe with some knobs changed."""
        return dataclasses.replace(self, **knobs)


def _knob_value(plain: Any) -> Any:
    """A knob's value from JSON, which knows no tuples and nests the methods that a method holds."""
    if isinstance(plain, Mapping) and "method" in plain:
        return Method.from_dict(plain)
    return tuple(plain) if isinstance(plain, list) else plain
