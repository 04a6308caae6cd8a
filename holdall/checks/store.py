"""Checks for stores: what comes back, what a snapshot is, memory as measured, live knobs, closing, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdall.checks.every import room_quality, variants
from holdall.errors import BudgetError, HoldallError
from holdall.memory import release
from holdall.meter import Meter, resident_bytes
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

ROOM = "8MB"  # of memory, where it does not matter how much: what is small is soon made ready
_SLACK = 3 << 20  # bytes: threads, page tables, and what the interpreter itself takes in between


@contextlib.contextmanager
def a_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="holdall.check.") as folder:
        yield str(Path(folder, "run"))


def files_of(url: str) -> list[str]:
    """Everything below, without the part of names that saves draw."""
    found = []
    for p in sorted(Path(url).rglob("*")):
        step, dash, rest = p.name.partition("-")
        found.append(f"{step}-.{rest.rpartition('.')[2]}" if dash else p.name)
    return sorted(found)


def _big(nbytes: int, fill: float = 1.0) -> dict[str, Any]:
    """Three tensors, one of them as large as the two others together."""
    n = nbytes // 16
    return {
        "model": {"a": torch.full((2 * n,), fill), "b": torch.full((n,), fill), "c": torch.full((n,), fill)}
    }


def check_odd_states_come_back(cls: type[Any]) -> None:
    """Types, shapes, order and bits, into memory of its own and into that of a user."""
    quality = room_quality(cls)
    for name, state in quality.specimens().items():
        was = quality.copied(state)
        with a_folder() as url, cls().open(url, ROOM) as kept:
            kept.save(3, state, wait=True)
            assert quality.same(state, was), f"{cls.full_name()} changes what it saves ({name})"
            assert quality.same(kept.load(), was), f"{cls.full_name()} gives another state back ({name})"
            like = quality.copied(state)
            quality.spoiled(like)
            tensors = quality.tensors(like)
            got = kept.load(like=like)
            assert quality.same(got, was), f"{cls.full_name()} fills another state in ({name})"
            assert all(a is b for a, b in zip(quality.tensors(got), tensors, strict=True)), (
                f"{cls.full_name()} gives tensors back that are not the ones it was given ({name})"
            )


def check_shared_memory_is_written_once(cls: type[Any]) -> None:
    w = torch.randn(600, 500)
    with a_folder() as url, cls().open(url, ROOM) as kept:
        nbytes = kept.save(1, {"model": {"in": w, "out": w, "part": w[10:20]}}, wait=True).wait()
        got = kept.load()["model"]
    assert nbytes < 1.2 * w.nbytes, f"{cls.full_name()} writes {nbytes} bytes for {w.nbytes}"
    got["in"].zero_()
    assert not got["out"].any(), f"{cls.full_name()} gives tied tensors back as two"


def check_a_snapshot_is_of_its_moment(cls: type[Any]) -> None:
    """Training goes on, with `ready` before each step; each step that was saved is as it was."""
    quality = room_quality(cls)
    model, optimizer, batch = quality.run()
    wanted, steps = {}, 6
    with a_folder() as url:
        with cls(**_all_stay(cls)).open(url, ROOM) as kept:
            for step in range(steps):
                batch().backward()
                kept.ready()
                optimizer.step()
                optimizer.zero_grad()
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                wanted[step] = quality.copied(state)
                kept.save(step, state)
        with cls().open(url, ROOM) as kept:
            assert kept.steps() == list(range(steps)), f"{cls.full_name()} keeps {kept.steps()}"
            for step, state in wanted.items():
                assert quality.same(kept.load(step), state), f"{cls.full_name()}: step {step} is another"


def _all_stay(cls: type[Any]) -> dict[str, int]:
    return {"keep": 0} if any(f.name == "keep" for f in dataclasses.fields(cls)) else {}


def check_memory_is_kept(cls: type[Any]) -> None:
    """Beside the state itself, by the kernel's own account; a store that cannot says so."""
    for allowed in (6 << 20, 12 << 20):
        with a_folder() as url:
            _saves(cls, url, None, _big(2 << 20))  # what libraries take once is not this save's
            state = _big(24 << 20)
            with Meter() as m:
                fits = _saves(cls, url, allowed, state)
            assert not fits or m.peak_bytes <= 1.05 * allowed + _SLACK, (
                f"{cls.full_name()} takes {m.peak_bytes} bytes for {allowed}"
            )


def _saves(cls: type[Any], url: str, memory: Any, state: Any) -> bool:
    try:
        with cls().open(url, memory) as kept:
            for step in (1, 2):
                kept.save(step, state)
                kept.ready()
    except BudgetError as fault:
        assert fault.least > memory, (
            f"{cls.full_name()} refuses {memory} bytes, but could do with {fault.least}"
        )
        return False
    return True


