"""A net as a list of operations on one array of floats, run from first to last without leaving compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.weights.chw_kernels import conv, curve, depthwise, full, mean, mixed
from holdall.weights.spmm_kernels import LINE, spmm

KINDS = ("rows", "conv", "depthwise", "full", "mean", "mixed", "curve")
_ROWS, _CONV, _DEPTHWISE, _FULL, _MEAN, _MIXED = range(6)

_WHOLE = [
    "kind", "x", "x_stride", "y", "y_stride", "out", "out_stride", "pixels", "inputs", "outputs", "mode", "work",
    "nr", "value", "values", "step", "count", "first", "vectors",  # of rows: places in stream, steps and counts
    "h", "w", "out_h", "out_w", "k", "l", "step_y", "step_x", "top", "left", "groups",  # of a convolution
    "scratch", "scratch_size", "tall", "pitch", "flat", "flat_stride",  # and where it has its input with a border
]  # fmt: skip
OP = np.dtype([(name, np.int64) for name in _WHOLE] + [("low", np.float32), ("high", np.float32)], align=True)


def as_ops(ops: list[dict[str, Any]]) -> np.ndarray:
    """What is not told is 0."""
    made = np.zeros(len(ops), OP)
    for i, op in enumerate(ops):
        for name, value in op.items():
            made[i][name] = value
    return made


@njit(nogil=True, cache=True)
def run(ops, arena, out, stream, steps, counts, first_op, last_op, parts, first, last):  # type: ignore[no-untyped-def]
    """Operations [first_op, last_op), parts [first, last) of `parts` of each: blocks of pixels, or channels.

    out: the array that rows write to; of a net the arena. One function, because each copy of the kernels takes seconds
    to compile.
    """
    for i in range(first_op, last_op):
        op = ops[i]
        for part in range(first, last):
            if op.kind == _ROWS:
                lines = -(-op.pixels // LINE)
                begin, end = lines * part // parts * LINE, min(lines * (part + 1) // parts * LINE, op.pixels)
                spmm(
                    op.nr, arena, op.x + op.first * op.x_stride, stream, op.value, steps, op.step, counts, op.count,
                    op.outputs // op.nr, out, op.out, op.out_stride, op.low, op.high, begin, end, op.vectors,
                )  # fmt: skip
            elif op.kind == _CONV:
                conv(op, arena, stream, steps, counts, part, parts)
            elif op.kind == _DEPTHWISE:
                depthwise(op, arena, stream, part, parts)
            elif op.kind == _FULL:
                full(op, arena, stream, part, parts)
            elif op.kind == _MEAN:
                mean(op, arena, part, parts)
            elif op.kind == _MIXED:
                mixed(op, arena, part, parts)
            else:
                curve(op, arena, part, parts)
