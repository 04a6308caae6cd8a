"""Posting lists on disk: each one stretch of a file, read at once, with its checksum in memory.

A list is the int32 row numbers of its vectors, then the vectors in their own type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xxhash
from numba import njit

from holdall.errors import CorruptArtefact
from holdall.vectors.folder import Change, Folder

_ROW = 4  # bytes of a row's number


@dataclass
class Lists:
    """starts int64 [L], counts int32 [L], sums uint64 [L] of lists in the file `name`; vectors of dim numbers."""

    name: str
    dim: int
    dtype: np.dtype[np.generic]
    starts: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    @property
    def each(self) -> int:
        """Bytes of an entry."""
        return _ROW + self.dim * self.dtype.itemsize

    @property
    def count(self) -> int:
        return len(self.starts)

    @property
    def nbytes(self) -> int:
        return int(self.starts.nbytes + self.counts.nbytes + self.sums.nbytes)

    @classmethod
    def write(
        cls,
        change: Change,
        name: str,
        dim: int,
        dtype: np.dtype[np.generic],
        lists: Iterable[tuple[np.ndarray, np.ndarray]],
    ) -> Lists:
        """lists: (rows [n], vectors [n, D]) of each, in order."""
        starts, counts, sums = [], [], []
        for rows, vectors in lists:
            own = np.ascontiguousarray(vectors.astype(dtype, copy=False)).view(np.uint8).reshape(-1)
            raw = np.concatenate([rows.astype("<i4").view(np.uint8), own])
            starts.append(change.append(name, raw))
            counts.append(len(rows))
            sums.append(xxhash.xxh3_64_intdigest(raw.data, seed=starts[-1]))
        made = np.array(starts, np.int64), np.array(counts, np.int32), np.array(sums, np.uint64)
        return cls(name, dim, dtype, *made)

    def read(self, folder: Folder, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows int32 [n], vectors [n, D]) of these lists, one behind the other; each list is one read."""
        rows, vectors, order = [], [], np.sort(which)  # in the order of the file
        for at in order:
            start = int(self.starts[at])
            folder.soon(self.name, start, start + int(self.counts[at]) * self.each)
        for at in order:
            start, count = int(self.starts[at]), int(self.counts[at])
            raw = folder.read(self.name, start, start + count * self.each)
            if xxhash.xxh3_64_intdigest(raw, seed=start) != int(self.sums[at]):
                raise CorruptArtefact(
                    f"{folder.url}/{self.name}", f"the list at byte {start} does not match its checksum"
                )
            rows.append(np.frombuffer(raw, "<i4", count))
            vectors.append(
                np.frombuffer(raw, self.dtype, count * self.dim, _ROW * count).reshape(count, self.dim)
            )
        if not rows:
            return np.zeros(0, np.int32), np.zeros((0, self.dim), self.dtype)
        return np.concatenate(rows), np.concatenate(vectors)

    def sections(self) -> dict[str, np.ndarray]:
        return {"lists/starts": self.starts, "lists/counts": self.counts, "lists/sums": self.sums}

    def to_meta(self) -> dict[str, str]:
        return {"name": self.name, "dtype": self.dtype.name}

    @classmethod
    def of_sections(cls, folder: Folder, dim: int, count: int) -> Lists:
        """`count` lists; CorruptArtefact for what `sections` and `to_meta` cannot have written."""
        told = folder.meta.get("lists")
        kind = told.get("dtype") if isinstance(told, dict) else None
        if not isinstance(told, dict) or kind not in ("float32", "float16", "uint8", "int8"):
            raise CorruptArtefact(folder.url, "it does not say what its lists hold")
        arrays = (folder.array("lists/starts", np.int64, 1), folder.array("lists/counts", np.int32, 1),
                  folder.array("lists/sums", np.uint64, 1))  # fmt: skip
        made = cls(str(told["name"]), dim, np.dtype(kind), *arrays)
        fits = all(len(a) == count for a in arrays) and count > 0
        fits = fits and made.starts.min() >= 0 and made.counts.min() >= 0
        if not fits or int((made.starts + made.counts * made.each).max()) > folder.size(made.name):
            raise CorruptArtefact(folder.url, "its lists contradict each other")
        return made


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def scan(query, rows, vectors, metric, keep, masked, keys, found):  # type: ignore[no-untyped-def]
    """The k nearest of vectors [n, D] by key, rising, each row once, into keys [k] and found [k] (-1 where none).

    Keys are squared distances (metric 0), 1 - cosine (1; the query has length one) or minus the inner product (2).
    masked: only rows whose bit in `keep` is set.
    """
    keys[:], found[:] = np.inf, -1
    k, dim = len(keys), len(query)
    for i in range(len(rows)):
        row = rows[i]
        if masked and not (keep[row >> 3] >> (row & 7)) & 1:
            continue
        total, size = np.float32(0), np.float32(0)
        if metric == 0:
            for d in range(dim):
                total += (query[d] - np.float32(vectors[i, d])) ** 2
        else:
            for d in range(dim):
                total -= query[d] * np.float32(vectors[i, d])
                size += np.float32(vectors[i, d]) ** 2
            if metric == 1:
                total = np.float32(1) + (total / np.sqrt(size) if size > 0 else np.float32(0))
        if total > keys[k - 1] or (total == keys[k - 1] and found[k - 1] >= 0 and row >= found[k - 1]):
            continue
        at, there = k - 1, False
        while at > 0 and (
            total < keys[at - 1] or (total == keys[at - 1] and (found[at - 1] < 0 or row <= found[at - 1]))
        ):
            at -= 1
        for j in range(at, k):  # a replica stands at the same distance
            if keys[j] > total:
                break
            there = there or found[j] == row
        if there:
            continue
        for j in range(k - 1, at, -1):
            keys[j], found[j] = keys[j - 1], found[j - 1]
        keys[at], found[at] = total, row
