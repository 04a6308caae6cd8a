"""The kernel for devices: rows read aligned to lines. It ran in numba's simulator, not on a device yet."""

from __future__ import annotations

from typing import Any

from numba import cuda

from holdall.training.pytorch_direct_lines import LINE


@cuda.jit
def shifted_rows(table, rows, out, base, size):  # type: ignore[no-untyped-def]
    """out[i] = table[rows[i]], a block a row; thread t begins at the row's first whole line and comes round."""
    i, width = cuda.blockIdx.x, table.shape[1]
    start = base + rows[i] * width * size
    shift = (LINE - start % LINE) % LINE // size % width
    t: Any = cuda.threadIdx.x
    while t < width:
        at = (t + shift) % width
        out[i, at] = table[rows[i], at]
        t += cuda.blockDim.x
