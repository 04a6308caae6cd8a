"""What a convolutional net does besides sparse 1x1 convolutions, on channels of pixels (CHW), with slow truths beside.

A convolution KxK is the same product of rows with strips of pixels: its input is copied into a scratch with a border of
zeros (and, for strides, every other row and column apart), and what the sparse kernel takes for channels are then taps,
a fixed number of floats from each other. Depthwise ones have a kernel of their own.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.floats import exp
from holdall.weights.chw_lanes import copy_rows, taps_1, taps_2
from holdall.weights.spmm_kernels import spmm

_FAST = {"contract", "nsz", "reassoc", "arcp"}
_ONE, _THREE, _SIX = (np.float32(n) for n in (1, 3, 6))
_TINY = np.finfo(np.float32).tiny
CURVES = ("none", "silu", "sigmoid", "hardswish", "hardsigmoid", "relu")


def naive_conv(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: tuple[int, int], pad: tuple[int, int, int, int], groups: int
) -> np.ndarray:  # fmt: skip
    """x [I, H, W], w [O, I / groups, K, L], pad (left, right, top, bottom) -> [O, OH, OW]."""
    left, right, top, bottom = pad
    x = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right)))
    o, i, k, ell = w.shape
    h, wide = (x.shape[1] - k) // stride[0] + 1, (x.shape[2] - ell) // stride[1] + 1
    out = np.repeat(b.astype(np.float64), h * wide).reshape(o, h, wide)
    for r in range(o):
        base = r // (o // groups) * i
        for c in range(i):
            for dy in range(k):
                for dx in range(ell):
                    taken = x[
                        base + c, dy : dy + h * stride[0] : stride[0], dx : dx + wide * stride[1] : stride[1]
                    ]
                    out[r] += w[r, c, dy, dx] * taken[:h, :wide]
    return out


@njit(nogil=True, cache=True)
def _fill_row(arena, to, pitch, source, width, step, shift):  # type: ignore[no-untyped-def]
    """arena[to + j] = column j * step + shift of a row, zeros where there is none."""
    first = min(max(0, -(shift // step)), pitch)
    last = max(first, min(pitch, (width - 1 - shift) // step + 1))
    for j in range(first):
        arena[to + j] = 0
    if step == 1:
        copy_rows(arena, source + first + shift, 0, arena, to + first, 0, 1, last - first)
    else:
        for j in range(first, last):
            arena[to + j] = arena[source + j * step + shift]
    for j in range(last, pitch):
        arena[to + j] = 0


@njit(nogil=True, cache=True)
def _fill(op, arena, group, scratch, first, last):  # type: ignore[no-untyped-def]
    """Rows of taps for output rows [first, last): [input channel, row phase, column phase, tall, pitch]."""
    for c in range(op.inputs):
        plane = op.x + (group * op.inputs + c) * op.x_stride
        for py in range(min(op.k, op.step_y)):
            for px in range(min(op.l, op.step_x)):
                base = (
                    scratch
                    + ((c * min(op.k, op.step_y) + py) * min(op.l, op.step_x) + px) * op.tall * op.pitch
                )
                for y in range(first, last + (op.k - 1) // op.step_y):
                    row, to = y * op.step_y + py - op.top, base + y * op.pitch
                    if 0 <= row < op.h:
                        _fill_row(arena, to, op.pitch, plane + row * op.w, op.w, op.step_x, px - op.left)
                    else:
                        for j in range(op.pitch):
                            arena[to + j] = 0


@njit(inline="always")
def conv(op, arena, stream, steps, counts, part, parts):  # type: ignore[no-untyped-def]
    """`naive_conv`, clamped: groups are shared among parts, or output rows where there is one group."""
    one = op.groups == 1
    g_first, g_last = (0, 1) if one else (op.groups * part // parts, op.groups * (part + 1) // parts)
    first, last = (op.out_h * part // parts, op.out_h * (part + 1) // parts) if one else (0, op.out_h)
    scratch = op.scratch + part * op.scratch_size
    flat, rows = scratch + op.flat, op.outputs // op.nr
    for g in range(g_first, g_last):
        _fill(op, arena, g, scratch, first, last)
        value, out = op.value + g * op.values, op.out + g * op.outputs * op.out_stride
        to, stride, until, times = out, op.out_stride, op.out_w, last - first
        if op.flat:  # all rows in one
            to, stride, until, times = (
                flat,
                op.flat_stride,
                ((last - 1) * op.pitch + op.out_w + 15) // 16 * 16,
                1,
            )
        for y in range(first, first + times):
            begin = first * op.pitch // 16 * 16 if op.flat else 0
            spmm(
                op.nr, arena, scratch + (0 if op.flat else y * op.pitch), stream, value, steps, op.step, counts,
                op.count, rows, arena, to + (0 if op.flat else y * op.out_w), stride, op.low, op.high, begin, until,
                op.vectors,
            )  # fmt: skip
        if not op.flat:
            continue
        for o in range(op.outputs):
            copy_rows(
                arena, flat + o * op.flat_stride + first * op.pitch, op.pitch, arena,
                out + o * op.out_stride + first * op.out_w, op.out_w, last - first, op.out_w,
            )  # fmt: skip


@njit(nogil=True, cache=True)
def depthwise(op, arena, stream, part, parts):  # type: ignore[no-untyped-def]
    """`naive_conv` of one channel at a time, clamped: each is copied into a border of zeros that stays."""
    scratch = op.scratch + part * op.scratch_size
    for i in range(op.tall * op.pitch):
        arena[scratch + i] = 0
    inner = scratch + op.top * op.pitch + op.left
    for c in range(op.groups * part // parts, op.groups * (part + 1) // parts):
        copy_rows(arena, op.x + c * op.x_stride, op.w, arena, inner, op.pitch, op.h, op.w)
        value, out = op.value + c * op.values, op.out + c * op.out_stride
        if op.step_x == 1:
            taps_1(
                arena, scratch, op.pitch, stream, value, op.k, op.l, arena, out, op.out_h, op.out_w,
                op.low, op.high,
            )  # fmt: skip
        else:
            taps_2(
                arena, scratch, op.pitch, stream, value, op.k, op.l, arena, out, op.out_h, op.out_w,
                op.low, op.high,
            )  # fmt: skip


def naive_full(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return w.astype(np.float64) @ x + b


@njit(nogil=True, cache=True, fastmath=_FAST)
def full(op, arena, stream, part, parts):  # type: ignore[no-untyped-def]
    """`naive_full` of one pixel, clamped: stream holds O biases and then [O, I]."""
    x = arena[op.x : op.x + op.inputs]
    for o in range(op.outputs * part // parts, op.outputs * (part + 1) // parts):
        start = op.value + op.outputs + o * op.inputs
        row = stream[start : start + op.inputs]
        total = np.float32(0)
        for i in range(op.inputs):
            total += row[i] * x[i]
        arena[op.out + o] = min(max(total + stream[op.value + o], op.low), op.high)


@njit(nogil=True, cache=True)
def flush(x):  # type: ignore[no-untyped-def]
    """Denormal numbers to 0, in place: each would slow the multiply-adds that it meets down by a hundred."""
    for i in range(len(x)):
        if abs(x[i]) < _TINY:
            x[i] = 0


def naive_mean(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64).mean(1)


@njit(nogil=True, cache=True, fastmath=_FAST)
def mean(op, arena, part, parts):  # type: ignore[no-untyped-def]
    """`naive_mean`: each channel's pixels, into one vector."""
    for c in range(op.inputs * part // parts, op.inputs * (part + 1) // parts):
        x = arena[op.x + c * op.x_stride : op.x + c * op.x_stride + op.pixels]
        total = np.float32(0)
        for i in range(op.pixels):
            total += x[i]
        arena[op.out + c] = total / np.float32(op.pixels)


def naive_mixed(x: np.ndarray, y: np.ndarray, product: bool) -> np.ndarray:
    """x [C, P] with y [C, P] added to it, or y [C] multiplied into it."""
    return x.astype(np.float64) * y[:, None] if product else x.astype(np.float64) + y


@njit(nogil=True, cache=True, fastmath=_FAST)
def mixed(op, arena, part, parts):  # type: ignore[no-untyped-def]
    """`naive_mixed`, clamped; for vectors, too (one pixel, a stride of 1)."""
    for c in range(op.inputs * part // parts, op.inputs * (part + 1) // parts):
        x, out = op.x + c * op.x_stride, op.out + c * op.out_stride
        if op.mode:
            factor = arena[op.y + c]
            for i in range(op.pixels):
                arena[out + i] = min(max(arena[x + i] * factor, op.low), op.high)
        else:
            y = op.y + c * op.y_stride
            for i in range(op.pixels):
                arena[out + i] = min(max(arena[x + i] + arena[y + i], op.low), op.high)


def naive_curve(x: np.ndarray, mode: int) -> np.ndarray:
    x = x.astype(np.float64)
    hard = np.clip(x / 6 + 0.5, 0, 1)
    soft = 1 / (1 + np.exp(-x))
    return (x, x * soft, soft, x * hard, hard, x)[mode]


@njit(nogil=True, cache=True, fastmath=_FAST)
def curve(op, arena, part, parts):  # type: ignore[no-untyped-def]
    """`naive_curve`; only what is no curve (modes 0 and 5) is clamped."""
    for c in range(op.inputs * part // parts, op.inputs * (part + 1) // parts):
        x = arena[op.x + c * op.x_stride : op.x + c * op.x_stride + op.pixels]
        out = arena[op.out + c * op.out_stride : op.out + c * op.out_stride + op.pixels]
        if op.mode == 1 or op.mode == 2:
            for i in range(op.pixels):
                soft = _ONE / (_ONE + exp(min(-x[i], np.float32(80))))
                out[i] = x[i] * soft if op.mode == 1 else soft
        elif op.mode == 3 or op.mode == 4:
            for i in range(op.pixels):
                hard = min(max(x[i] + _THREE, np.float32(0)), _SIX) / _SIX
                out[i] = x[i] * hard if op.mode == 3 else hard
        else:
            for i in range(op.pixels):
                out[i] = min(max(x[i], op.low), op.high)
