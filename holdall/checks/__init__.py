"""Checks that every method must pass because of its kind.

    for name, check in checks_for(cls).items():
        check(cls)

A check raises AssertionError, in one line that names what is wrong. It takes what it needs from the room's
`quality.py` (specimens, real, loss, same, original_bytes, fingerprint, FLOORS). A class that cannot pass one
says so in `skips = {"check_name": "the reason"}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdall.checks import (
    codec,
    every,
    faults,
    index,
    index_faults,
    optimizer,
    runtime,
    selector,
    store,
    store_faults,
    trainer,
)
from holdall.kinds import Codec, Index, Runtime, Selector, Store, Trainer
from holdall.method import Method

Check = Callable[[type[Any]], None]


def checks_for(cls: type[Any]) -> dict[str, Check]:
    """The checks by name: those for every class, then those of its kind."""
    modules = [every]
    if cls.kind == "optimizer":
        modules.append(optimizer)
    if issubclass(cls, Codec):
        modules += [codec, faults]
    if issubclass(cls, Selector):
        modules.append(selector)
    if issubclass(cls, Runtime):
        modules.append(runtime)
    if issubclass(cls, Trainer):
        modules.append(trainer)
    if issubclass(cls, Index):
        modules += [index, index_faults]
    if issubclass(cls, Store):
        modules += [store, store_faults]
    found = {
        name: check for module in modules for name, check in vars(module).items() if name.startswith("check_")
    }
    foreign = () if issubclass(cls, Method) else every.OF_RECIPES  # their contract is somebody else's
    return {name: check for name, check in found.items() if name not in foreign}


def skipped(cls: type[Any], name: str) -> str | None:
    """Why this class skips the check of that name, or None."""
    unknown = set(cls.skips) - set(checks_for(cls))
    assert not unknown, f"{cls.full_name()} skips checks that do not exist: {sorted(unknown)}"
    return cls.skips.get(name)
