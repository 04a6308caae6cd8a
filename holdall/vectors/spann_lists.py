"""SPANN's own layout: lists of whole vectors, each read at once; a vector is in several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BudgetError, CorruptArtefact
from holdall.vectors.bits import Bits
from holdall.vectors.heads import Heads
from holdall.vectors.lists import Lists, scan
from holdall.vectors.metrics import ready
from holdall.vectors.numbered import NO_BITS, Numbered
from holdall.vectors.scratch import Scratch
from holdall.vectors.spann_build import Blocks, Closure, Spread, Survey, blocks_of, headed, placed

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.given import Given, State
    from holdall.vectors.source import Vectors
    from holdall.vectors.spann import SPANN

_LIST = 20  # bytes in memory of a list: where it begins, how long it is, its checksum
PROBES = 16
_QUERIES = 256  # whose heads are searched at once
_TOGETHER = 4096  # vectors that are read at a time, where all are
_READ, _LOOK = 20.0, 0.02  # microseconds, about: of a read, and of a vector that is compared


def bytes_of(heads: int, dim: int) -> int:
    """In memory: heads and the table of their lists."""
    return Heads.bytes_of(heads, dim) + heads * _LIST


def cap_of(recipe: SPANN, dim: int, dtype: np.dtype[Any]) -> int:
    """Vectors of the longest list."""
    most = recipe.list_bytes or (12 << 10 if dtype.itemsize == 1 else 48 << 10)
    return max(2, most // (4 + dim * dtype.itemsize))


def fitting(recipe: SPANN, given: Given) -> int:
    """As many heads as memory allows; BudgetError where it is too little for one."""
    count, wide = given.vectors.count, given.vectors.dim + (recipe.metric == "ip")
    heads = max(1, round(recipe.ratio * count))
    if given.limit is None:
        return heads
    beside = given.beside + Bits.bytes_of(count)  # which rows are there, once some are gone
    while heads > 1 and beside + bytes_of(heads, wide) > given.limit:
        heads = heads * 9 // 10
    if (least := beside + bytes_of(heads, wide)) > given.limit:
        raise BudgetError(given.limit, least, who=recipe.full_name(), why="one head, and the ids")
    return heads


def built(recipe: SPANN, change: Change, given: Given) -> State:
    vectors, heads = given.vectors, fitting(recipe, given)
    survey = Survey.of(recipe, vectors)
    work, reach, dtype = Scratch(change.scratch, survey.purpose(recipe, given)), survey.reach, survey.dtype
    if not work.has("heads"):
        x = headed(recipe, work, vectors, heads, reach)
        work.finish("heads", Heads.sections(x, dtype == np.uint8 and recipe.metric == "l2", recipe.seed))
    made = work.arrays("heads")
    blocks = ((np.arange(at, at + len(raw)), raw) for at, raw in blocks_of(recipe, vectors))
    lists, spacing = spread(
        recipe, change, work, "lists-1", made, blocks, vectors.count, reach, vectors.dim, dtype
    )
    told = {"lists": lists.to_meta(), "reach": reach, "stored": vectors.count, "spacing": spacing}
    return {**made, **lists.sections()}, told | {"share": len(made["heads"]) / vectors.count}


def spread(
    recipe: SPANN, change: Change, work: Scratch, name: str, made: dict[str, np.ndarray], blocks: Blocks,
    count: int, reach: float, dim: int, dtype: np.dtype[Any],
) -> tuple[Lists, float]:  # fmt: skip
    """Closure of all vectors over these heads, into a new file: (lists, mean squared distance to the nearest head)."""
    job = Closure(recipe, made, reach)
    found = Spread.of(recipe, work, blocks, count, Heads.decoded(made), job, reach, dim, dtype)
    parts = ((part["row"], part["raw"]) for part in found.lists(cap_of(recipe, dim, dtype)))
    return Lists.write(change, name, dim, dtype, parts), found.spacing


class Postings(Numbered):
    """Lists in a file; heads are searched in memory."""

    def load(self) -> None:
        super().load()
        spacing, share = self.folder.meta.get("spacing"), self.folder.meta.get("share")
        if type(spacing) is not float or type(share) is not float:
            raise CorruptArtefact(self.folder.url, "it does not say how far apart its heads are")
        self.spacing, self.share = spacing, share  # share of heads, when it was built
        self.heads = Heads.of_sections(self.folder, self.dim + (self.recipe.metric == "ip"))
        self.lists = Lists.of_sections(self.folder, self.dim, self.heads.count)

    def held(self) -> int:
        return self.heads.nbytes + self.lists.nbytes + (0 if self.there is None else self.there.nbytes)

    def least(self, own: State) -> int:
        bits = Bits.bytes_of(own[1]["stored"]) if "there" in own[0] else 0
        return bytes_of(*own[0]["heads"].shape) + bits

    def settings(self) -> list[tuple[dict[str, Any], float]]:
        each = float(self.lists.counts.mean()) if self.lists.count else 0.0
        tried = [p for p in (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256) if p <= 2 * self.heads.count]
        return [({"probes": p}, p * (_READ + each * _LOOK)) for p in tried]

    def searched(
        self, queries: np.ndarray, bits: np.ndarray | None, keys: np.ndarray, rows: np.ndarray
    ) -> None:
        self._found: dict[int, np.ndarray] = {}
        for first in range(0, len(queries), _QUERIES):
            x = placed(queries[first : first + _QUERIES], self.recipe.metric, self.reach, query=True)
            away, near = self.heads.nearest(x, self.recipe.probes or PROBES)
            for i in range(len(x)):
                fine = near[i] >= 0
                fine &= away[i] <= (1 + self.recipe.prune) * max(float(away[i, 0]), self.spacing)
                q = first + i
                self._one(queries[q], x[i : i + 1], near[i][fine], bits, keys[q], rows[q])

    def _one(
        self, query: np.ndarray, x: np.ndarray, near: np.ndarray, bits: np.ndarray | None, keys: np.ndarray,
        rows: np.ndarray,
    ) -> None:  # fmt: skip
        """Reads these lists; where they have too few, those of four times as many heads."""
        most = self.recipe.probes or PROBES
        while True:
            owners, vectors = self.lists.read(self.folder, near)
            self._reads, self._compared = self._reads + len(near), self._compared + len(owners)
            if vectors.dtype == np.float16:
                vectors = vectors.astype(np.float32)
            scan(
                query,
                owners,
                vectors,
                self.kind,
                NO_BITS if bits is None else bits,
                bits is not None,
                keys,
                rows,
            )
            if rows[-1] >= 0 or most >= self.heads.count:
                break
            most *= 4
            near = self.heads.nearest(x, most)[1][0]
            near = near[near >= 0]
        if self.remembers:
            places = np.searchsorted(
                owners, rows[rows >= 0], sorter=(order := np.argsort(owners, kind="stable"))
            )
            self._found |= dict(zip(rows[rows >= 0].tolist(), vectors[order[places]], strict=True))

    def alive(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        seen = np.zeros(self.stored, bool)
        most = max(1, _TOGETHER // max(1, int(self.lists.counts.mean())))  # lists at a time
        for at in range(0, self.lists.count, most):
            rows, vectors = self.lists.read(self.folder, np.arange(at, min(at + most, self.lists.count)))
            rows, first = np.unique(rows.astype(np.int64), return_index=True)
            left = ~seen[rows] & (True if self.there is None else self.there.has(rows))
            seen[rows] = True
            yield rows[left], vectors[first[left]]

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        stored = np.asarray(rows) if self.there is None else self.there.select(np.asarray(rows))
        found = [self._found[row] for row in stored.tolist()]
        return ready(np.array(found).reshape(len(found), self.dim), self.recipe.metric)

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        from holdall.vectors.spann_change import Renewal

        return Renewal(self, change, room).grown(vectors)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        from holdall.vectors.spann_change import Renewal

        return Renewal(self, change).shrunk(keep)
