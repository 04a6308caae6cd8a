"""SPANN: heads in memory, lists of vectors on disk, and a few reads for a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from holdall.errors import BudgetError, CorruptArtefact
from holdall.method import Paper, knob
from holdall.vectors.base import VectorIndex
from holdall.vectors.bits import Bits
from holdall.vectors.heads import Heads
from holdall.vectors.lists import Lists, scan
from holdall.vectors.metrics import METRICS
from holdall.vectors.shelf import Given, Shelf, State
from holdall.vectors.spann_build import built, placed

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.source import Vectors

_NONE = np.zeros(1, np.uint8)
_LIST = 20  # bytes in memory of a list: where it begins, how long it is, its checksum


@dataclass(frozen=True, kw_only=True)
class SPANN(VectorIndex):
    """Searches more vectors than memory holds: heads in memory, lists of vectors on disk, a few reads for a query.

    Heads are some of the vectors, evenly spread; each vector is in the lists of up to `replicas` near heads, so that a
    query finds its neighbours in few lists, each of which is read at once. Distances are true: lists hold the vectors.
    Poor where disk is short (files are 3 to 7 times the vectors) and for conditions that hold for few vectors.

    Shapes:
        heads uint8 [H, D] in memory; lists of int32 row numbers and vectors [n, D] on disk, in their own type.
    Cost:
        in memory H (D + 28) bytes and 4 D sqrt(H); a query compares with some hundred heads and reads up to `probes`
        lists of at most `list_bytes`. Building holds all vectors in float32 and takes some ten CPU seconds for a
        hundred thousand.
    Knobs:
        metric: l2, cosine or ip; ratio of heads, at most (fewer where the budget says so); replicas, apart and slack
        of closure assignment; list_bytes, the most of a list; probes and prune, what a query reads; branches and leaf
        of the tree that heads are chosen from; seed.
    Differs from the paper:
        Heads are a byte a number in memory, for finding lists only, and stand in their lists as all vectors do. They
        are searched in groups (faiss), not in a graph. Balance is weighed by a moving average of sizes, and the
        weight of three that gives the most even clusters is kept. Where lists are pruned, the nearest head counts as
        no nearer than heads are to vectors on average: a query on a head would read one list. 16 lists are read at
        most by default, not 64; where a condition leaves too few, four times as many. Cosine is Euclidean distance of
        vectors of length one, and inner products that of vectors with one number more. Updates split and merge lists
        and fill those with new heads from their neighbours, as the later SPFresh does.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors.spann import SPANN
        >>> x = np.random.default_rng(0).normal(size=(2000, 12)).astype("float32")
        >>> with SPANN().build(x, "10%") as index:
        ...     hits = index.search(x[:50], k=1)
        >>> float((hits.ids[:, 0] == np.arange(50)).mean()) > 0.95
        True

    Paper: Chen et al., SPANN: Highly-efficient Billion-scale Approximate Nearest Neighbor Search.
    Test: tests/vectors/test_spann.py
    """

    name: ClassVar[str] = "spann"
    paper: ClassVar[Paper] = Paper(
        24,
        "SPANN: Highly-efficient Billion-scale Approximate Nearest Neighbor Search",
        "Chen, Zhao, Wang, Li, Liu, Li, Yang, Wang (NeurIPS 2021)",
        "https://arxiv.org/abs/2111.08566",
    )

    ratio: float = knob(0.16, "share of the vectors that are heads, at most", other=0.05)
    replicas: int = knob(8, "lists that a vector goes into, at most", other=1)
    apart: bool = knob(True, "no list whose head lies behind another one's (RNG rule)", other=False)
    slack: float = knob(10.0, "how much farther than the nearest a list's head may be, squared", other=0.1)
    list_bytes: int | None = knob(
        None, "most bytes of a list; None: 12 KiB of byte vectors, 48 KiB of others", unit="B", other=2000
    )
    probes: int = knob(16, "lists that a query reads, at most", paper=64, other=2)
    prune: float = knob(
        7.0, "how much farther than the nearest a read list's head may be, squared", other=0.05
    )
    branches: int = knob(32, "sets that a set is split into", other=4)
    leaf: int = knob(8, "vectors that are split no more", other=40)
    seed: int = knob(0, "of clustering", other=1)

    def made(self, change: Change, given: Given) -> None:
        wide = given.vectors.dim + (self.metric == "ip")
        heads = max(1, round(self.ratio * given.vectors.count))
        if given.limit is not None:
            beside = given.beside + 2 * Bits.bytes_of(
                given.vectors.count
            )  # which rows are there, once some are gone
            while heads > 1 and beside + _held(heads, wide) > given.limit:
                heads = heads * 9 // 10
            if (least := beside + _held(heads, wide)) > given.limit:
                raise BudgetError(given.limit, least, who=self.full_name(), why="one head, and the ids")
        given.commit(change, self, built(self, change, given, heads))

    def shelf(self, folder: Folder, limit: int | None) -> Postings:
        return Postings(self, folder, limit)


def _held(heads: int, dim: int) -> int:
    """Bytes of heads and of the table of their lists."""
    return Heads.bytes_of(heads, dim) + heads * _LIST


class Postings(Shelf):
    """Lists in a file; rows are numbered as they came, and `there` tells which are left."""

    def load(self) -> None:
        told = self.folder.meta
        numbers = [told.get(n) for n in ("reach", "spacing", "share", "stored", "clean")]
        if [type(n) for n in numbers] != [float, float, float, int, int]:
            raise CorruptArtefact(
                self.folder.url, "it does not say how long its vectors are, or how many it stores"
            )
        self.reach, self.spacing, stored = float(told["reach"]), float(told["spacing"]), int(told["stored"])
        self.stored, self.share = stored, float(told["share"])  # of heads, when it was built
        self.there: Bits | None = None
        if "there" in self.folder.arrays:
            packed = self.folder.array("there", np.uint8, 1)
            if not 0 <= stored <= 8 * len(packed) < stored + 8:
                raise CorruptArtefact(self.folder.url, "it does not say which of its rows are left")
            self.there = Bits.of(packed, stored)
        if (stored if self.there is None else self.there.count) != self.count:
            raise CorruptArtefact(self.folder.url, f"{stored} rows for {self.count} vectors")
        self.heads = Heads.of_sections(self.folder, self.dim + (self.recipe.metric == "ip"))
        self.lists = Lists.of_sections(self.folder, self.dim, self.heads.count)
        self._reads = self._compared = 0.0

    def held(self) -> int:
        return self.heads.nbytes + self.lists.nbytes + (0 if self.there is None else self.there.nbytes)

    def least(self, own: State) -> int:
        bits = Bits.bytes_of(own[1]["stored"]) if "there" in own[0] else 0
        return _held(*own[0]["heads"].shape) + bits

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        keys, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        bits = self._allowed(keep)
        x = placed(queries, self.recipe.metric, self.reach, query=True)
        for q in range(len(queries)):
            self._one(queries[q], x[q : q + 1], bits, keys[q], rows[q])
        if self.there is not None:
            rows = np.where(rows < 0, -1, self.there.rank(np.maximum(rows, 0)))
        return (np.sqrt(keys) if self.recipe.metric == "l2" else keys), rows

    def _allowed(self, keep: np.ndarray | None) -> np.ndarray | None:
        """A bit for each row that may be found; None: all."""
        if keep is None:
            return None if self.there is None else self.there.packed
        if self.there is None:
            return np.packbits(keep, bitorder="little")
        flags = self.there.flags
        flags[np.flatnonzero(flags)[~keep]] = False
        return np.packbits(flags, bitorder="little")

    def _one(
        self, query: np.ndarray, x: np.ndarray, bits: np.ndarray | None, keys: np.ndarray, rows: np.ndarray
    ) -> None:
        """Reads the lists of near heads; where these have too few, four times as many."""
        recipe, kind, most = self.recipe, METRICS.index(self.recipe.metric), self.recipe.probes
        while True:
            away, near = (found[0] for found in self.heads.nearest(x, most))
            fine = near >= 0
            if most == recipe.probes:
                fine &= away <= (1 + recipe.prune) * max(float(away[0]), self.spacing)
            owners, vectors = self.lists.read(self.folder, near[fine])
            self._reads, self._compared = self._reads + int(fine.sum()), self._compared + len(owners)
            if vectors.dtype == np.float16:
                vectors = vectors.astype(np.float32)
            scan(query, owners, vectors, kind, _NONE if bits is None else bits, bits is not None, keys, rows)
            if rows[-1] >= 0 or most >= self.heads.count:
                return
            most *= 4

    def traffic(self) -> Mapping[str, float]:
        return {**super().traffic(), "reads": self._reads, "compared": self._compared}

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        from holdall.vectors.spann_change import Renewal

        return Renewal(self, change).grown(vectors)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        from holdall.vectors.spann_change import Renewal

        return Renewal(self, change).shrunk(keep)
