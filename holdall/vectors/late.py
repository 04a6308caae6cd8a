"""What an index of documents holds: for each a set of centroids, and product codes of its vectors where it has
those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.optional import lazy
from holdall.parts.codebook import ProductQuantiser

kernels: Any = lazy("holdall.vectors.late_kernels", extra="vectors")

_ALL = np.zeros(0, bool)
_ENDS = np.zeros(0, np.uint32)
State = tuple[dict[str, np.ndarray], dict[str, Any]]


def distinct(codes: np.ndarray, offsets: np.ndarray, centroids: int) -> tuple[np.ndarray, np.ndarray]:
    """(the sorted different codes of each document, how many each has): for the best of them nothing else counts."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(owner * centroids + codes)
    return (pairs % centroids).astype(np.int16), np.bincount(pairs // centroids, minlength=len(offsets) - 1)


def bounds(sizes: np.ndarray, width: int) -> int:
    """The most bytes that sets of up to `sizes` codes of `width` bits can take."""
    most = np.minimum(sizes, 1 << width)
    return min(
        _listed(int(most.sum()), len(sizes), width, bool((sizes == 1).all())), _flags(len(sizes), width)
    )


def _listed(codes: int, count: int, width: int, even: bool) -> int:
    return -(-codes * width // 8) + 1 + (0 if even else 4 * count)


def _flags(count: int, width: int) -> int:
    return -(-count // 64) * 8 << width


@dataclass
class Ends:
    """Where each document's codes end: uint32 [N], or none where each has as many."""

    count: int
    each: int
    ends: np.ndarray

    @classmethod
    def of(cls, sizes: np.ndarray) -> Ends:
        first = int(sizes[0]) if len(sizes) else 1
        if (sizes == first).all():
            return cls(len(sizes), first, _ENDS)
        return cls(len(sizes), 0, np.cumsum(sizes).astype(np.uint32))

    @classmethod
    def read(cls, folder: Any, name: str, count: int) -> Ends:
        """CorruptArtefact for what is no rising list."""
        each = folder.meta.get(name)
        if type(each) is not int or not 0 <= each < 1 << 31:
            raise CorruptArtefact(folder.url, f"it does not say how many {name} a document has")
        if each:
            return cls(count, each, _ENDS)
        ends = folder.array(name, np.uint32, 1)
        if len(ends) != count or (count and int(np.diff(ends.astype(np.int64), prepend=0).min()) < 1):
            raise CorruptArtefact(folder.url, f"its {name} contradict each other")
        return cls(count, 0, ends)

    @property
    def sizes(self) -> np.ndarray:
        return np.full(self.count, self.each) if self.each else np.diff(self.ends.astype(np.int64), prepend=0)

    @property
    def total(self) -> int:
        return self.count * self.each if self.each else int(self.ends[-1]) if self.count else 0

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first, behind the last) code of these documents."""
        if self.each:
            return rows * self.each, (rows + 1) * self.each
        ends = self.ends.astype(np.int64)
        return np.where(rows > 0, ends[np.maximum(rows - 1, 0)], 0), ends[rows]

    def stored(self, name: str) -> State:
        return ({} if self.each else {name: self.ends}), {name: self.each}


class Sets:
    """A set of centroids for each document: a list of codes of `width` bits, or a bit for each centroid, which is
    smaller where a document has more than an eighth of them by eight bits; scores are the same."""

    def __init__(self, width: int, ends: Ends, codes: np.ndarray, flags: np.ndarray):
        self.width, self.ends, self.codes, self.flags = width, ends, codes, flags

    @classmethod
    def of(cls, codes: np.ndarray, sizes: np.ndarray, width: int) -> Sets:
        """codes [sum of sizes], sorted and different within each document."""
        ends = Ends.of(sizes)
        if _flags(len(sizes), width) < _listed(len(codes), len(sizes), width, bool(ends.each)):
            flags = np.zeros((-(-len(sizes) // 64), 1 << width), np.uint64)
            owner = np.repeat(np.arange(len(sizes)), sizes)
            np.bitwise_or.at(flags, (owner // 64, codes), np.uint64(1) << (owner % 64).astype(np.uint64))
            return cls(width, Ends(len(sizes), 1, _ENDS), np.zeros(0, np.uint8), flags)
        packed = np.zeros(-(-len(codes) * width // 8) + 1, np.uint8)
        kernels.pack(codes, width, packed)
        return cls(width, ends, packed, np.zeros((0, 1 << width), np.uint64))

    @classmethod
    def read(cls, folder: Any, count: int, width: int) -> Sets:
        if "flags" in folder.arrays:
            flags = folder.array("flags", np.uint64, 2)
            if flags.shape != (-(-count // 64), 1 << width):
                raise CorruptArtefact(folder.url, "its sets contradict its documents")
            return cls(width, Ends(count, 1, _ENDS), np.zeros(0, np.uint8), flags)
        ends, codes = Ends.read(folder, "ends", count), folder.array("codes", np.uint8, 1)
        if len(codes) != -(-ends.total * width // 8) + 1:
            raise CorruptArtefact(folder.url, "its codes contradict its documents")
        return cls(width, ends, codes, np.zeros((0, 1 << width), np.uint64))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.flags.nbytes + self.ends.ends.nbytes

    def stored(self) -> State:
        if len(self.flags):
            return {"flags": self.flags}, {}
        arrays, told = self.ends.stored("ends")
        return {"codes": self.codes, **arrays}, told

    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        """(codes, sizes), as `of` takes them."""
        if not len(self.flags):
            codes = np.empty(self.ends.total, np.int16)
            kernels.unpack(self.codes, self.width, codes)
            return codes, self.ends.sizes
        found = [np.zeros((0, 1 << self.width), bool)]
        for block in self.flags:
            bits = block[None] >> np.arange(64, dtype=np.uint64)[:, None]
            found.append((bits & np.uint64(1)).astype(bool))
        held = np.concatenate(found)[: self.ends.count]
        return np.nonzero(held)[1].astype(np.int16), held.sum(1)

    def scores(self, table: np.ndarray, keep: np.ndarray | None, probes: int | None = None) -> np.ndarray:
        """float32 [N]: the sum, over rows of the table [Q, K], of the best of a document's centroids; -inf where
        `keep` is false. probes: only so many centroids of each row are looked for, and others count as the last of
        them."""
        count, most = self.ends.count, min(probes or table.shape[1], table.shape[1])
        found = np.zeros(-(-count // 64) * 64, np.float32)
        if len(self.flags):
            order = np.argsort(-table, axis=1)[:, :most]  # among equals any order gives the same sums
            worth = np.take_along_axis(table, order, 1)
            kernels.walk(self.flags, _words(keep, count), order, worth, worth[:, -1].copy(), found)
        else:
            if most < table.shape[1]:
                table = np.maximum(table, -np.partition(-table, most - 1, axis=1)[:, most - 1 : most])
            turned = np.ascontiguousarray(table.T)
            some = _ALL if keep is None else keep
            kernels.scan(self.codes, self.width, self.ends.ends, self.ends.each, some, turned, found[:count])
        return found[:count] if keep is None else np.where(keep, found[:count], -np.inf).astype(np.float32)

    def alike(self, asked: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
        """float32 [N]: as `scores`, of codes [Q] and of bits that codes have in common."""
        if len(self.flags):
            differ = np.bitwise_count(asked[:, None] ^ np.arange(1 << self.width, dtype=asked.dtype))
            return self.scores((self.width - differ).astype(np.float32), keep)
        found, some = np.zeros(self.ends.count, np.float32), _ALL if keep is None else keep
        kernels.bit_scan(
            self.codes, self.width, self.ends.ends, self.ends.each, some, asked.astype(np.int16), found
        )  # fmt: skip
        return found if keep is None else np.where(keep, found, -np.inf).astype(np.float32)


def _words(keep: np.ndarray | None, count: int) -> np.ndarray:
    """uint64 [B]: a bit for each document that is looked at."""
    flags = np.zeros(-(-count // 64) * 64, bool)
    flags[:count] = True if keep is None else keep
    return np.packbits(flags, bitorder="little").view(np.uint64)


class Fine:
    """Product codes uint8 [R, m] of the vectors of documents."""

    def __init__(self, quantiser: ProductQuantiser, ends: Ends, codes: np.ndarray):
        self.quantiser, self.ends, self.codes = quantiser, ends, codes

    @classmethod
    def read(cls, folder: Any, count: int, dim: int) -> Fine:
        quantiser = ProductQuantiser.of(folder.array("tables", np.float32, 3), dim)
        ends, codes = Ends.read(folder, "fine_ends", count), folder.array("fine", np.uint8, 2)
        if quantiser.tables.shape[1] != 256 or codes.shape != (ends.total, quantiser.parts):
            raise CorruptArtefact(folder.url, "its product codes contradict its documents")
        return cls(quantiser, ends, codes)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.quantiser.tables.nbytes + self.ends.ends.nbytes

    def stored(self) -> State:
        arrays, told = self.ends.stored("fine_ends")
        return {"fine": self.codes, "tables": self.quantiser.tables, **arrays}, told

    def scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32 [C]: the sum, over vectors [Q, D], of the best product with those of documents `rows` as they are
        coded."""
        m, _, part = self.quantiser.tables.shape
        cut = query.reshape(len(query), m, part)
        tables = np.ascontiguousarray(np.einsum("mkd,qmd->mkq", self.quantiser.tables, cut))
        found = np.empty(len(rows), np.float32)
        first, last = self.ends.spans(rows)
        kernels.fine(self.codes, first, last, tables, found)
        return found
