"""Sparse rows times channels of pixels, by themselves: what a sparse 1x1 convolution of a net is, without the net."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from holdall.parts.rows import by_rows
from holdall.weights.chw_program import OP, run
from holdall.weights.sparse_rows import SparseRows
from holdall.weights.spmm_kernels import LINE

_ENOUGH = 4_000_000  # multiply-adds from which a second thread gains more than waking it costs (about 50 us)


class Multiply:
    """Sparse rows made ready for channels of one stride (see `spmm_kernels.planes`)."""

    def __init__(self, parts: Sequence[SparseRows], stride: int, vectors: int = 4):
        self.parts, self.stride, self.vectors, self.arrays = parts, stride, vectors, []
        self.ops, row = np.zeros(len(parts), OP), 0
        for op, rows in zip(self.ops, parts, strict=True):
            for name in ("x_stride", "out_stride"):
                op[name] = stride
            op["nr"], op["vectors"], op["outputs"] = rows.nr, vectors, rows.shape[0]
            op["first"], op["out"] = rows.first, row * stride
            row += rows.shape[0]
            self.arrays.append((rows.stream, rows.steps(stride), rows.counts))

    def __call__(
        self, x: np.ndarray, out: np.ndarray, pixels: int, low: float = -np.inf, high: float = np.inf
    ) -> None:
        """x [I, stride] -> out [O, stride], the first `pixels` of each channel, in blocks shared by threads."""
        self.ops["pixels"], self.ops["low"], self.ops["high"] = pixels, low, high
        for i, (rows, arrays) in enumerate(zip(self.parts, self.arrays, strict=True)):
            work = rows.nr * (len(rows.columns) + 3 * len(rows.counts)) * pixels / _ENOUGH
            args = (self.ops, x.reshape(-1), out.reshape(-1), *arrays, i, i + 1)
            parts = max(1, min(torch.get_num_threads(), -(-pixels // LINE))) if work >= 1 else 1
            by_rows(run, parts, work, *args, parts)
