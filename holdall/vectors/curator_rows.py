"""Vectors that are in memory, and the file of a folder that they are read from once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.vectors.folder import Change, Folder
from holdall.vectors.pages import Rows, page_for

_PAGE = 64 << 10
_FEW = 0.7  # of a file's rows that are alive; below that it is written again
_BLOCK = 1 << 20  # read at a time: what passes through is small beside what stays


class Resident:
    """vectors [N, D] in their own type; rows: where they stand, some of which may be gone (`gone`, a bit for each)."""

    def __init__(self, rows: Rows, pages: int, gone: np.ndarray | None, vectors: np.ndarray):
        self.rows, self.pages, self.gone, self.vectors = rows, pages, gone, vectors

    @classmethod
    def open(cls, folder: Folder, count: int, before: Resident | None) -> Resident:
        """before: what was in memory, which is not read again where its rows are still there."""
        rows = Rows.of_meta(folder.meta.get("rows"), folder)
        gone = folder.array("gone", np.uint8, 1) if "gone" in folder.arrays else None
        pages = folder.meta.get("pages")
        if type(pages) is not int or (gone is not None and len(gone) != -(-rows.count // 8)):
            raise CorruptArtefact(folder.url, "it does not say which of its vectors are there")
        there = _there(rows.count, gone)
        if int(there.sum()) != count:
            raise CorruptArtefact(folder.url, f"{int(there.sum())} rows for {count} vectors")
        if before is not None and before.rows.name == rows.name and _begins(rows, before.rows):
            old = before.rows.count
            kept = there[:old][_there(old, before.gone)]
            vectors = before.vectors if kept.all() else before.vectors[kept]
            first = old
        else:
            vectors, first = np.zeros((0, rows.dim), rows.dtype), 0
        if len(vectors) < count:
            held = np.empty((count, rows.dim), rows.dtype)
            held[: len(vectors)] = vectors
            at = len(vectors)
            for start, block in _from(rows, first).blocks(folder, _BLOCK):
                some = block[there[first + start : first + start + len(block)]]
                held[at : at + len(some)] = some
                at += len(some)
            vectors = held
        return cls(rows, pages, gone, vectors)

    @property
    def nbytes(self) -> int:
        return int(self.vectors.nbytes + (0 if self.gone is None else self.gone.nbytes))

    @staticmethod
    def written(change: Change, dim: int, dtype: Any, blocks: Iterator[np.ndarray]) -> dict[str, Any]:
        """What `open` needs to find of a new file, for the header."""
        rows = Rows("rows-1", dim, dtype, page_for(dim * dtype.itemsize, _PAGE))
        pages = rows.append(change, blocks, 0)
        return {"rows": rows.to_meta(), "pages": pages}

    def appended(
        self, change: Change, folder: Folder, blocks: Iterator[np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        rows = Rows.of_meta(self.rows.to_meta(), folder)
        pages = rows.append(change, blocks, self.pages)
        there = _there(rows.count, None)
        there[: self.rows.count] = _there(self.rows.count, self.gone)
        return _gone(there), {"rows": rows.to_meta(), "pages": pages}

    def thinned(self, change: Change, keep: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Without the vectors where `keep` is false; the file is written again where too little of it is left."""
        there = _there(self.rows.count, self.gone)
        there[np.flatnonzero(there)[~keep]] = False
        if there.mean() >= _FEW:
            return _gone(there), {"rows": self.rows.to_meta(), "pages": self.pages}
        rows = Rows(
            f"rows-{int(self.rows.name.rpartition('-')[2]) + 1}",
            self.rows.dim,
            self.rows.dtype,
            self.rows.size,
        )
        step = max(1, _BLOCK // self.rows.row_bytes)
        parts = range(0, len(self.vectors), step)
        pages = rows.append(change, (self.vectors[a : a + step][keep[a : a + step]] for a in parts), 0)
        change.drop(self.rows.name)
        return {}, {"rows": rows.to_meta(), "pages": pages}


def _there(count: int, gone: np.ndarray | None) -> np.ndarray:
    return np.ones(count, bool) if gone is None else np.unpackbits(gone, count=count) == 0


def _gone(there: np.ndarray) -> dict[str, np.ndarray]:
    return {} if there.all() else {"gone": np.packbits(~there)}


def _begins(rows: Rows, before: Rows) -> bool:
    return rows.stretches[: len(before.stretches)] == before.stretches


def _from(rows: Rows, first: int) -> Rows:
    """The stretches that begin at row `first` or behind."""
    some = [s for s, start in zip(rows.stretches, rows.starts, strict=False) if start >= first]
    return Rows(rows.name, rows.dim, rows.dtype, rows.size, some)
