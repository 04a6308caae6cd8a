"""Matrices of a step a row and a scale a column, which both learn while the codes stay. Imported to train.

W[o, i] = step[o] * column[i] * q[o, i]        q whole, around zero
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from holdall.weights.coded import Coded
from holdall.weights.end_to_end import Learned
from holdall.weights.fake_quant import LEAST_STEP

_MOST = 65504.0  # of half precision


class RowSteps(Learned):
    """One matrix; coded: in bands of whole rows, symmetric; columns: [I], None where they are not scaled."""

    def __init__(self, coded: Coded, columns: np.ndarray | None):
        super().__init__()
        self.coded, self.scaled = coded, columns is not None
        codes, step = np.zeros(coded.shape, np.int8), np.zeros((coded.shape[0], 1), np.float32)
        for band in coded.bands:
            codes[band.rows] = band.codes().astype(np.int16) - (1 << band.bits - 1)
            step[band.rows] = band.grids()[0]
        self.codes = torch.from_numpy(codes)
        self.step = torch.nn.Parameter(torch.from_numpy(step))
        wide = np.ones(coded.shape[1], np.float32) if columns is None else columns.astype(np.float32)
        self.columns = torch.nn.Parameter(torch.from_numpy(wide), requires_grad=self.scaled)

    def dense(self) -> torch.Tensor:
        return RowProduct.apply(self.codes, self.step, self.columns)

    def settled(self) -> tuple[Coded, np.ndarray | None]:
        """(the same codes with the steps that were learned, the columns' scales), in half precision."""
        step = self.step.detach().clamp(LEAST_STEP, _MOST).numpy()
        parts = [(b.rows, Coded.of(b.codes(), b.bits, scale=step[b.rows])) for b in self.coded.bands]
        columns = self.columns.detach().clamp(LEAST_STEP, _MOST).numpy().astype(np.float16)
        return Coded.mixed(parts), columns if self.scaled else None


class RowProduct(torch.autograd.Function):
    """apply(q, step, columns) -> W; what comes back is summed over rows and over columns, and W is not kept."""

    @staticmethod
    def forward(ctx: Any, codes: torch.Tensor, step: torch.Tensor, columns: torch.Tensor) -> Any:
        ctx.save_for_backward(codes, step, columns)
        return codes.float().mul_(step).mul_(columns)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        codes, step, columns = ctx.saved_tensors
        felt = grad.float() * codes
        return None, (felt @ columns)[:, None], felt.T @ step[:, 0]
