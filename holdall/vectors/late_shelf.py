"""An open index of documents: all are scored by their sets of centroids, the first of them again by all that is
kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.kinds import Hits
from holdall.parts.codebook import assigned
from holdall.vectors.late import Ends, Fine, Sets, State
from holdall.vectors.late_codes import Codebook, asked, coded
from holdall.vectors.shelf import Shelf

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.source import Vectors


class Pages(Shelf):
    """Its rows are documents."""

    def load(self) -> None:
        each, odd = divmod(self.dim, self.recipe.patches)
        if odd:
            raise CorruptArtefact(self.folder.url, f"{self.dim} numbers for {self.recipe.patches} vectors")
        count = int(self.folder.meta["count"])
        self.fine = Fine.read(self.folder, count, each) if "tables" in self.folder.arrays else None
        quantiser = None if self.fine is None else self.fine.quantiser
        self.book = Codebook.read(self.folder, each, quantiser)
        self.sets = Sets.read(self.folder, count, self.book.width)

    def held(self) -> int:
        return self.book.nbytes + self.sets.nbytes + (0 if self.fine is None else self.fine.nbytes)

    def least(self, own: State) -> int:
        return sum(a.nbytes for a in own[0].values())

    def search(self, queries: Any, k: int = 10, where: Any = None, recall: float | None = None) -> Hits:
        """The k documents nearest to each query: a list of arrays [n, D], an array [Q, n, D], `Documents`, or [Q,
        D] of single vectors. distances: 1 - the mean over a query's vectors of the best cosine; minus the sum of
        the best inner products; with hamming the mean share of bits that differ."""
        if recall is not None:
            self.aimed(recall)  # which refuses
        wanted = asked(self.recipe, self.book, queries, self.dim)
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.count:
            raise BadInput("k", k, f"1 to the {self.count} documents that there are")
        distances, rows = self.find_all(wanted, int(k), self._kept(where))
        self._counts["queries"] += len(wanted)
        return Hits(self.ids.at(rows), distances)

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return self.find_all(asked(self.recipe, self.book, queries, self.dim), k, keep)

    def find_all(
        self, queries: list[np.ndarray], k: int, keep: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`find` of queries [n, D] each."""
        found = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1)
        for i, query in enumerate(queries):
            rows, scores = self._best(query, k, keep)
            order = np.lexsort((rows, -scores))[:k]
            found[0][i, : len(order)] = self._away(scores[order], len(query))
            found[1][i, : len(order)] = rows[order]
        return found

    def _best(self, query: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(documents, k of them at least, their scores)."""
        if self.recipe.scoring == "hamming":
            scores = self.sets.alike(assigned(query, self.book.centroids), keep)
            rows = first(scores, k)
            return rows, scores[rows]
        table, probes = query @ self.book.centroids.T, self.recipe.probes
        scores = self.sets.scores(table, keep, probes)
        if self.fine is None and probes is None:
            rows = first(scores, k)
            return rows, scores[rows]
        rows = first(scores, max(k, self.recipe.candidates))
        if self.fine is not None:
            return rows, self.fine.scores(query, rows)
        few = np.zeros(len(scores), bool)
        few[rows] = True
        return rows, self.sets.scores(table, few)[rows]

    def _away(self, scores: np.ndarray, vectors: int) -> np.ndarray:
        if self.recipe.scoring == "hamming":
            return 1 - scores / np.float32(vectors * self.book.width)
        return -scores if self.recipe.metric == "ip" else 1 - scores / np.float32(vectors)

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        _, sets, fine = coded(self.recipe, self.book, vectors, False)
        mine, new = self.sets.lists(), sets.lists()
        sets = Sets.of(np.concatenate([mine[0], new[0]]), np.concatenate([mine[1], new[1]]), self.book.width)
        if self.fine is not None and fine is not None:
            ends = Ends.of(np.concatenate([self.fine.ends.sizes, fine.ends.sizes]))
            fine = Fine(fine.quantiser, ends, np.concatenate([self.fine.codes, fine.codes]))
        return state(self.book, sets, fine)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        codes, sizes = self.sets.lists()
        sets = Sets.of(codes[np.repeat(keep, sizes)], sizes[keep], self.book.width)
        fine = self.fine
        if fine is not None:
            left = np.repeat(keep, fine.ends.sizes)
            fine = Fine(fine.quantiser, Ends.of(fine.ends.sizes[keep]), fine.codes[left])
        return state(self.book, sets, fine)


def state(book: Codebook, sets: Sets, fine: Fine | None) -> State:
    arrays: dict[str, np.ndarray] = book.stored()
    told: dict[str, Any] = {}
    for part in (sets, fine):
        if part is not None:
            more, meta = part.stored()
            arrays, told = arrays | more, told | meta
    return arrays, told


def first(scores: np.ndarray, k: int) -> np.ndarray:
    """Numbers of the k highest above -inf, those of lower numbers first among equals; in no order."""
    there = np.flatnonzero(scores > -np.inf)
    if len(there) <= k:
        return there
    scores = scores[there]
    least = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: k - len(above)]
    return there[np.concatenate([above, equal])]
