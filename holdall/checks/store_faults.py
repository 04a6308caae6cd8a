"""Checks for stores when things go wrong: disks that fail, files that are damaged or forged, states that do not fit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from holdall import files
from holdall.checks.every import room_quality
from holdall.checks.faults import damaged, twist
from holdall.checks.store import ROOM, a_folder, files_of
from holdall.errors import BadInput, BudgetError, CorruptArtefact, HoldallError
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


def check_what_does_not_fit_is_told(cls: type[Any]) -> None:
    """Before anything of the user's is changed, in one line."""
    quality = room_quality(cls)
    w, b = torch.arange(6.0).reshape(2, 3), torch.ones(4)
    state = {"model": {"w": w, "b": b}, "step": 3}
    others: dict[str, Any] = {
        "its shape is another": {"model": {"w": w.clone(), "b": torch.zeros(5)}, "step": 0},
        "its type is another": {"model": {"w": w.clone(), "b": torch.zeros(4).double()}, "step": 0},
        "a tensor is missing": {"model": {"w": w.clone()}, "step": 0},
        "there is one more": {"model": {"w": w.clone(), "b": b.clone(), "c": b.clone()}, "step": 0},
        "it is no tensor": {"model": {"w": w.clone(), "b": 3}, "step": 0},
    }
    with a_folder() as url, cls().open(url, ROOM) as kept:
        refused(cls, kept.load, "nothing was saved")
        kept.save(2, state, wait=True)
        for why, like in others.items():
            like["model"]["w"].fill_(7)
            refused(cls, partial(kept.load, like=like), why)
            assert like["model"]["w"].eq(7).all(), f"{cls.full_name()} changes a state though {why}"
        refused(cls, lambda: kept.load(5), "there is no such step")
        for bad in (-1, 1.5, "3", True, None):
            refused(cls, partial(kept.save, bad, state), f"the step is {bad!r}")
        refused(cls, lambda: kept.save(3, {"f": print}, wait=True), "there is a function in the state")
        refused(cls, lambda: kept.save(3, {"s": {1, 2}}, wait=True), "there is a set in the state")
        assert kept.steps() == [2] and quality.same(kept.load(), state), f"{cls.full_name()}: not as it was"
        taken = Path(url, "a file")
        taken.write_bytes(b"x")
        refused(cls, lambda: cls().open(str(taken)), "the folder is a file")


def check_a_failing_disk_leaves_the_old_one(cls: type[Any]) -> None:
    """Every n-th call that changes the disk fails as a full one: told, and the old or the new state is there, whole."""
    quality = room_quality(cls)
    old, new = ({"model": {f"w{i}": torch.full((700,), x + i) for i in range(2)}, "step": x} for x in (1, 2))
    with a_folder() as url:
        with cls().open(url, ROOM) as kept:
            kept.save(1, old, wait=True)
        clean, found = files_of(url), []
        for n in range(400):
            with nth_change_fails(n) as failed:
                try:
                    with cls().open(url, ROOM) as kept:
                        kept.save(1, new, wait=True)
                except (OSError, HoldallError) as fault:
                    assert failed, f"{cls.full_name()}: {fault!r}"
                    assert "\n" not in str(fault), f"{cls.full_name()}: an error of several lines"
                else:
                    assert not failed, f"{cls.full_name()}: failure {n} was swallowed"
            with cls().open(url, ROOM) as kept:
                got = kept.load()
                assert kept.steps() == [1] and any(quality.same(got, s) for s in (old, new)), (
                    f"{cls.full_name()}: after failure {n} there is neither the old state nor the new one"
                )
                found.append(got["step"])
                kept.save(1, old, wait=True)
            assert files_of(url) == clean, f"{cls.full_name()}: failure {n} leaves {files_of(url)}"
            if not failed:
                break
    assert found.count(1) >= 3 and found[-1] == 2, (
        f"{cls.full_name()}: the disk failed {len(found)} times only"
    )


def check_a_failure_in_the_background_is_told(cls: type[Any]) -> None:
    """Also where nobody waits for the receipt: by the next save, or by closing."""
    state = {"w": torch.ones(700)}
    for saves_again in (True, False):
        with a_folder() as url:
            kept = cls().open(url, ROOM)
            kept.save(1, state, wait=True)
            try:
                with nth_change_fails(0) as failed:
                    kept.save(2, state)
                    if saves_again:
                        kept.load(1)  # waits for what is under way
                        kept.save(3, state)
                    kept.close()
            except (OSError, HoldallError):
                assert failed, f"{cls.full_name()} fails without a cause"
            else:
                raise AssertionError(f"{cls.full_name()}: nobody is told of a save that failed")
            kept.close()


