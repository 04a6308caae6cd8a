"""An index whose rows keep the numbers that they were stored with: which of them are left is a bit each."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.vectors.bits import Bits
from holdall.vectors.metrics import METRICS
from holdall.vectors.shelf import Shelf

GONE = 0.2  # of the rows, from which all is written again without those that are gone
NO_BITS = np.zeros(1, np.uint8)


class Numbered(Shelf):
    """Writes `one`, which finds stored rows for one query; `there` is None where none is gone."""

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

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        keys, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        self.searched(queries, self._allowed(keep), keys, rows)
        if self.there is not None:
            rows = np.where(rows < 0, -1, self.there.rank(np.maximum(rows, 0)))
        return (np.sqrt(keys) if self.recipe.metric == "l2" else keys), rows

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
