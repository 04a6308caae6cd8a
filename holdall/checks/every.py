"""Checks for every method, whatever its kind."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from holdall.errors import BadInput, UnknownMethod
from holdall.method import Method, Paper, fields
from holdall.registry import methods

_SECTIONS = ("Shapes:", "Cost:", "Knobs:", "Differs from the paper:", "Example:", "Paper:", "Test:")


OF_RECIPES = (  # what is asked of dataclasses, not of a class with a foreign contract
    "check_builds_without_arguments",
    "check_json_and_repr_round_trip",
    "check_is_frozen_and_keyword_only",
    "check_unknown_knobs_are_refused",
)


def room_quality(cls: type[Any]) -> Any:
    """The room's `quality` module, or the class's own: where checks get data and measures."""
    return importlib.import_module(f"holdall.{cls.room}.{cls.measured_by}")


def brief(cls: type[Any]) -> Any:
    """The method as the checks run it: by default, unless that takes long."""
    return cls(**cls.brief)


def variants(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], Any, Any]]:
    """For each knob: (field, the method with the settings where it matters, the same with its other value)."""
    found = []
    for f in dataclasses.fields(cls):
        at = {k: v for k, v in f.metadata["at"].items() if k != "budget"}
        base = cls(**{**cls.brief, **at})
        found.append((f, base, base.but(**{f.name: f.metadata["other"]})))
    return found


def remembered(act: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """What becomes of (method, budget), which is worked out once: most knobs are compared with the same method."""
    held: dict[tuple[str, str], Any] = {}

    def told(method: Any, budget: Any) -> Any:
        key = repr(method), repr(budget)
        if key not in held:
            held[key] = act(method, budget)
        return held[key]

    return told


def check_builds_without_arguments(cls: type[Any]) -> None:
    assert cls() == cls(), f"{cls.full_name()} is not equal to itself"


def check_json_and_repr_round_trip(cls: type[Any]) -> None:
    for method in [cls(), *(changed for _, _, changed in variants(cls))]:
        told = json.loads(json.dumps(method.to_dict()))
        assert Method.from_dict(told) == method, f"{told} does not come back from JSON"
        own = methods(cls.room).values()  # classes of other rooms may be called the same
        names = {c.__name__: c for c in (*methods().values(), *own, *type(method).__mro__)}
        assert eval(repr(method), names) == method, f"{method!r} does not come back from its repr"


def check_is_frozen_and_keyword_only(cls: type[Any]) -> None:
    method = cls()
    for f in dataclasses.fields(cls):
        try:
            setattr(method, f.name, f.metadata["other"])
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"{cls.full_name()}.{f.name} can be changed")
    assert all(f.kw_only for f in dataclasses.fields(cls)), f"{cls.full_name()} takes positional knobs"


def check_names_itself_and_its_paper(cls: type[Any]) -> None:
    assert cls.__module__ == f"holdall.{cls.room}.{cls.name}", f"{cls.full_name()} lives in {cls.__module__}"
    assert isinstance(cls.paper, Paper) and cls.paper.title and cls.paper.cite, (
        f"{cls.full_name()} cites nothing"
    )
    assert cls.paper.number == 0 or cls.paper.url.startswith("https://"), (
        f"{cls.full_name()}: no link to its paper"
    )


def check_knobs_are_declared(cls: type[Any]) -> None:
    for f in fields(cls):
        assert "other" in f.metadata, f"{cls.full_name()}.{f.name} is not made with knob()"
        assert f.metadata["doc"], f"{cls.full_name()}.{f.name} has no line of documentation"
        assert f.metadata["other"] != f.default, f"{cls.full_name()}.{f.name}: the other value is the default"


def check_docstring_is_complete(cls: type[Any]) -> None:
    text = cls.__doc__ or ""
    missing = [s for s in _SECTIONS if s not in text]
    assert not missing, f"{cls.full_name()} lacks docstring sections {missing}"
    assert len(text.strip().splitlines()[0]) <= 110, f"{cls.full_name()}: the first line is too long"
    knobs = text.split("Knobs:")[1].split("Differs from the paper:")[0]
    unnamed = [f.name for f in fields(cls) if not re.search(rf"\b{f.name}\b", knobs)]
    assert not unnamed, f"{cls.full_name()}: Knobs does not explain {unnamed}"


def check_example_runs(cls: type[Any]) -> None:
    module = sys.modules[cls.__module__]
    tests = doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, module, {**vars(module)})
    examples = [e for t in tests for e in t.examples]
    assert examples, f"{cls.full_name()} has no runnable example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for t in tests:
        runner.run(t, out=said.append)
    assert not runner.failures, f"{cls.full_name()}'s example fails:\n{''.join(said)}"


def check_unknown_knobs_are_refused(cls: type[Any]) -> None:
    try:
        cls(no_such_knob=1)
    except TypeError:
        pass
    else:
        raise AssertionError(f"{cls.full_name()} takes any knob")
    try:
        Method.from_dict({"method": cls.full_name() + "x"})
    except UnknownMethod as fault:
        assert cls.full_name() in fault.near, f"{fault} does not point to {cls.full_name()}"
    try:
        Method.from_dict({"method": 3})
    except BadInput:
        return
    raise AssertionError("from_dict took a number for a method")
