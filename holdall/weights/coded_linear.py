"""Coded matrices as running modules hold them. Imported only when a model is opened, for torch's sake."""

from __future__ import annotations

import numpy as np
import torch

from holdall.weights.coded import Coded

_NEAR = 1 << 18  # weights that are made floats at a time


class CodedMatrix:
    """A coded matrix that multiplies: what a packed module holds."""

    def __init__(self, coded: Coded):
        self.coded = coded

    @property
    def shape(self) -> tuple[int, int]:
        return self.coded.shape

    @property
    def nbytes(self) -> int:
        return self.coded.nbytes

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T [T, O] for float32 x [T, I]."""
        out = torch.empty(len(x), self.shape[0])
        step = max(64, _NEAR // self.shape[1])
        for band in self.coded.bands:
            for start in range(0, len(band.rows), step):
                which = np.arange(start, min(start + step, len(band.rows)))
                weight = torch.from_numpy(band.dense(which))
                out[:, torch.from_numpy(band.rows[which]).long()] = x @ weight.T
        return out

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self.coded.rows(ids)

    def dense(self) -> np.ndarray:
        return self.coded.dense()
