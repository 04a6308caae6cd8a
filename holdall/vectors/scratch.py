"""What a build puts down on its way, so that it needs no memory for it, and goes on after it was killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdall.packed import Packed

_DONE = "done.json"


class Scratch:
    """A folder of steps that are done. One that was begun for something else is emptied; one without a purpose is for
    this time only, and nothing of it has to reach the disk."""

    def __init__(self, where: Path, purpose: str | None):
        self.where, self.lasts = where, purpose is not None
        self._held: dict[str, Mapping[str, np.ndarray]] = {}
        told = where / _DONE
        found = json.loads(told.read_text()) if told.is_file() else {}
        if purpose is None or found.get("purpose") != purpose:
            if where.exists():
                shutil.rmtree(where)
            where.mkdir(parents=True)
            found = {"purpose": purpose, "steps": []}
        self._told = found

    def has(self, step: str) -> bool:
        return step in self._told["steps"]

    def arrays(self, step: str) -> dict[str, np.ndarray]:
        """What a step that is done has kept, read now."""
        if step in self._held:
            return dict(self._held[step])
        packed = Packed.open(str(self.where / f"{step}.hold"))
        try:
            return {name: np.array(packed.arrays[name]) for name in packed.arrays}
        finally:
            packed.close()

    def finish(self, step: str, arrays: Mapping[str, np.ndarray]) -> None:
        self._told["steps"].append(step)
        if not self.lasts:
            self._held[step] = arrays
            return
        Packed(arrays, {}).save(str(self.where / f"{step}.hold"))
        new = self.where / "new.json"
        with new.open("w") as handle:
            json.dump(self._told, handle)
            handle.flush()
            os.fsync(handle.fileno())
        new.replace(self.where / _DONE)

    def buckets(self, name: str, count: int, record: np.dtype[Any]) -> Buckets:
        return Buckets(self.where, name, count, record, self.lasts)


class Buckets:
    """Records in some files, by bucket: written block by block, read back one bucket at a time."""

    def __init__(self, where: Path, name: str, count: int, record: np.dtype[Any], lasts: bool):
        self.paths = [where / f"{name}-{i}" for i in range(count)]
        self.record, self._lasts = record, lasts

    def begin(self) -> None:
        """Empty."""
        for path in self.paths:
            path.unlink(missing_ok=True)
            path.touch()

    def add(self, which: np.ndarray, records: np.ndarray) -> None:
        order = np.argsort(which, kind="stable")
        ends = np.searchsorted(which[order], np.arange(len(self.paths) + 1))
        for at in np.unique(which).tolist():
            with self.paths[at].open("ab") as handle:
                records[order[ends[at] : ends[at + 1]]].tofile(handle)

    def settle(self) -> None:
        """On disk for good, where it lasts."""
        for path in self.paths if self._lasts else ():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self.paths:
            yield np.fromfile(path, self.record)
