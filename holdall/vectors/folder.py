"""An index on disk: a folder with one state file, `index.hold`, and files of bytes that only grow.

What is found is what the state says: a change first appends, then syncs, then puts a new state in the old one's place.
So a process that is killed leaves the last committed state, readers go on with the state that they opened, and bytes
behind a file's committed end are nobody's. One process at a time may change a folder. The state keeps each stretch
that a commit added to a file, with its checksum.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, is_local, local_path, open_reader
from holdall.packed import Packed

STATE = "index.hold"
_LOCK = "lock"
_STEP = 8 << 20


class Folder:
    """An index folder, opened at its committed state: `meta`, `arrays`, which are read when they are asked for, and
    `read` of its files."""

    def __init__(self, url: str, packed: Packed):
        self.url, self.meta, self.arrays, self._packed = url, packed.meta, packed.arrays, packed
        self._readers: dict[str, Reader] = {}
        told, commits = packed.meta.get("files"), packed.meta.get("generation")
        if (
            type(commits) is not int
            or not isinstance(told, dict)
            or not all(_stretches(v) for v in told.values())
        ):
            raise CorruptArtefact(f"{url}/{STATE}", "it does not say which files it has")
        self.files: dict[str, list[list[Any]]] = told
        self.generation = commits  # commits so far

    @classmethod
    def open(cls, url: str) -> Self:
        """At its committed state, with all of its files open, which may be gone from the folder later."""
        url = url.rstrip("/")
        if is_local(url) and not (local_path(url) / STATE).is_file():
            raise BadInput("index", url, "a folder that `holdall index` wrote")
        last = -1
        while True:
            folder = cls(url, Packed.open(f"{url}/{STATE}"))
            try:
                for name in folder.files:
                    folder._readers[name] = open_reader(f"{url}/{name}", scattered=True)
                return folder
            except BadInput as gone:
                folder.close()
                if folder.generation == last:  # no writer has been faster than we are
                    raise CorruptArtefact(url, "a file of its is not there") from gone
                last = folder.generation

    def array(self, name: str, dtype: Any, axes: int) -> np.ndarray:
        """A section of that type with so many axes, read now; CorruptArtefact where it is none."""
        found = self.arrays.get(name)
        if found is None or found.dtype != dtype or found.ndim != axes:
            told = "not there" if found is None else f"{found.dtype} {found.shape}"
            raise CorruptArtefact(self.url, f"its section {name!r} is {told}")
        return found

    def size(self, name: str) -> int:
        """Committed bytes of a file."""
        return int(self.files[name][-1][1]) if self.files.get(name) else 0

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self._reader(name).read(start, stop)

    def soon(self, name: str, start: int, stop: int) -> None:
        """That this will be read."""
        self._reader(name).soon(start, stop)

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            raise CorruptArtefact(self.url, f"its state knows no file {name!r}, or it was closed")
        return self._readers[name]

    @property
    def traffic(self) -> int:
        return sum(r.traffic for r in self._readers.values())

    def check(self) -> int:
        """Read all that is committed and compare; the bytes read."""
        seen = self._packed.check()
        for name, stretches in self.files.items():
            for start, stop, wanted in stretches:
                total = xxhash.xxh3_128()
                for at in range(start, stop, _STEP):
                    total.update(self.read(name, at, min(at + _STEP, stop)))
                if total.hexdigest() != wanted:
                    raise CorruptArtefact(
                        f"{self.url}/{name}", f"bytes {start} to {stop} do not match their checksum"
                    )
                seen += stop - start
        return seen

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._packed.close()


def _stretches(told: Any) -> bool:
    """Whether that is [[0, a, sum], [a, b, sum], ...]."""
    if not isinstance(told, list) or not all(isinstance(t, list) and len(t) == 3 for t in told):
        return False
    ends = [0, *(t[1] for t in told)]
    whole = all(type(a) is int and type(b) is int and a <= b and isinstance(s, str) for a, b, s in told)
    return whole and all(t[0] == end for t, end in zip(told, ends, strict=False))


def generation(url: str) -> int:
    """Commits of a folder so far."""
    with contextlib.closing(Folder.open(url)) as folder:
        return folder.generation


class Change:
    """What a process is changing in a folder: `append`, then `commit`. Without a commit nothing has changed."""

    def __init__(self, where: Path, folder: Folder | None):
        self.where, self.generation = where, 0 if folder is None else folder.generation
        self.files = (
            {} if folder is None else {n: [list(s) for s in told] for n, told in folder.files.items()}
        )
        self._open: dict[str, tuple[Any, int, Any]] = {}  # file, where this change began, running checksum
        self.scratch = where / "building"  # what a change puts down on its way; gone when it is committed

    def append(self, name: str, data: bytes | memoryview | np.ndarray) -> int:
        """Where in the file it stands."""
        if name not in self._open:
            told = self.files.get(name, [])
            start = told[-1][1] if told else 0
            handle = (self.where / name).open("r+b" if (self.where / name).exists() else "w+b")
            handle.truncate(start)  # what a killed change left behind
            handle.seek(start)
            self._open[name] = (handle, start, xxhash.xxh3_128())
        handle, _, total = self._open[name]
        at: int = handle.tell()
        raw = (
            np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
            if isinstance(data, np.ndarray)
            else data
        )
        handle.write(raw)
        total.update(raw)
        return at

    def drop(self, name: str) -> None:
        """The next state does without that file."""
        self.files.pop(name, None)

    def commit(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        for name, (handle, start, total) in self._open.items():
            handle.flush()
            os.fsync(handle.fileno())
            if handle.tell() > start:
                self.files.setdefault(name, []).append([start, handle.tell(), total.hexdigest()])
            handle.close()
        self._open.clear()
        told = {**meta, "files": self.files, "generation": self.generation + 1}
        Packed(arrays, told).save(str(self.where / STATE))
        for path in self.where.iterdir():  # of older states; who has them open still reads them
            if path.name not in (STATE, _LOCK) and path.name not in self.files and path.is_file():
                path.unlink()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def abandon(self) -> None:
        for handle, _, _ in self._open.values():
            handle.close()
        self._open.clear()


@contextlib.contextmanager
def changing(url: str, folder: Folder | None = None) -> Iterator[Change]:
    """Alone with the folder, which is made where it is not there. folder: the state that the change goes on from."""
    import fcntl

    if not is_local(url):
        raise BadInput("index", url, "a local folder: indexes elsewhere can be searched, not changed")
    where = local_path(url)
    if not where.parent.is_dir():
        raise BadInput("output", url, f"a folder that exists ({where.parent} does not)")
    fresh = not where.exists()
    where.mkdir(exist_ok=True)
    with (where / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as held:
            raise BadInput("index", url, "one that no other process is changing") from held
        change = Change(where, folder)
        if folder is not None and generation(url) != folder.generation:
            raise BadInput("index", url, "one that is as it was opened: it has changed since, open it again")
        try:
            yield change
        except BaseException:
            change.abandon()
            if fresh and not (where / STATE).exists():
                shutil.rmtree(where)
            raise
        change.abandon()
