"""Checks for codecs when things go wrong: damaged files, forged files, a disk that fails."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from holdall import files
from holdall.checks.codec import fits
from holdall.checks.every import brief, room_quality
from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed


def check_damage_is_named(cls: type[Any]) -> None:
    """Cut anywhere, flip any bit: CorruptArtefact, from a file, lazily opened or not."""
    raw = fits(brief(cls), next(iter(room_quality(cls).specimens().values()))).to_bytes()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.hold"
        for _ in range(40):
            path.write_bytes(damaged(raw, rng))
            for lazy in (True, False):
                _expect_corrupt(cls, lambda lazy=lazy: _open_and_check(str(path), lazy), "damage")


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Cut somewhere, or with a bit flipped."""
    bad = bytearray(raw)
    if rng.random() < 0.3:
        del bad[rng.randrange(len(bad)) :]
    else:
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def _open_and_check(path: str, lazy: bool) -> None:
    with Packed.open(path, lazy=lazy) as packed:
        packed.check()


def check_hostile_files_are_refused(cls: type[Any]) -> None:
    """Valid checksums over nonsense: CorruptArtefact or something decoded, never another exception."""
    refuses_forged(cls, fits(brief(cls), room_quality(cls).real()), cls().decode)


def refuses_forged(cls: type[Any], packed: Packed, use: Callable[[Packed], Any]) -> None:
    for forged in forgeries(packed):
        try:
            use(forged)
        except (CorruptArtefact, BadInput, BudgetError):
            continue
        except Exception as fault:
            raise AssertionError(f"{cls.full_name()}: a forged file ends in {fault!r}") from fault


def forgeries(packed: Packed) -> Iterator[Packed]:
    """Files like this one, with valid checksums over nonsense."""
    rng = random.Random(1)
    for _ in range(30):
        meta, arrays = json.loads(json.dumps(packed.meta)), dict(packed.arrays)
        if rng.random() < 0.5 or not arrays:
            twist(meta, rng)
        else:
            name = rng.choice(sorted(arrays))
            arrays[name] = spoil(arrays[name], rng)
        yield Packed.from_bytes(Packed(arrays, meta).to_bytes())


def twist(meta: dict[str, Any], rng: random.Random) -> None:
    """Replace one leaf of the method's own meta."""
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            if node is meta and key in ("room", "method", "report", "provenance"):
                continue
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(meta)
    if spots:
        node, key = rng.choice(spots)
        node[key] = rng.choice([-1, 2**62, 0, None, "x", [], {}, 1e300, "../../etc"])


def spoil(array: np.ndarray, rng: random.Random) -> np.ndarray:
    flat = array.reshape(-1)
    if rng.random() < 0.5:
        return flat[: rng.randrange(len(flat) + 1)].copy()
    raw = bytearray(flat.tobytes())
    for _ in range(min(len(raw), 1 + len(raw) // 64)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)


def check_failed_writes_leave_the_old_file(cls: type[Any]) -> None:
    """The n-th write fails as on a full disk: the error comes through, the old file or the new one is there whole."""
    packed = fits(brief(cls), next(iter(room_quality(cls).specimens().values())))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.hold"
        path.write_bytes(b"old")
        for n in range(4):
            with nth_write_fails(n) as failed, contextlib.suppress(OSError):
                packed.save(str(path))
                assert not failed, f"{cls.full_name()}: a failed write was swallowed"
            if not failed:
                break
            assert [p.name for p in Path(folder).iterdir()] == ["a.hold"], "a failed save left files behind"
            # when the last sync fails, the rename is done and the new file is there, whole
            assert path.read_bytes() in (b"old", packed.to_bytes()), "a failed save destroyed the old file"


def _expect_corrupt(cls: type[Any], act: Any, what: str) -> None:
    try:
        act()
    except CorruptArtefact:
        return
    except Exception as fault:
        raise AssertionError(f"{cls.full_name()}: {what} ends in {type(fault).__name__}: {fault}") from fault
    raise AssertionError(f"{cls.full_name()}: {what} went unseen")


@contextlib.contextmanager
def nth_write_fails(n: int) -> Iterator[list[int]]:
    """The n-th write through `files.atomic_write` (publishing is the last) raises ENOSPC."""
    calls, failed = [0], []

    def guard(real: Any) -> Any:
        def write(self: Any, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == n + 1:
                failed.append(n)
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, *args)

        return write

    real_fsync = files.os.fsync
    with (
        mock.patch.object(files.atomic_write, "write", guard(files.atomic_write.write)),
        mock.patch.object(files.os, "fsync", lambda fd: guard(lambda _s: real_fsync(fd))(None)),
    ):
        yield failed