@contextlib.contextmanager
def nth_change_fails(n: int) -> Iterator[list[int]]:
    """The n-th call that changes the disk raises ENOSPC, in this process and in those that it forks."""
    calls, failed = [0], []

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == n + 1:
                failed.append(n)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **named)

        return act

    with contextlib.ExitStack() as stack:
        for name in ("pwrite", "fsync", "posix_fallocate"):
            if hasattr(os, name):
                stack.enter_context(mock.patch.object(os, name, guard(getattr(os, name))))
        stack.enter_context(mock.patch.object(files.atomic_write, "write", guard(files.atomic_write.write)))
        stack.enter_context(mock.patch.object(Path, "replace", guard(Path.replace)))
        yield failed


def check_damage_is_named(cls: type[Any]) -> None:
    """Cut anywhere, flip any bit, lose any file: told, or what comes is right; and the step before is still there."""
    quality, rng = room_quality(cls), random.Random(0)
    old, new = quality.real(width=16, steps=1), quality.real(width=16, steps=2)
    with a_folder() as url:
        with cls().open(url, ROOM) as kept:
            kept.save(1, old, wait=True)
            before = set(Path(url).rglob("*"))
            kept.save(2, new, wait=True)
        fresh = [p for p in sorted(Path(url).rglob("*")) if p.is_file() and p not in before]
        told = 0
        with cls().open(url, ROOM) as kept:
            for file in fresh:
                raw = file.read_bytes()
                for bad in [*(damaged(raw, rng) for _ in range(12)), raw[:-1], b"", None]:
                    file.unlink() if bad is None else file.write_bytes(bad)
                    told += _told_or_right(cls, kept, new, bad is None)
                    assert quality.same(kept.load(1), old), f"{cls.full_name()}: the step before is gone, too"
                file.write_bytes(raw)
            assert quality.same(kept.load(2), new)
    assert told >= 12, f"{cls.full_name()} names damage {told} times only"


def _told_or_right(cls: type[Any], kept: Any, wanted: Any, missing: bool) -> bool:
    try:
        got = kept.load(2)
    except CorruptArtefact as fault:
        assert "\n" not in str(fault), f"{cls.full_name()}: an error of several lines"
        return True
    except BadInput:
        assert missing, (
            f"{cls.full_name()} calls damage a mistake"
        )  # without its manifest a step is not there
        return True
    except Exception as fault:
        raise AssertionError(f"{cls.full_name()}: damage ends in {type(fault).__name__}: {fault}") from fault
    assert room_quality(cls).same(got, wanted), f"{cls.full_name()}: damage went unseen"
    return False


def check_forged_manifests_are_refused(cls: type[Any]) -> None:
    """Nonsense under a valid checksum: told in one line, or a state; never another error, and nothing outside read."""
    from holdall.checkpoints.publish import seal

    quality, rng = room_quality(cls), random.Random(1)
    with a_folder() as url, cls().open(url, ROOM) as kept:
        kept.save(1, quality.real(width=16), wait=True)
        manifest = Path(url, "1.checkpoint")
        first, _, rest = manifest.read_bytes().partition(b"\n")
        for _ in range(60):
            head, said = json.loads(first), json.loads(rest)
            twist(said if rng.random() < 0.8 else head, rng)
            body = json.dumps(said).encode()
            if head.get("xxh3") == json.loads(first)["xxh3"]:
                head["xxh3"] = seal(head, body)
            manifest.write_bytes(json.dumps(head).encode() + b"\n" + body)
            like = quality.real(width=16)
            for act in (kept.load, lambda like=like: kept.load(like=like)):
                try:
                    act()
                except (CorruptArtefact, BadInput, BudgetError) as fault:
                    assert "\n" not in str(fault), f"{cls.full_name()}: an error of several lines"
                except Exception as fault:
                    raise AssertionError(f"{cls.full_name()}: a forged manifest ends in {fault!r}") from fault


def check_use_after_close_is_an_error(cls: type[Any]) -> None:
    state = {"w": torch.ones(3)}
    with a_folder() as url:
        kept = cls().open(url, ROOM)
        kept.save(1, state, wait=True)
        kept.close()
        kept.close()
        for act in (lambda: kept.save(2, state), kept.load, kept.steps, kept.ready, kept.traffic):
            refused(cls, act, "it is closed")


def check_urls_work(cls: type[Any]) -> None:
    quality = room_quality(cls)
    import fsspec

    url = f"memory://check/{cls.name}"
    with cls().open(url, ROOM) as kept:
        for step in (1, 2):
            state = quality.real(steps=step)
            kept.save(step, state)
    with cls().open(url, ROOM) as kept:
        like = quality.copied(state)
        quality.spoiled(like)
        assert quality.same(kept.load(), state) and quality.same(kept.load(like=like), state)
    fsspec.filesystem("memory").rm("/check", recursive=True)


def refused(cls: type[Any], act: Callable[[], Any], why: str) -> None:
    try:
        act()
    except BadInput as fault:
        assert "\n" not in str(fault), f"{cls.full_name()}: an error of several lines"
        return
    raise AssertionError(f"{cls.full_name()} goes on though {why}")
