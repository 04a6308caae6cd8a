"""Vectors on disk once each, in one order: any of them is read by itself, and is what was written or is named.

An entry is the xxh32 of a vector, with its place for a seed, and the vector. Entries lie so that none crosses a page of
4 KiB where that wastes little; stretches, one for each change that added some, begin on a page of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from holdall.errors import CorruptArtefact
from holdall.vectors.folder import Change, Folder

PAGE = 4096
_SUM = 4
_WASTED = 0.03  # of a page, up to which entries do not cross pages
_FILLED = 256 << 10  # bytes that are written at a time
_TOGETHER = 4096  # entries that are read at a time, where all are


@dataclass
class Entries:
    """Of `dim` numbers in the file `name`. stretches: (vectors, byte where they begin) of each."""

    name: str
    dim: int
    dtype: np.dtype[Any]
    stretches: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.each = _SUM + self.dim * self.dtype.itemsize
        fitting = PAGE // self.each
        whole = fitting > 0 and PAGE - fitting * self.each <= _WASTED * PAGE
        self.group, self.span = (fitting, PAGE) if whole else (1, self.each)  # entries and bytes of a group
        self._settle()

    def _settle(self) -> None:
        self.starts = np.cumsum([0, *(n for n, _ in self.stretches)])
        self.firsts = np.array([f for _, f in self.stretches], np.int64)

    @property
    def count(self) -> int:
        return int(self.starts[-1])

    def bytes_of(self, count: int) -> int:
        return -(-count // self.group) * self.span

    def append(self, change: Change, parts: Iterable[np.ndarray]) -> None:
        """Vectors [n, D] of these parts, one behind the other, as one stretch."""
        end = max((f + self.bytes_of(n) for n, f in self.stretches), default=0)
        first, place, written, out = -(-end // PAGE) * PAGE, self.count, 0, bytearray(-end % PAGE)
        for vectors in parts:
            raw = np.ascontiguousarray(vectors.astype(self.dtype, copy=False)).view(np.uint8)
            for row in raw.reshape(len(vectors), -1):
                held = row.tobytes()
                out += xxhash.xxh32_digest(held, seed=place & 0xFFFFFFFF) + held
                place, written = place + 1, written + self.each
                if (place - self.count) % self.group == 0:
                    out += bytes(self.span - self.group * self.each)
                    written += self.span - self.group * self.each
            if len(out) >= _FILLED:
                change.append(self.name, bytes(out))
                out.clear()
        if count := place - self.count:
            change.append(self.name, bytes(out) + bytes(self.bytes_of(count) - written))
            self.stretches.append((count, first))
            self._settle()

    def where(self, places: np.ndarray) -> np.ndarray:
        """The byte where each entry begins."""
        at = np.searchsorted(self.starts, places, side="right") - 1
        group, inside = np.divmod(places - self.starts[at], self.group)
        found: np.ndarray = self.firsts[at] + group * self.span + inside * self.each
        return found

    def read(self, folder: Folder, places: np.ndarray) -> tuple[np.ndarray, int]:
        """(vectors [n, D] of these places, rising, none twice; reads): one read for those in the same pages."""
        if not len(places):
            return np.zeros((0, self.dim), self.dtype), 0
        starts = self.where(places)
        cuts = np.flatnonzero(starts[1:] // PAGE > (starts[:-1] + self.each - 1) // PAGE + 1) + 1
        runs = np.concatenate([[0], cuts, [len(places)]]).tolist()
        bounds = [(int(starts[a]), int(starts[b - 1]) + self.each) for a, b in pairwise(runs)]
        for first, last in bounds:
            folder.soon(self.name, first, last)
        out = np.empty((len(places), self.each - _SUM), np.uint8)
        for (first, last), a, b in zip(bounds, runs[:-1], runs[1:], strict=True):
            raw = memoryview(folder.read(self.name, first, last))
            for i in range(a, b):
                at = int(starts[i]) - first
                held = raw[at + _SUM : at + self.each]
                if xxhash.xxh32_digest(held, seed=int(places[i]) & 0xFFFFFFFF) != raw[at : at + _SUM]:
                    raise CorruptArtefact(
                        f"{folder.url}/{self.name}",
                        f"the vector at byte {starts[i]} does not match its checksum",
                    )
                out[i] = np.frombuffer(held, np.uint8)
        return out.view(self.dtype), len(bounds)

    def all(self, folder: Folder) -> np.ndarray:
        """[N, D]."""
        steps = range(0, self.count, _TOGETHER)
        parts = [self.read(folder, np.arange(at, min(at + _TOGETHER, self.count)))[0] for at in steps]
        return np.concatenate(parts)

    def to_meta(self) -> dict[str, Any]:
        told = {"name": self.name, "dtype": self.dtype.name}
        return told | {"stretches": [list(s) for s in self.stretches]}

    @classmethod
    def of_meta(cls, told: Any, dim: int, folder: Folder) -> Entries:
        """CorruptArtefact for what `to_meta` cannot have written, or a file that is too short for it."""
        try:
            dtype = np.dtype(str(told["dtype"]))
            made = cls(str(told["name"]), dim, dtype, [(int(n), int(f)) for n, f in told["stretches"]])
            wrong = dtype.name not in ("float32", "float16", "uint8", "int8")
            wrong |= any(n < 1 or f < 0 or f % PAGE for n, f in made.stretches)
            end = max((f + made.bytes_of(n) for n, f in made.stretches), default=0)
            wrong |= end > folder.size(made.name)
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as fault:
            raise CorruptArtefact(
                folder.url, f"what it says of its vectors contradicts itself ({fault})"
            ) from fault
        if wrong:
            raise CorruptArtefact(folder.url, "what it says of its vectors contradicts itself")
        return made
