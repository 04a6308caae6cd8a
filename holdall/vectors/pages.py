"""Rows of numbers on disk, in pages that carry their own checksum: what is read is what was written, or is named.

A page of `size` bytes is the xxh3-64 of its number and content, then rows, then zeros. Rows lie in stretches, one for
each change that added some; a stretch begins on a page of its own, so that nothing that was committed is ever touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from holdall.errors import CorruptArtefact
from holdall.vectors.folder import Change, Folder
from holdall.vectors.metrics import exactly

SUM = 8
SECTOR = 4096


def page_for(row_bytes: int, wanted: int = SECTOR) -> int:
    """The least multiple of 4 KiB, from `wanted` on, that holds a row."""
    return -(-max(wanted, row_bytes + SUM) // SECTOR) * SECTOR


@dataclass
class Rows:
    """Rows [N, D] of one type in a file of a folder. stretches: (rows, first page) of each."""

    name: str
    dim: int
    dtype: np.dtype[Any]
    size: int
    stretches: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.each = (self.size - SUM) // (self.dim * self.dtype.itemsize)  # rows of a page
        self._settle()

    def _settle(self) -> None:
        counts = np.array([n for n, _ in self.stretches], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.firsts = np.array([p for _, p in self.stretches], np.int64)

    @property
    def count(self) -> int:
        return int(self.starts[-1])

    @property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize

    def append(self, change: Change, blocks: Iterator[np.ndarray], page: int) -> int:
        """Write rows from page number `page` on as one stretch; the page after them."""
        first, rows, rest = page, 0, np.zeros((0, self.dim), self.dtype)
        for block in blocks:
            rows += len(block)
            block = np.concatenate([rest, exactly(block, self.dtype)])
            whole = len(block) // self.each * self.each
            page = self._write(change, block[:whole], page)
            rest = block[whole:].copy()
        page = self._write(change, rest, page)
        if rows:
            self.stretches.append((rows, first))
            self._settle()
        return page

    def _write(self, change: Change, rows: np.ndarray, page: int) -> int:
        pages = -(-len(rows) // self.each)
        out = np.zeros((pages, self.size), np.uint8)
        for i in range(pages):
            part = np.ascontiguousarray(rows[i * self.each : (i + 1) * self.each]).view(np.uint8).reshape(-1)
            out[i, SUM : SUM + part.size] = part
            out[i, :SUM] = np.frombuffer(_sum(page + i, out[i, SUM:]), np.uint8)
        change.append(self.name, out)
        return page + pages

    def pages(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(page, place in it) of each row."""
        at = np.searchsorted(self.starts, rows, side="right") - 1
        page, place = np.divmod(rows - self.starts[at], self.each)
        return self.firsts[at] + page, place

    def take(self, folder: Folder, rows: np.ndarray) -> np.ndarray:
        """[len(rows), D], any rows in any order; pages that lie side by side come in one read."""
        page, place = self.pages(np.asarray(rows, np.int64))
        different, which = np.unique(page, return_inverse=True)
        found = np.empty((len(different), self.each, self.dim), self.dtype)
        cuts = np.flatnonzero(np.diff(different) != 1) + 1
        for run in np.split(np.arange(len(different)), cuts):
            if len(run):
                found[run] = self.read(folder, int(different[run[0]]), len(run))
        return found[which.reshape(-1), place]

    def read(self, folder: Folder, page: int, count: int) -> np.ndarray:
        """[count, rows of a page, D]; what lies behind a stretch's last row is zeros."""
        raw = np.frombuffer(folder.read(self.name, page * self.size, (page + count) * self.size), np.uint8)
        cut = raw.reshape(count, self.size)
        for i in range(count):
            if cut[i, :SUM].tobytes() != _sum(page + i, cut[i, SUM:]):
                raise CorruptArtefact(
                    f"{folder.url}/{self.name}", f"page {page + i} does not match its checksum"
                )
        rows = np.ascontiguousarray(cut[:, SUM : SUM + self.each * self.row_bytes])
        return rows.view(self.dtype).reshape(count, self.each, self.dim)

    def blocks(self, folder: Folder, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) in order, at most `most` bytes at a time, one page at least."""
        step = max(1, most // self.size)
        for start, (rows, first) in zip(self.starts, self.stretches, strict=False):
            pages = -(-rows // self.each)
            for at in range(0, pages, step):
                some = min(step, pages - at)
                found = self.read(folder, first + at, some).reshape(-1, self.dim)
                yield int(start) + at * self.each, found[: rows - at * self.each]

    def to_meta(self) -> dict[str, Any]:
        return {
            "name": self.name, "dim": self.dim, "dtype": self.dtype.name, "size": self.size,
            "stretches": [list(s) for s in self.stretches],
        }  # fmt: skip

    @classmethod
    def of_meta(cls, told: Any, folder: Folder) -> Rows:
        """CorruptArtefact for what `to_meta` cannot have written, or a file that is too short for it."""
        try:
            made = cls(
                str(told["name"]), int(told["dim"]), np.dtype(str(told["dtype"])), int(told["size"]),
                [(int(n), int(p)) for n, p in told["stretches"]],
            )  # fmt: skip
            wrong = (
                made.dim < 1
                or made.dtype.name not in ("float32", "float16", "uint8", "int8")
                or made.each < 1
            )
            ends = [p + -(-n // made.each) for n, p in made.stretches]
            wrong |= any(n < 1 or p < 0 for n, p in made.stretches)
            wrong |= max(ends, default=0) * made.size > folder.size(made.name)
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as fault:
            raise CorruptArtefact(
                folder.url, f"what it says of its rows contradicts itself ({fault})"
            ) from fault
        if wrong:
            raise CorruptArtefact(folder.url, "what it says of its rows contradicts itself")
        return made


def _sum(page: int, content: np.ndarray) -> bytes:
    return xxhash.xxh3_64_digest(content.data, seed=page)
