"""Sparse rows times channels of pixels (CHW): the kernels of sparse 1x1 convolutions, their slow truth beside them.

Channels are kept apart by a stride that is an odd number of cache lines: with a power of two all channels of a strip
would fall into the same few places of the nearest memory. No time is spent on denormal numbers: `SparseRows` has none.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.weights.sparse_rows import SparseRows
from holdall.weights.spmm_lanes import spmm_1, spmm_2, spmm_4

LINE = 16  # floats in a cache line


def stride_of(pixels: int) -> int:
    """Floats from one channel to the next."""
    return (-(-pixels // LINE) | 1) * LINE


def zeros(size: int) -> np.ndarray:
    """Floats that begin at a cache line."""
    room = np.zeros(size + LINE, np.float32)
    start = -room.ctypes.data // 4 % LINE
    return room[start : start + size]


def planes(x: np.ndarray) -> np.ndarray:
    """Channels [C, P], set apart for the kernels: [C, stride_of(P)]."""
    made = zeros(len(x) * stride_of(x.shape[1])).reshape(len(x), -1)
    made[:, : x.shape[1]] = x
    return made


def naive_spmm(x: np.ndarray, rows: SparseRows, low: float, high: float) -> np.ndarray:
    """Walks the stream as the kernels do, one row after the other: x [I, P] -> [O, P]."""
    x = x.astype(np.float64)
    steps, channel, k, at = rows.steps(1) // 4, rows.first, 0, 0
    out = np.empty((rows.shape[0], x.shape[1]))
    for group, count in enumerate(rows.counts):
        sums = np.repeat(rows.stream[at : at + rows.nr, None].astype(np.float64), x.shape[1], 1)
        at += rows.nr
        for _ in range(count):
            sums += rows.stream[at : at + rows.nr, None] * x[channel]
            at, channel, k = at + rows.nr, channel + steps[k], k + 1
        out[group * rows.nr : (group + 1) * rows.nr] = np.clip(sums, low, high)
    if channel != rows.first:
        raise AssertionError("steps do not lead back to where they began")
    return out


@njit(inline="always")
def spmm(  # type: ignore[no-untyped-def]
    nr,
    x,
    start,
    stream,
    value,
    steps,
    step,
    counts,
    count,
    groups,
    out,
    to,
    stride,
    low,
    high,
    first,
    last,
    vectors,
):
    """`naive_spmm` of pixels [first, last), all arrays flat: see `spmm_lanes` for what each of them is."""
    if nr == 4:
        spmm_4(
            x, start, stream, value, steps, step, counts, count, groups, out, to, stride, low, high,
            first, last, vectors,
        )  # fmt: skip
    elif nr == 2:
        spmm_2(
            x, start, stream, value, steps, step, counts, count, groups, out, to, stride, low, high,
            first, last, vectors,
        )  # fmt: skip
    else:
        spmm_1(
            x, start, stream, value, steps, step, counts, count, groups, out, to, stride, low, high,
            first, last, vectors,
        )  # fmt: skip
