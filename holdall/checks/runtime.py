"""Checks for runtimes: memory measured by the kernel, closing, live knobs, and pages that cannot be had.

Each runtime gives its own small run (`rehearsal`) and names the functions that bring pages in (`doors`).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from holdall.checks.every import remembered, variants
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Session
from holdall.memory import release
from holdall.meter import resident_bytes

_SHARES = (5, 25, 50, 100)
_SLACK = 2 << 20  # bytes: page tables, and what the interpreter itself takes in between


def _resident() -> int:
    gc.collect()
    release()
    return resident_bytes()


def _run(session: Session, steps: Any) -> list[Any]:
    """What the steps give; None where one does not fit."""
    given: list[Any] = []
    for x in steps:
        try:
            given.append(session.step(x))
        except BudgetError:
            given.append(None)
    return given


def check_budget_is_kept(cls: type[Any]) -> None:
    artefact, steps = cls.rehearsal()
    whole = cls().whole(artefact)
    with cls().open(artefact) as warm:  # what libraries allocate once is not this session's
        _run(warm, steps)
    for share in _SHARES:
        allowed = share * whole // 100
        for budget in (f"{share}%", allowed):
            before = _resident()
            try:
                session = cls().open(artefact, budget)
            except BudgetError as fault:
                assert fault.least > allowed, f"{cls.full_name()} refuses {budget} but could hold it"
                continue
            with session:
                for x in steps:
                    with contextlib.suppress(BudgetError):
                        session.step(x)
                    taken = resident_bytes() - before
                    assert taken <= allowed + _SLACK, (
                        f"{cls.full_name()} holds {taken} bytes for {allowed} ({budget})"
                    )


def check_the_least_that_it_names_is_enough(cls: type[Any]) -> None:
    artefact, steps = cls.rehearsal()
    try:
        cls().open(artefact, 1).close()
    except BudgetError as fault:
        with cls().open(artefact, fault.least) as session:
            _run(session, steps)
        return
    raise AssertionError(f"{cls.full_name()} opens in one byte")


def check_closing_gives_the_memory_back(cls: type[Any]) -> None:
    artefact, steps = cls.rehearsal()
    with cls().open(artefact) as warm:
        _run(warm, steps)
    before, files, held = _resident(), _open_files(), 0
    for _ in range(3):
        with cls().open(artefact) as session:
            _run(session, steps)
            held = max(held, resident_bytes() - before)
    left = _resident() - before
    assert held > 2 * _SLACK, f"{cls.full_name()}: its rehearsal holds {held} bytes, too few to see"
    assert left <= _SLACK, f"{cls.full_name()} keeps {left} bytes after it was closed"
    assert _open_files() <= files, f"{cls.full_name()} leaves files open"


def _open_files() -> int:
    folder = Path("/proc/self/fd")  # Linux only; elsewhere this check sees no files
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def check_use_after_close_is_an_error(cls: type[Any]) -> None:
    artefact, steps = cls.rehearsal()
    session = cls().open(artefact)
    session.step(steps[0])
    session.close()
    session.close()
    for act in (lambda: session.step(steps[0]), session.traffic):
        try:
            act()
        except BadInput:
            continue
        raise AssertionError(f"{cls.full_name()} works on after it was closed")


def check_knobs_are_live(cls: type[Any]) -> None:
    artefact, steps = cls.rehearsal()
    once = remembered(lambda method, budget: _told(method, artefact, steps, budget))
    for f, base, changed in variants(cls):
        budget = f.metadata["at"].get("budget")
        (a, went), (b, now) = (once(m, budget) for m in (base, changed))
        changes = f.metadata["changes"]
        assert (a == b) == (changes != "output"), (
            f"{cls.full_name()}.{f.name}: results do not change {changes}"
        )
        if changes != "output":
            alike = went == now
            assert alike == (changes == "nothing"), (
                f"{cls.full_name()}.{f.name} = {f.metadata['other']!r} changes {changes}: {went}"
            )


def check_the_same_run_counts_the_same(cls: type[Any]) -> None:
    artefact, steps = cls.rehearsal()
    a, b = _told(cls(), artefact, steps, None), _told(cls(), artefact, steps, None)
    assert a == b, f"{cls.full_name()} is not deterministic"
    assert any(a[1].values()), f"{cls.full_name()} counts nothing"


def _told(method: Any, artefact: Any, steps: Any, budget: Any) -> tuple[list[Any], dict[str, float]]:
    """Results and counts of a run, times left out."""
    if type(method).changes_artefact:
        artefact, steps = type(method).rehearsal()
    with method.open(artefact, budget) as session:
        given = [x.numpy() if hasattr(x, "numpy") else x for x in _run(session, steps)]  # of tensors
        given = [(x.shape, x.tobytes()) if hasattr(x, "tobytes") else x for x in given]
        went = {k: v for k, v in session.traffic().items() if not k.endswith("seconds")}
    return given, went


def check_a_page_that_cannot_be_had_is_an_error_and_no_leak(cls: type[Any]) -> None:
    """The n-th page-in fails: the error comes through, and the same step works afterwards, within the budget."""
    artefact, steps = cls.rehearsal()
    assert cls.doors, f"{cls.full_name()} names no function that brings pages in"
    whole = cls().whole(artefact)
    for door in cls.doors:
        with cls().open(artefact) as warm:  # what libraries allocate once, with and without a fault
            with _nth_call_fails(door, 1), contextlib.suppress(OSError):
                _run(warm, steps)
            _run(warm, steps)
        for n in (0, 7):
            before = _resident()
            with cls().open(artefact) as session:
                with _nth_call_fails(door, n) as failed:
                    done = 0
                    try:
                        for x in steps:
                            session.step(x)
                            done += 1
                    except OSError as fault:
                        assert failed, f"{cls.full_name()}: {fault}"
                    else:
                        assert not failed, f"{cls.full_name()}: a failed {door} was swallowed"
                for x in steps[done:]:
                    session.step(x)
                taken = _resident() - before  # what the allocator keeps for later is not held
                assert taken <= whole + _SLACK, f"{cls.full_name()} holds {taken} bytes after a fault"
            left = _resident() - before
            assert left <= _SLACK, f"{cls.full_name()} keeps {left} bytes after a fault"


@contextlib.contextmanager
def _nth_call_fails(door: str, n: int) -> Iterator[list[int]]:
    """The n-th call of the function `module.Class.name` raises ENOMEM."""
    where, _, name = door.rpartition(".")
    module, _, owner = where.rpartition(".")
    holder = getattr(importlib.import_module(module), owner)
    real, calls, failed = getattr(holder, name), [0], []

    def guard(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == n + 1:
            failed.append(n)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(*args, **kwargs)

    with mock.patch.object(holder, name, guard):
        yield failed
