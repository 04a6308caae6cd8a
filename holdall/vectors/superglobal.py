"""SuperGlobal's second stage: what an index finds is ordered again by what the candidates have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BadInput
from holdall.method import Paper, knob
from holdall.vectors.base import VectorIndex
from holdall.vectors.given import Given, State
from holdall.vectors.none import Nothing
from holdall.vectors.random import Random
from holdall.vectors.reranking import checked, rerank
from holdall.vectors.shelf import Shelf

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.source import Vectors

_BLOCK = 8 << 20  # bytes of candidates at a time


@dataclass(frozen=True, kw_only=True)
class SuperGlobal(VectorIndex):
    """Orders what another index finds again, so that pictures of one thing come before look-alikes.

    Each of the first M candidates is averaged with its neighbours among them, and the best of these make a second
    query; nothing is stored beside the vectors. For embeddings where a query has several right answers (views of a
    building, copies of a page). Poor where a query has one right answer, and for saying that there is none: scores are
    no cosines, and tell what is there from what is not less well than cosines do.

    Shapes:
        query [D], candidates [M, D], their products [M, M].
    Cost:
        2 M M D multiplications a query, and M vectors that the inner index reads; no bytes beside the inner index's.
        While a query is answered, up to 8 MB of candidates (or those of one query) and five times M M numbers pass by,
        which no budget counts.
    Knobs:
        candidates: M, whose order is made anew (paper: 400); those behind keep theirs. neighbours: K, that each is
        averaged with (paper: 9). beta: a neighbour's weight, times its cosine (paper: 0.15). inner: the index that
        finds candidates, one for cosine that keeps vectors. The metric is cosine.
    Differs from the paper:
        neighbours on the other side (cosine below 0) get no weight. Features that are refined before they are pooled
        are in `holdall.vectors.pooling`.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import SuperGlobal
        >>> x = np.random.default_rng(0).normal(size=(20, 1, 32)) + np.zeros((20, 8, 1))
        >>> x = x + 0.9 * np.random.default_rng(1).normal(size=x.shape)
        >>> with SuperGlobal(candidates=40, neighbours=5).build(x.reshape(160, 32).astype("float32")) as index:
        ...     sorted((index.search(x[3, 0].astype("float32"), k=8).ids[0] // 8).tolist())
        [3, 3, 3, 3, 3, 3, 3, 3]

    Paper: 011, Shao et al., Global Features are All You Need for Image Retrieval and Reranking, ICCV 2023
    Test: tests/vectors/test_superglobal.py
    """

    name: ClassVar[str] = "superglobal"
    estimates: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("cosine",)
    brief: ClassVar[Mapping[str, Any]] = {"candidates": 100}
    paper: ClassVar[Paper] = Paper(
        11, "Global Features are All You Need for Image Retrieval and Reranking",
        "Shao, Chen, Karpur, Cui, Araujo, Cao; ICCV 2023", "https://arxiv.org/abs/2308.06954",
    )  # fmt: skip

    metric: InitVar[str] = "cosine"  # no knob: there is no other
    candidates: int = knob(400, "whose order is made anew", unit="vectors", other=20)
    neighbours: int = knob(9, "that each candidate is averaged with", unit="vectors", other=2)
    beta: float = knob(0.15, "weight of a neighbour, times its cosine", other=0.6)
    inner: VectorIndex = knob(  # noqa: RUF009
        Nothing(metric="cosine"),
        "the index that finds candidates",
        other=Random(metric="cosine"),
        at={"budget": "30%"},
    )

    def __post_init__(self, metric: str) -> None:
        if metric != "cosine":
            raise BadInput("metric", metric, "cosine, by which this method averages and compares")
        if not isinstance(self.inner, VectorIndex) or not self.inner.gives_vectors:
            raise BadInput("inner", str(self.inner), "an index that keeps vectors: codes cannot be averaged")
        if self.inner.metric != "cosine":
            raise BadInput("inner's metric", self.inner.metric, "cosine (--inner.metric cosine)")
        checked(self.neighbours, self.beta)
        if type(self.candidates) is not int or self.candidates < 1:
            raise BadInput("candidates", self.candidates, "1 or more")

    def made(self, change: Change, given: Given) -> None:
        self.inner.made(change, _Handed(given.vectors, given.ids, given.attributes, given.limit, self))

    def shelf(self, folder: Folder, limit: int | None) -> Reordered:
        return Reordered(self, folder, limit)


@dataclass(frozen=True)
class _Handed(Given):
    """What the inner index is built from; the folder that it commits is the outer recipe's."""

    recipe: SuperGlobal

    def commit(self, change: Change, recipe: VectorIndex, own: State) -> None:
        super().commit(change, self.recipe, own)


class Reordered(Shelf):
    """The inner index's shelf, and another order of what it finds."""

    inner: Shelf | None = None

    def load(self) -> None:
        if self.inner is None:
            self.inner = self.recipe.inner.shelf(self.folder, self.limit)
            self.inner.remembers = True
        else:
            self.inner._take(self.folder)
        self.inner.ids, self.inner.attributes = self.ids, self.attributes  # held once

    @property
    def _inner(self) -> Shelf:
        assert self.inner is not None
        return self.inner

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        most = min(self.recipe.candidates, self.count)
        away, rows = self._inner.find(queries, max(k, most), keep)
        step = max(1, _BLOCK // (4 * self.dim * most))
        for first in range(0, len(queries), step):
            some = slice(first, first + step)
            different, which = np.unique(rows[some, :most], return_inverse=True)
            none = int((different < 0).sum())  # -1, where the inner index found fewer
            vectors = self._inner.vectors_of(different[none:])
            for i, places in enumerate(which.reshape(-1, most) - none, start=first):
                found = int((places >= 0).sum())
                scores = rerank(
                    queries[i], vectors[places[:found]],
                    neighbours=self.recipe.neighbours, beta=self.recipe.beta,
                )  # fmt: skip
                order = np.argsort(-scores, kind="stable")
                rows[i, :found], away[i, :found] = rows[i, order], 1 - scores[order]
        return np.maximum.accumulate(away[:, :k], axis=1), rows[:, :k]  # what lies behind M stays behind

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        return self._inner.vectors_of(rows)

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        return self._inner.grown(change, vectors, room)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        return self._inner.shrunk(change, keep)

    def least(self, own: State) -> int:
        return self._inner.least(own)

    def held(self) -> int:
        return self._inner.held()

    def traffic(self) -> Mapping[str, float]:
        return {**self._inner.traffic(), **super().traffic()}
