"""As many vectors as fit in memory, drawn by lot, and exact search among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from holdall.errors import BudgetError, CorruptArtefact
from holdall.method import Paper, knob
from holdall.vectors.base import VectorIndex
from holdall.vectors.given import Given, State
from holdall.vectors.metrics import distances, exactly, nearest, ready
from holdall.vectors.shelf import Shelf

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.source import Vectors


@dataclass(frozen=True, kw_only=True)
class Random(VectorIndex):
    """Keeps a random share of the vectors in memory and forgets the others: what every method must beat.

    Its recall is about the share that fits, whatever the data.

    Shapes:
        vectors [N, D] of which n fit, kept in their own type.
    Cost:
        n D multiplications a query; the bytes of n vectors.
    Knobs:
        metric: l2, cosine or ip; seed of the draw.
    Differs from the paper:
        It has none.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import Random
        >>> x = np.random.default_rng(0).normal(size=(500, 16)).astype("float32")
        >>> with Random().build(x, "50%") as index:
        ...     index.search(x, k=1).ids.shape, index.nbytes <= x.nbytes // 2
        ((500, 1), True)

    Paper: none; a floor.
    Test: tests/vectors/test_floors.py
    """

    name: ClassVar[str] = "random"
    gives_vectors: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(0, "A random share", "a floor")

    seed: int = knob(0, "of the draw", other=1, at={"budget": "30%"})

    def made(self, change: Change, given: Given) -> None:
        vectors, each = given.vectors, given.vectors.dim * given.vectors.dtype.itemsize + 8
        room = (
            vectors.count if given.limit is None else min((given.limit - given.beside) // each, vectors.count)
        )
        if room < 1:
            why = "the ids, and one vector"
            raise BudgetError(int(given.limit or 0), given.beside + each, who=self.full_name(), why=why)
        rows = np.sort(np.random.default_rng(self.seed).permutation(vectors.count)[:room])
        given.commit(change, self, ({"vectors": vectors.take(rows), "rows": rows.astype(np.int64)}, {}))

    def shelf(self, folder: Folder, limit: int | None) -> Drawn:
        return Drawn(self, folder, limit)


class Drawn(Shelf):
    def load(self) -> None:
        self.rows = self.folder.array("rows", np.int64, 1)
        self.vectors = self.folder.arrays.get("vectors", self.rows)
        if self.vectors.shape != (len(self.rows), self.dim) or self.vectors.dtype.kind not in "fiu":
            raise CorruptArtefact(self.folder.url, "its vectors and its rows contradict each other")
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < self.count):
            raise CorruptArtefact(self.folder.url, "rows that there are not")

    def held(self) -> int:
        return int(self.vectors.nbytes + self.rows.nbytes)

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        some = slice(None) if keep is None else keep[self.rows]
        vectors, rows = ready(self.vectors[some], self.recipe.metric), self.rows[some]
        _, places = nearest(queries, vectors, k, self.recipe.metric)
        found = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1)
        wide = places.shape[1]
        if wide:
            keys = distances(queries, vectors[places], self.recipe.metric)
            order = np.argsort(keys, axis=1, kind="stable")
            found[0][:, :wide] = np.take_along_axis(keys, order, 1)
            found[1][:, :wide] = np.take_along_axis(rows[places], order, 1)
        return found

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        return ready(self.vectors[np.searchsorted(self.rows, rows)], self.recipe.metric)

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        """As if all had been drawn from together, of those that are still held."""
        total, mine = self.count + vectors.count, len(self.rows)
        each = self.dim * self.vectors.dtype.itemsize + self.rows.itemsize
        most = total if room is None else min(total, max(0, room // each))
        new = min(vectors.count, max(most - mine, round(most * vectors.count / total)))
        draw = np.random.default_rng([self.recipe.seed, total])
        kept = np.sort(draw.permutation(mine)[: most - new])
        taken = np.sort(draw.permutation(vectors.count)[:new])
        both = np.concatenate([self.vectors[kept], exactly(vectors.take(taken), self.vectors.dtype)])
        return {"vectors": both, "rows": np.concatenate([self.rows[kept], self.count + taken])}, {}

    def least(self, own: State) -> int:
        return sum(a.nbytes for a in own[0].values())

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        number, mine = np.cumsum(keep) - 1, keep[self.rows]
        if self.limit is not None:  # ids may take more than before: they no longer count from 0
            each, beside = self.dim * self.vectors.dtype.itemsize + 8, self.ids.kept(keep).nbytes
            mine &= np.cumsum(mine) <= max(0, self.limit - beside) // each
        return {"vectors": self.vectors[mine], "rows": number[self.rows[mine]]}, {}
