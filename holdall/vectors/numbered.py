"""An index whose rows keep the numbers that they were stored with: which of them are left is a bit each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.vectors.aiming import Table, measured, truth
from holdall.vectors.bits import Bits
from holdall.vectors.folder import Folder, changing
from holdall.vectors.metrics import METRICS, asked
from holdall.vectors.shelf import Shelf

GONE = 0.2  # of the rows, from which all is written again without those that are gone
NO_BITS = np.zeros(1, np.uint8)


class Numbered(Shelf):
    """A method's shelf writes `searched`, `settings` and `alive`; `there` is None where no row is gone."""

    def load(self) -> None:
        told = self.folder.meta
        reach, stored = told.get("reach"), told.get("stored")
        if type(reach) is not float or type(stored) is not int:
            raise CorruptArtefact(
                self.folder.url, "it does not say how long its vectors are, or how many it stores"
            )
        self.reach, self.stored = reach, stored
        self.there: Bits | None = None
        if "there" in self.folder.arrays:
            packed = self.folder.array("there", np.uint8, 1)
            if not 0 <= stored <= 8 * len(packed) < stored + 8:
                raise CorruptArtefact(self.folder.url, "it does not say which of its rows are left")
            self.there = Bits.of(packed, stored)
        if (stored if self.there is None else self.there.count) != self.count:
            raise CorruptArtefact(self.folder.url, f"{stored} rows for {self.count} vectors")
        self._reads = self._compared = 0.0

    @abstractmethod
    def searched(
        self, queries: np.ndarray, bits: np.ndarray | None, keys: np.ndarray, rows: np.ndarray
    ) -> None:
        """Fill keys [Q, k] (squared distances for l2), rising, and stored rows [Q, k], -1 where there are no more.
        bits: one for each stored row that may be found; None: all."""

    @abstractmethod
    def settings(self) -> list[tuple[dict[str, Any], float]]:
        """Knobs of searching that are worth a try, and about what a query costs with them, in microseconds."""

    @property
    def _thorough(self) -> Any:
        """The method with knobs by which a search looks at everything, in no more memory than others take."""
        return self.recipe.but(probes=max(1, self.stored), rerank=float(max(1, self.stored)))

    @abstractmethod
    def alive(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All vectors that are left, each once, in blocks: (stored rows, vectors as they are stored)."""

    def tune(self, queries: Any = None) -> None:
        """Measure what searches find, for queries [Q, D] or for some of the vectors, and commit that."""
        if self.count < 2:
            return
        given = None if queries is None else asked(queries, self.dim, self.recipe.metric)
        if given is not None and not len(given):
            raise BadInput("queries", "none", "some to measure with")
        counts = dict(self._counts), self._reads, self._compared
        table = measured(self, given, self.settings())
        with changing(self.folder.url, self.folder) as change:
            told = {k: v for k, v in self.folder.meta.items() if k not in ("files", "generation")}
            change.commit(dict(self.folder.arrays), {**told, "recalls": table})
        self.folder.close()
        self.folder = Folder.open(self.folder.url)
        self._counts, self._reads, self._compared = counts

    def stored_rows(self, queries: np.ndarray, k: int, recipe: Any) -> np.ndarray:
        """Stored rows [Q, k] that a search with these knobs finds."""
        keys, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        usual, self.recipe = self.recipe, recipe
        try:
            self.searched(queries, self._allowed(None), keys, rows)
        finally:
            self.recipe = usual
        return rows

    def aimed(self, recall: float) -> Any:
        """The method with the cheapest knobs that found that share; above what was measured, and for 1, all is looked
        at."""
        if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall <= 1:
            raise BadInput("recall", recall, "a share of the nearest, above 0 and up to 1")
        for probes, rerank, _, share in self.recalls:
            if share >= recall and recall < 1:
                return self.recipe.but(probes=int(probes), rerank=rerank)
        return self._thorough

    @property
    def recalls(self) -> Table:
        """What was measured when it was built: (probes, rerank, microseconds, recall of the ten nearest)."""
        table = self.folder.meta.get("recalls", [])
        if not isinstance(table, list) or not all(
            isinstance(r, list) and len(r) == 4 and all(type(v) in (int, float) for v in r) for r in table
        ):
            raise CorruptArtefact(self.folder.url, "what it says of its recall contradicts itself")
        return table

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        bits = self._allowed(keep)
        if self.recipe == self._thorough:
            away, rows = truth(self._among(bits), queries, k, self.recipe.metric)
            self._compared += len(queries) * self.count
        else:
            away, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
            self.searched(queries, bits, away, rows)
            away = np.sqrt(away) if self.recipe.metric == "l2" else away
        if self.there is not None:
            rows = np.where(rows < 0, -1, self.there.rank(np.maximum(rows, 0)))
        return away, rows

    def _among(self, bits: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All vectors that may be found, a block at a time."""
        for rows, raw in self.alive():
            fine = slice(None) if bits is None else (bits[rows >> 3] >> (rows & 7)) & 1 > 0
            yield rows[fine], raw[fine]

    def _allowed(self, keep: np.ndarray | None) -> np.ndarray | None:
        if keep is None:
            return None if self.there is None else self.there.packed
        if self.there is None:
            return np.packbits(keep, bitorder="little")
        flags = self.there.flags
        flags[np.flatnonzero(flags)[~keep]] = False
        return np.packbits(flags, bitorder="little")

    @property
    def kind(self) -> int:
        """The number of the metric in kernels."""
        return METRICS.index(self.recipe.metric)

    def traffic(self) -> Any:
        return {**super().traffic(), "reads": self._reads, "compared": self._compared}
