"""Checks for indexes when things go wrong: damaged files, forged states, writes that fail."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from holdall.checks.every import brief, room_quality
from holdall.checks.faults import damaged, refuses_forged
from holdall.checks.index import built
from holdall.errors import CorruptArtefact
from holdall.packed import Packed

STATE = "index.hold"


def check_damage_is_named(cls: type[Any]) -> None:
    """Any file cut or with a bit flipped: CorruptArtefact, or the answer that was right before."""
    vectors, queries = room_quality(cls).real()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder) / "v.index"
        with built(brief(cls), vectors, to=str(url)) as index:
            wanted = index.search(queries, 5)
        whole = {p: p.read_bytes() for p in url.iterdir() if p.stat().st_size}
        for path, raw in whole.items():
            for _ in range(12):
                path.write_bytes(damaged(raw, rng))
                _right_or_named(cls, str(url), queries, wanted, path.name)
            path.write_bytes(raw)


def _right_or_named(cls: type[Any], url: str, queries: Any, wanted: Any, what: str) -> None:
    try:
        with cls().open(url) as index:
            hits = index.search(queries, 5)
            same = np.array_equal(hits.ids, wanted.ids) and np.array_equal(hits.distances, wanted.distances)
            assert same, f"{cls.full_name()}: a damaged {what} gives other answers"
            index.folder.check()
    except CorruptArtefact:
        return
    raise AssertionError(f"{cls.full_name()}: nobody notices a damaged {what}")


def check_forged_states_are_refused(cls: type[Any]) -> None:
    """Valid checksums over nonsense: CorruptArtefact or BadInput, or some answer; never another exception."""
    vectors, queries = room_quality(cls).real()
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder) / "v.index"
        built(brief(cls), vectors, to=str(url)).close()

        def use(forged: Packed) -> None:
            forged.save(str(url / STATE))
            with cls().open(str(url)) as index:
                index.search(queries[:3], 2)

        refuses_forged(cls, Packed.open(str(url / STATE), lazy=False), use)


def check_failing_writes_change_nothing(cls: type[Any]) -> None:
    """Each write of an addition fails in turn: the index is what it was, here and on disk."""
    vectors, queries = room_quality(cls).real()
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/v.index"
        with built(brief(cls), vectors[:800], to=url) as index:
            wanted = index.search(queries, 5)
            for n in range(1, 6):
                with _failing(n) as calls:
                    try:
                        index.add(vectors[800:])
                    except OSError as fault:
                        assert fault.errno == errno.ENOSPC
                    else:
                        break
                assert calls[0] >= n
                if index.count == len(vectors):  # the last sync comes after the commit
                    break
                with cls().open(url) as again:
                    for there in (index, again):
                        hits = there.search(queries, 5)
                        assert there.count == 800 and np.array_equal(hits.ids, wanted.ids), (
                            f"write {n} left a trace"
                        )
            assert n > 1 and index.count == len(vectors)
            index.folder.check()


@contextmanager
def _failing(n: int) -> Iterator[list[int]]:
    """The n-th sync to disk fails."""
    real, calls = os.fsync, [0]

    def sync(fd: int) -> None:
        calls[0] += 1
        if calls[0] >= n:
            raise OSError(errno.ENOSPC, "no space left on device")
        real(fd)

    with mock.patch("os.fsync", sync):
        yield calls
