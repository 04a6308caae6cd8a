"""A folder of checkpoints: data under names that nothing refers to, then one small file, renamed, which names them.

12.checkpoint       the manifest of step 12; its renaming is the moment at which the step is there
12-5f0c.data/       what ranks wrote: 0.hold, 1.hold, ...

So an old checkpoint stands until the new one does, also where both are of the same step. What killed saves left is
removed by the next one that is published. Only one job at a time saves into a folder; on a disk a lock sees to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from holdall import places
from holdall.errors import BadInput, CorruptArtefact, HoldallError
from holdall.files import _filesystem, _sync_folder, atomic_write, is_local, local_path, open_reader

_FORMAT = 1
_MOST = 256 << 20  # bytes of a manifest


class Folder:
    """What is there, and how more comes. `store`: the method whose checkpoints these are."""

    def __init__(self, url: str, store: str):
        self.url, self.store = url.rstrip("/") if url != "/" else url, store
        self.local = is_local(url)
        if self.local:
            where = local_path(self.url)
            if where.exists() and not where.is_dir():
                raise BadInput("folder", url, "a folder, new or not; this is a file")
            where.mkdir(parents=True, exist_ok=True)
        else:
            _filesystem(url)  # a bad URL fails now, not after hours of training

    def data(self, token: str) -> str:
        return f"{self.url}/{token}.data"

    def begin(self, token: str) -> None:
        """A place for the files of a save."""
        if self.local:
            local_path(self.data(token)).mkdir(exist_ok=True)

    def steps(self) -> list[int]:
        if not self.local:
            _filesystem(self.url)[0].invalidate_cache()
        paths = places.glob(f"{_escaped(self.url)}/*.checkpoint")
        names = (p.rsplit("/", 1)[-1].removesuffix(".checkpoint") for p in paths)
        return sorted(int(n) for n in names if n.isdigit())

    def chosen(self, step: int | None) -> int:
        """The step that was asked for, or the newest; BadInput where it is not there."""
        there = self.steps()
        if step is None and there:
            return there[-1]
        if step not in there:
            got = "no checkpoint" if step is None else f"no step {step!r}"
            raise BadInput(self.url, got, f"one of the steps {there[-9:]}" if there else "one that was saved")
        return step

    def read(self, step: int) -> tuple[dict[str, Any], str]:
        """What the manifest says, checked, and where its data is."""
        path = f"{self.url}/{step}.checkpoint"
        try:
            told, rest = self._parts(step)
            said, token = json.loads(rest), str(told["data"])
            if "/" in token or not isinstance(said, dict):
                raise ValueError("its data lies elsewhere")
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            others = [s for s in self.steps() if s != step]
            hint = f" (steps {others[-3:]} are there, too)" if others else ""
            raise CorruptArtefact(path, f"the manifest is torn or altered: {fault}{hint}") from None
        if told.get("store") != self.store:
            raise BadInput(
                path, f"a checkpoint of {told.get('store', 'another store')}", f"one of {self.store}"
            )
        return said, self.data(token)

    def _parts(self, step: int) -> tuple[dict[str, Any], bytes]:
        """The first line and what follows; ValueError and its like where they do not match their checksum."""
        path = f"{self.url}/{step}.checkpoint"
        with open_reader(path) as reader:
            if reader.size > _MOST:
                raise CorruptArtefact(path, "too large for a manifest")
            first, _, rest = reader.read(0, reader.size).partition(b"\n")
        told = json.loads(first)
        if told["format"] != _FORMAT:
            raise CorruptArtefact(path, f"format {told['format']!r} is not known to this Holdall: upgrade it")
        if seal(told, rest) != told["xxh3"]:
            raise ValueError("it does not match its checksum")
        return told, rest

    def publish(
        self, step: int, said: Mapping[str, Any], token: str, keep: int, under_way: Callable[[str], bool]
    ) -> None:
        """Make a step be there, let go of all but the `keep` newest, and of what nothing names.

        under_way: whether a token may be that of a save that has not ended, which is left alone.
        """
        if self.local:
            _sync_folder(local_path(self.url))  # the name of the data's folder, before anything refers to it
        rest = json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
        told = {"format": _FORMAT, "store": self.store, "data": token}
        told["xxh3"] = seal(told, rest)
        with atomic_write(f"{self.url}/{step}.checkpoint") as f:
            f.write(json.dumps(told).encode() + b"\n" + rest)
            f.publish()
        for old in [s for s in self.steps() if s != step][: -(keep - 1) or None] if keep else []:
            self._remove(f"{self.url}/{old}.checkpoint")
        self.sweep(under_way)

    def sweep(self, under_way: Callable[[str], bool]) -> None:
        """Remove what killed saves left, and the data of steps that were let go or written again."""
        named, unclear = set[str](), tuple[str, ...]()
        for step in self.steps():
            try:
                named.add(self.data(self._parts(step)[0]["data"]))
            except (ValueError, KeyError, TypeError, CorruptArtefact):
                unclear += (f"{self.url}/{step}-",)  # what a damaged one named may be all that is left of it
        for folder in self._folders():
            token = folder.rsplit("/", 1)[-1].removesuffix(".data")
            if folder not in named and not folder.startswith(unclear) and not under_way(token):
                self._remove(folder)
        if self.local:  # of manifests; who holds the lock has none under way
            for left in local_path(self.url).glob(".*.checkpoint.*.tmp"):
                left.unlink(missing_ok=True)

    def _folders(self) -> list[str]:
        if self.local:
            return [f"{self.url}/{p.name}" for p in local_path(self.url).glob("*.data")]
        fs, path = _filesystem(self.url)
        fs.invalidate_cache()
        if not fs.isdir(path):
            return []
        names = (p["name"].rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=True))
        return [f"{self.url}/{name}" for name in names if name.endswith(".data")]

    def drop(self, token: str) -> None:
        """The data of a save that failed."""
        self._remove(self.data(token))

    def _remove(self, url: str) -> None:
        if self.local:
            where = local_path(url)
            if where.is_dir():
                shutil.rmtree(where)
            else:
                where.unlink(missing_ok=True)
            return
        fs, path = _filesystem(url)
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def send(self, token: str, name: str, file: Path) -> None:
        """One file of a save to where this folder is."""
        fs, path = _filesystem(f"{self.data(token)}/{name}") if not self.local else (None, "")
        if fs is None:
            self.begin(token)
            with atomic_write(f"{self.data(token)}/{name}") as f, file.open("rb") as source:
                while piece := source.read(1 << 20):
                    f.write(piece)
                f.publish()
        else:
            fs.put_file(str(file), path)


class Lock:
    """Of a folder on a disk, held while saves are under way; the kernel ends that of a process that is killed."""

    def __init__(self, folder: Folder):
        self._folder, self._fd, self._users = folder, -1, 0
        self._guard = threading.Lock()

    def hold(self) -> None:
        with self._guard:
            if not self._users and self._folder.local:
                self._fd = os.open(local_path(self._folder.url), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(self._fd)
                    why = "somebody else is saving there now; one job a folder"
                    raise HoldallError(f"{self._folder.url}: {why}") from None
            self._users += 1

    def release(self) -> None:
        with self._guard:
            self._users -= 1
            if not self._users and self._folder.local:
                os.close(self._fd)


def nobody(token: str) -> bool:
    """Of stores that begin a save when the one before has ended."""
    return False


def seal(told: Mapping[str, Any], rest: bytes) -> str:
    """Checksum of a manifest: of its first line, but for the checksum itself, and of what follows."""
    head = json.dumps([told.get("format"), told.get("store"), told.get("data")]).encode()
    return xxhash.xxh3_128_hexdigest(head + rest)


def _escaped(url: str) -> str:
    import glob

    return glob.escape(url) if is_local(url) else url
