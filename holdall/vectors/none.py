"""Exact search: every vector is looked at, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from holdall.errors import BudgetError, CorruptArtefact
from holdall.method import Paper
from holdall.vectors.base import VectorIndex
from holdall.vectors.given import Given, State
from holdall.vectors.metrics import best, distances, nearest, ready
from holdall.vectors.pages import Rows, page_for
from holdall.vectors.shelf import Shelf

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.source import Vectors

_PAGE = 64 << 10
_BLOCK = 8 << 20  # bytes of vectors at a time, where there is no budget
_WORK = 3  # blocks that a pass holds: the page as it is read, its rows, the same in float32
_FEW = 0.7  # of a file's rows that are alive; below that it is written again


@dataclass(frozen=True, kw_only=True)
class Nothing(VectorIndex):
    """Looks at every vector, block by block from disk: exact, in any memory, and slow.

    The floor of cost and the truth of recall. Fine below some ten thousand vectors; beyond, it reads the whole file for
    each batch of queries, so batches are what it is good at.

    Shapes:
        vectors [N, D] of float32, float16, uint8 or int8, kept in that type on disk.
    Cost:
        N D multiplications and N rows read for a batch of queries; in memory a block of rows.
    Knobs:
        metric: l2, cosine or ip.
    Differs from the paper:
        It has none; this is the definition.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import Nothing
        >>> x = np.random.default_rng(0).normal(size=(500, 16)).astype("float32")
        >>> with Nothing().build(x, ids=np.arange(500) * 10) as index:
        ...     index.search(x[7], k=1).ids.tolist()
        [[70]]

    Paper: none; the definition of nearest.
    Test: tests/vectors/test_floors.py
    """

    name: ClassVar[str] = "none"
    exact: ClassVar[bool] = True
    gives_vectors: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(0, "Exact search", "the definition")

    def made(self, change: Change, given: Given) -> None:
        vectors = given.vectors
        page = page_for(vectors.dim * vectors.dtype.itemsize, _PAGE)
        rows = Rows("rows-1", vectors.dim, vectors.dtype, page)
        least = _WORK * _float(rows) + given.beside
        if given.limit is not None and given.limit < least:
            raise BudgetError(given.limit, least, who=self.full_name(), why="a page of vectors, and the ids")
        pages = rows.append(change, (block for _, block in vectors.blocks()), 0)
        given.commit(change, self, _state(rows, None, pages))

    def shelf(self, folder: Folder, limit: int | None) -> Scan:
        return Scan(self, folder, limit)


def _float(rows: Rows) -> int:
    """Bytes of a page's rows in float32, or of the page."""
    return max(rows.size, 4 * rows.dim * rows.each)


class Scan(Shelf):
    """Rows in a file; `alive` tells which of them are still there."""

    def load(self) -> None:
        self.rows = Rows.of_meta(self.folder.meta.get("rows"), self.folder)
        told = self.folder.array("alive", np.uint8, 1) if "alive" in self.folder.arrays else None
        if told is not None and len(told) != -(-self.rows.count // 8):
            raise CorruptArtefact(self.folder.url, "it does not say which of its rows are alive")
        self.alive = None if told is None else np.unpackbits(told, count=self.rows.count).astype(bool)
        there = self.rows.count if self.alive is None else int(self.alive.sum())
        if there != self.count or self.rows.dim != self.dim or type(self.folder.meta.get("pages")) is not int:
            raise CorruptArtefact(self.folder.url, f"{there} rows for {self.count} vectors")

    def least(self, own: State) -> int:
        rows = sum(n for n, _ in own[1]["rows"]["stretches"])
        return _WORK * _float(self.rows) + (rows if "alive" in own[0] else 0)

    def held(self) -> int:
        spare = 0 if self.alive is None else self.alive.nbytes
        return _WORK * self._block() + spare

    def _block(self) -> int:
        page = _float(self.rows)
        most = _BLOCK
        if self.limit is not None:
            rest = self.ids.nbytes + (0 if self.attributes is None else self.attributes.nbytes)
            most = (self.limit - rest - (0 if self.alive is None else self.alive.nbytes)) // _WORK
        return max(page, min(_BLOCK, most) // page * page)

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first, vectors that are alive)."""
        pages = self._block() // _float(self.rows)
        number = 0
        for start, block in self.rows.blocks(self.folder, pages * self.rows.size):
            if self.alive is not None:
                block = block[self.alive[start : start + len(block)]]
            yield number, block
            number += len(block)

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        metric = self.recipe.metric
        keys, rows = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1)
        for first, block in self._blocks():
            numbers = np.arange(first, first + len(block))
            if keep is not None:
                block, numbers = block[keep[numbers]], numbers[keep[numbers]]
            if not len(block):
                continue
            vectors = ready(block, metric)
            # faiss subtracts large numbers: some more than k, of which true distances then choose
            _, places = nearest(queries, vectors, 2 * k + 8, metric)
            new = distances(queries, vectors[places], metric)
            keys, rows = best(np.hstack([keys, new]), np.hstack([rows, numbers[places]]), k)
        return keys, rows

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """Each page is read once, and no more of them at a time than a search has in memory."""
        wanted, back = np.unique(rows, return_inverse=True)
        stored = wanted if self.alive is None else np.flatnonzero(self.alive)[wanted]
        page, _ = self.rows.pages(stored)
        number = np.cumsum(np.diff(page, prepend=page[:1]) != 0)  # of its page, among those that are read
        found = np.empty((len(wanted), self.dim), np.float32)
        most = self._block() // _float(self.rows)
        for first in range(0, int(number.max(initial=-1)) + 1, most):
            some = slice(*np.searchsorted(number, [first, first + most]))
            found[some] = ready(self.rows.take(self.folder, stored[some]), self.recipe.metric)
        return found[back.reshape(-1)]

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        rows = Rows.of_meta(self.rows.to_meta(), self.folder)
        page = rows.append(change, (block for _, block in vectors.blocks()), self.folder.meta["pages"])
        alive = None if self.alive is None else np.concatenate([self.alive, np.ones(vectors.count, bool)])
        return _state(rows, alive, page)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        alive = np.ones(self.rows.count, bool) if self.alive is None else self.alive.copy()
        alive[np.flatnonzero(alive)[~keep]] = False
        if alive.mean() >= _FEW:
            return _state(self.rows, alive, self.folder.meta["pages"])
        number = int(self.rows.name.rpartition("-")[2]) + 1
        rows = Rows(f"rows-{number}", self.dim, self.rows.dtype, self.rows.size)
        page = rows.append(change, (b[keep[n : n + len(b)]] for n, b in self._blocks()), 0)
        change.drop(self.rows.name)
        return _state(rows, None, page)


def _state(rows: Rows, alive: np.ndarray | None, page: int) -> State:
    arrays = {} if alive is None or alive.all() else {"alive": np.packbits(alive)}
    return arrays, {"rows": rows.to_meta(), "pages": page}
