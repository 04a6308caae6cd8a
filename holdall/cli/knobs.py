"""Options of a method are its fields: `--window 32` becomes SnapKV(window=32), with types and near misses told."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdall.errors import BadInput

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def separate(
    tokens: Sequence[str], sets: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Inputs, and options that the verb itself does not know, out of what was left on the command line.

    An option's value follows it or stands behind "="; `None` is an option without one (a flag).
    """
    inputs: list[str] = []
    options: list[tuple[str, str | None]] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        if not token.startswith("-") or token == "-" or Path(token).exists():
            inputs.append(token)
        elif "=" in token:
            name, _, value = token.partition("=")
            options.append((name, value))
        elif i < len(tokens) and _is_value(tokens[i]):
            options.append((token, tokens[i]))
            i += 1
        else:
            options.append((token, None))
    for pair in sets:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadInput("--set", pair, "knob=value")
        options.append(("--" + name, value))
    return inputs, options


def _is_value(token: str) -> bool:
    if token.startswith("-"):
        return token[1:2].isdigit() or token[1:2] == "."
    return True


def configured(
    cls: type[Any], options: Sequence[tuple[str, str | None]], base: Any = None
) -> tuple[Any, list[str]]:
    """The method with those options as its fields, and the words that flags left over (`--flag input` takes none).

    `--inner kv.ems --inner.tau 0.7` sets a field of the method that the field `inner` holds.
    """
    if not dataclasses.is_dataclass(cls):
        raise BadInput("method", cls.full_name(), f"a recipe: an {cls.kind} is built in Python")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kinds = _kinds(cls)
    values: dict[str, Any] = {}
    spare: list[str] = []
    nested: dict[str, list[tuple[str, str | None]]] = {}
    for option, text in options:
        outer, dot, rest = option.lstrip("-").partition(".")
        if dot and outer in fields:
            nested.setdefault(outer, []).append(("--" + rest, text))
            continue
        name = option.lstrip("-").replace("-", "_")
        negated = name.startswith("no_") and name.removeprefix("no_") in fields and name not in fields
        name = name.removeprefix("no_") if negated else name
        if name not in fields:
            raise BadInput("option", option, _near(cls, name, list(fields)))
        if _plain(kinds[name]) is bool and (text is None or text.lower() not in _YES + _NO):
            values[name] = not negated
            spare += [] if text is None else [text]
            continue
        if negated or text is None:
            raise BadInput(
                option,
                text or "no value",
                f"{_wanted(kinds[name])} ({fields[name].metadata.get('doc', name)})",
            )
        values[name] = _parse(option, text, kinds[name])
    for name, inner in nested.items():
        held = values.get(name, fields[name].default)
        if not dataclasses.is_dataclass(held):
            raise BadInput(f"--{name}.{inner[0][0][2:]}", f"no {name}", f"--{name} METHOD before its options")
        values[name], more = configured(type(held), inner, held)
        spare += more
    return (cls(**values) if base is None else base.but(**values)), spare


def _kinds(cls: type[Any]) -> dict[str, Any]:
    """Types of its fields, and of nothing else: class variables may name what only type checkers import."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        owner = next(k for k in cls.__mro__ if f.name in vars(k).get("__annotations__", {}))
        alone = type(
            owner.__name__, (), {"__annotations__": {f.name: vars(owner)["__annotations__"][f.name]}}
        )
        found |= typing.get_type_hints(alone, vars(sys.modules[owner.__module__]))
    return found


def _near(cls: type[Any], name: str, known: list[str]) -> str:
    shown = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    listed = ", ".join("--" + n.replace("_", "-") for n in shown)
    who = cls.full_name()
    return f"an option of {who}: {listed}" if listed else f"none: {who} has no options"


def _plain(kind: Any) -> Any:
    """int | None -> int."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return inner[0] if len(inner) == 1 else str
    return kind


def _parse(option: str, text: str, kind: Any) -> Any:
    optional = type(None) in typing.get_args(kind)
    if optional and text.lower() == "none":
        return None
    plain = _plain(kind)
    if typing.get_origin(plain) is tuple:
        of = typing.get_args(plain)[0]
        return tuple(_parse(option, part.strip(), of) for part in text.split(",") if part.strip())
    if plain is bool:
        return text.lower() in _YES
    if plain is str:
        return text
    try:
        if plain in (int, float):
            return plain(text)
    except ValueError:
        raise BadInput(option, text, _wanted(kind)) from None
    return _method(option, text)


def _method(option: str, text: str) -> Any:
    """A knob that holds another method is named by it."""
    from holdall.registry import get

    if "." not in text:
        raise BadInput(option, text, "the name of a method (holdall methods)")
    return get(text)()


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list, with commas between"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(_plain(kind), "the name of a method") + (
        " or none" if type(None) in typing.get_args(kind) else ""
    )
