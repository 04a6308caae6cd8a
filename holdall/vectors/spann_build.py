"""What SPANN's two layouts build with: a look at the vectors, heads from balanced trees, closure, and lists in order.

No step holds more than about `build_bytes` of vectors: sets of near vectors go through files, and each step that is
done is kept, so that a build that was killed goes on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from holdall.parts.codebook import assigned
from holdall.parts.workers import in_order
from holdall.vectors.closure import closure
from holdall.vectors.clustering import balanced, tree
from holdall.vectors.heads import Heads
from holdall.vectors.metrics import holds, ready
from holdall.vectors.scratch import Scratch
from holdall.vectors.source import Vectors

if TYPE_CHECKING:
    from holdall.vectors.given import Given
    from holdall.vectors.spann import SPANN

CANDIDATES = 64  # heads that a vector may choose its lists from
_BLOCK = 4096
_SAMPLE = 256  # vectors that a set's middle is learned from
_COPIES = 6  # lists that a vector is in, at a guess
Blocks = Iterable[tuple[np.ndarray, np.ndarray]]  # (rows [n], vectors [n, D] as they were given)
Owners = Callable[
    [tuple[np.ndarray, np.ndarray]], np.ndarray
]  # of a block: lists int32 [n, R], -1 behind the last


@dataclass(frozen=True)
class Survey:
    """dtype: the smallest type that holds all numbers exactly. reach: length of the longest vector. sum: of all."""

    dtype: np.dtype[Any]
    reach: float
    sum: str

    @classmethod
    def of(cls, recipe: SPANN, vectors: Vectors) -> Survey:
        fitting = [np.dtype(n) for n in ("uint8", "int8", "float16")]
        fitting = [t for t in fitting if t.itemsize < vectors.dtype.itemsize]
        reach, total = 0.0, xxhash.xxh3_128()
        for _, raw in blocks_of(recipe, vectors):
            total.update(np.ascontiguousarray(raw).view(np.uint8).data)
            fitting = [t for t in fitting if holds(raw, t)]
            reach = max(reach, float(np.square(raw.astype(np.float64)).sum(1).max()))
        return cls(fitting[0] if fitting else vectors.dtype, reach**0.5, total.hexdigest())

    def purpose(self, recipe: SPANN, given: Given) -> str:
        """Names a build: one that was killed goes on only with the same method, vectors and memory."""
        vectors = given.vectors
        told = [recipe.to_dict(), vectors.count, vectors.dim, vectors.dtype.name, given.limit, self.sum]
        return json.dumps(told, sort_keys=True)


def wide(dtype: np.dtype[Any], vectors: Vectors) -> np.dtype[Any]:
    """A type that holds what there is, of `dtype`, and what comes."""
    wider = [t for t in (np.dtype("float16"), np.dtype("float32")) if t.itemsize > dtype.itemsize]
    fitting = [dtype, *wider]
    for _, raw in vectors.blocks():
        fitting = [t for t in fitting if holds(raw, t)]
    return fitting[0] if fitting else np.dtype("float32")


def placed(x: np.ndarray, metric: str, reach: float, query: bool = False) -> np.ndarray:
    """Where Euclidean distance ranks as the metric does: float32 [N, D], or [N, D + 1] for inner products."""
    found = ready(x, metric)
    if metric != "ip":
        return found
    more = np.zeros((len(found), 1), np.float32)
    if not query:
        more[:, 0] = np.sqrt(np.maximum(reach**2 - np.square(found).sum(1), 0))
    return np.hstack([found, more])


def headed(recipe: SPANN, work: Scratch, vectors: Vectors, wanted: int, reach: float) -> np.ndarray:
    """Heads float32 [about `wanted`, D], placed: from one tree, or from trees of sets of near vectors."""
    job = HeadsOf(recipe, wanted / vectors.count, reach)
    sets = _sets(recipe, work, vectors, reach)
    heads = np.concatenate([found for _, found in in_order(job, sets, recipe.jobs, recipe.engine)])
    if not len(heads):
        return placed(vectors.read(0, 1), recipe.metric, reach)
    if len(heads) > wanted:
        draw = np.random.default_rng(recipe.seed)
        heads = heads[np.sort(draw.choice(len(heads), wanted, replace=False))]
    return heads


@dataclass(frozen=True)
class HeadsOf:
    """Of a set of vectors those that are heads, about that share of them."""

    recipe: SPANN
    share: float
    reach: float

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        x = placed(raw, self.recipe.metric, self.reach)
        made = tree(x, branches=self.recipe.branches, leaf=self.recipe.leaf, seed=self.recipe.seed)
        found: np.ndarray = x[made.heads(self.share)]
        return found


def _sets(recipe: SPANN, work: Scratch, vectors: Vectors, reach: float) -> Iterator[np.ndarray]:
    """All vectors, in sets that lie apart and of which one may be held."""
    most = max(2, recipe.build_bytes // (4 * vectors.dim))
    count = -(-2 * vectors.count // most) if vectors.count > most else 1
    if count == 1:
        yield vectors.read(0, vectors.count)
        return
    draw = np.random.default_rng(recipe.seed)
    some = np.sort(draw.permutation(vectors.count)[: min(most, _SAMPLE * count)])
    middles = balanced(placed(vectors.take(some), recipe.metric, reach), count, recipe.seed)
    record = np.dtype([("raw", vectors.dtype, (vectors.dim,))])
    sets = work.buckets("set", count, record)
    sets.begin()
    for _, raw in blocks_of(recipe, vectors):
        sets.add(assigned(placed(raw, recipe.metric, reach), middles), raw.view(record).reshape(-1))
    for found in sets:
        if len(found):  # one that came out too large is cut anyhow
            yield from np.array_split(found["raw"], -(-len(found) // most))


def blocks_of(recipe: SPANN, vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, vectors), few enough that records of all their lists are far below `build_bytes`."""
    each = vectors.dtype.itemsize
    yield from vectors.blocks(min(8 << 20, max(1, recipe.build_bytes // 64 * each)))


def near_heads(recipe: SPANN, index: Heads, heads: np.ndarray, x: np.ndarray) -> np.ndarray:
    """int32 [N, replicas]: the lists that placed vectors go into, -1 behind the last."""
    owners = np.empty((len(x), recipe.replicas), np.int32)
    slack = np.float32(recipe.slack)
    for first in range(0, len(x), _BLOCK):
        some, mine = x[first : first + _BLOCK], owners[first : first + _BLOCK]
        _, near = index.nearest(some, CANDIDATES)
        closure(some, heads, near, recipe.replicas, slack, recipe.apart, mine, 0, len(some))
    return owners


@dataclass(frozen=True)
class Closure:
    """Lists of a block's vectors: by closure, or the nearest head's alone. Workers make the index of heads anew."""

    recipe: SPANN
    made: dict[str, np.ndarray]
    reach: float
    single: bool = False

    @cached_property
    def heads(self) -> tuple[Heads, np.ndarray]:
        return Heads(self.made), Heads.decoded(self.made)

    def __call__(self, block: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        index, exact = self.heads
        x = placed(block[1], self.recipe.metric, self.reach)
        return (
            index.nearest(x, 1)[1].astype(np.int32)
            if self.single
            else near_heads(self.recipe, index, exact, x)
        )


@dataclass
class Spread:
    """Vectors on their way into lists: records (list, row, away, raw) in buckets of neighbouring lists.

    copies: uint8 [rows], the lists each is in. spacing: the mean squared distance to the nearest head.
    """

    heads: np.ndarray
    copies: np.ndarray
    spacing: float
    buckets: Any

    @classmethod
    def of(
        cls, recipe: SPANN, work: Scratch, blocks: Blocks, count: int, heads: np.ndarray, owners: Owners,
        reach: float, dim: int, dtype: np.dtype[Any],
    ) -> Spread:  # fmt: skip
        """blocks: `count` vectors, to be stored as `dtype`. A step that is done is not done again."""
        record = np.dtype([("list", "i4"), ("row", "i4"), ("away", "f4"), ("raw", dtype, (dim,))])
        whole = 4 * count * record.itemsize * min(_COPIES, recipe.replicas)  # sorting takes as much again
        number = int(np.clip(-(-whole // recipe.build_bytes), 1, min(512, len(heads))))
        buckets = work.buckets("lists", number, record)
        if not work.has("spread"):
            copies, total = cls._fill(recipe, blocks, count, heads, owners, reach, buckets)
            work.finish("spread", {"copies": copies, "spacing": np.array([total / max(1, count)])})
        told = work.arrays("spread")
        return cls(heads, told["copies"], float(told["spacing"][0]), buckets)

    @staticmethod
    def _fill(
        recipe: SPANN, blocks: Blocks, count: int, heads: np.ndarray, owners: Owners, reach: float, buckets: Any
    ) -> tuple[np.ndarray, float]:  # fmt: skip
        copies, total = np.zeros(count, np.uint8), 0.0
        buckets.begin()
        for (rows, raw), mine in in_order(owners, blocks, recipe.jobs, recipe.engine):
            x = placed(raw, recipe.metric, reach)
            which, place = np.nonzero(mine >= 0)
            out = np.empty(len(which), buckets.record)
            out["list"], out["row"], out["raw"] = mine[which, place], rows[which], raw[which]
            out["away"] = np.square(x[which] - heads[out["list"]]).sum(1)
            copies[rows] = (mine >= 0).sum(1)
            total += float(out["away"][place == 0].sum())
            buckets.add(out["list"].astype(np.int64) * len(buckets.paths) // len(heads), out)
        buckets.settle()
        return copies, total

    def lists(self, cap: int | None = None) -> Iterator[np.ndarray]:
        """The records of each list in turn, the nearest first, at most `cap`; one that would be nowhere stays.

        Of a list that is too long those go first that are in another one too, the farthest of them.
        """
        last, bounds = -1, len(self.heads)
        for found in self.buckets:
            found = found[np.lexsort((found["row"], found["away"], found["list"]))]
            starts = np.flatnonzero(np.diff(found["list"], prepend=-1))
            for part in np.split(found, starts[1:]) if len(found) else ():
                for _ in range(last + 1, int(part["list"][0])):
                    yield part[:0]
                last = int(part["list"][0])
                yield part if cap is None or len(part) <= cap else self._capped(part, cap)
        for _ in range(last + 1, bounds):
            yield np.zeros(0, self.buckets.record)

    def _capped(self, part: np.ndarray, cap: int) -> np.ndarray:
        several = self.copies[part["row"]] > 1
        cut = np.lexsort((part["away"], several))[cap:]
        cut = cut[several[cut]]
        self.copies[part["row"][cut]] -= 1
        return np.delete(part, cut)