def check_the_least_that_it_names_is_enough(cls: type[Any]) -> None:
    """What `open` names, and then what `save` does, once it knows the state."""
    quality = room_quality(cls)
    state, memory = quality.real(), 1
    for _ in range(3):
        try:
            with a_folder() as url, cls().open(url, memory) as kept:
                kept.save(1, state, wait=True)
                assert quality.same(kept.load(), state), f"{cls.full_name()} in {memory} bytes: another state"
        except BudgetError as fault:
            assert fault.least > memory, f"{cls.full_name()} names {fault.least} where it has {memory}"
            memory = fault.least
            continue
        assert memory > 1, f"{cls.full_name()} works in one byte"
        return
    raise AssertionError(f"{cls.full_name()} does not work in the {memory} bytes that it names")


def check_knobs_are_live(cls: type[Any]) -> None:
    told: dict[str, Any] = {}
    for f, base, changed in variants(cls):
        budget = f.metadata["at"].get("budget")
        (a, went), (b, now) = (_story(m, budget or ROOM, told) for m in (base, changed))
        changes = f.metadata["changes"]
        assert (a == b) == (changes != "output"), (
            f"{cls.full_name()}.{f.name}: results do not change {changes}"
        )
        if changes != "output":
            assert (went == now) == (changes == "nothing"), (
                f"{cls.full_name()}.{f.name} = {f.metadata['other']!r} changes {changes}: {went} {now}"
            )


def _story(method: Any, budget: Any, told: dict[str, Any]) -> Any:
    """What a user sees of some saves and loads, and what was counted, times left out."""
    key = repr((method, budget))
    if key not in told:
        quality = room_quality(type(method))
        with a_folder() as url, tempfile.TemporaryDirectory() as tier:
            elsewhere = {k: tier for k, v in method.to_dict().items() if v == "$TMP"}
            with method.but(**elsewhere).open(url, budget) as kept:
                for step in (1, 2, 3):
                    state = quality.real(steps=step)
                    kept.save(step, state, wait=True)
                more = {**quality.copied(state), "more": torch.zeros(2)}
                seen = [
                    kept.steps(),
                    quality.same(kept.load(), state),
                    _outcome(lambda: kept.load(like=more)),
                ]
                told[key] = seen, {k: v for k, v in kept.traffic().items() if not k.endswith("seconds")}
    return told[key]


def _outcome(act: Callable[[], Any]) -> str:
    try:
        return f"{type(act()).__name__}"
    except HoldallError as fault:
        return type(fault).__name__


def check_receipts_tell_when_it_is_durable(cls: type[Any]) -> None:
    quality = room_quality(cls)
    state = quality.real()
    with a_folder() as url, cls().open(url, ROOM) as kept:
        receipt = kept.save(4, state)
        assert receipt.step == 4 and receipt.blocked >= 0 and kept.ready() >= 0
        nbytes = receipt.wait(60)
        assert receipt.done and nbytes >= quality.original_bytes(state) // 2, (
            f"{cls.full_name()}: {nbytes} bytes"
        )
        on_disk = sum(p.stat().st_size for p in Path(url).rglob("*") if p.is_file())
        assert on_disk >= nbytes, f"{cls.full_name()} tells of {nbytes} bytes where there are {on_disk}"
        with cls().open(url, ROOM) as other:
            assert other.steps() == [4] and quality.same(other.load(), state), (
                f"{cls.full_name()}: not durable"
            )
        assert any(kept.traffic().values()), f"{cls.full_name()} counts nothing"


def check_a_step_saved_again_is_the_new_one(cls: type[Any]) -> None:
    quality = room_quality(cls)
    with a_folder() as url:
        with cls().open(url, ROOM) as kept:
            kept.save(7, quality.real(steps=1), wait=True)
            once = files_of(url)
            kept.save(7, quality.real(steps=2))
        assert files_of(url) == once, f"{cls.full_name()} leaves {set(files_of(url)) - set(once)} behind"
        with cls().open(url, ROOM) as kept:
            assert kept.steps() == [7] and quality.same(kept.load(), quality.real(steps=2))


def check_closing_finishes_and_gives_back(cls: type[Any]) -> None:
    quality = room_quality(cls)
    with a_folder() as url:
        _saves(cls, url, None, _big(1 << 20))
        threads, handles, before = threading.active_count(), _handles(), _resident()
        for fill in (2.0, 3.0):
            _saves(cls, url, None, _big(16 << 20, fill))
        left = _resident() - before
        assert left <= _SLACK, f"{cls.full_name()} keeps {left} bytes after it was closed"
        assert threading.active_count() <= threads, f"{cls.full_name()} leaves threads"
        assert _handles() <= handles, f"{cls.full_name()} leaves files open"
        with cls().open(url, ROOM) as kept:
            assert quality.same(kept.load(), _big(16 << 20, 3.0)), f"{cls.full_name()}: the last save is lost"


def _resident() -> int:
    gc.collect()
    release()
    return resident_bytes()


def _handles() -> int:
    folder = Path("/proc/self/fd")  # Linux only; elsewhere this check sees none
    return len(os.listdir(folder)) if folder.is_dir() else 0
