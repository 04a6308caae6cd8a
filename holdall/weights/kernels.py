"""The numba kernels of sign-and-low-rank blocks, each with its slow truth beside it.

A weight is the sum of L blocks, W = sum_l S_l * (A_l B_l): S holds one sign bit a weight (bit 1 = negative, eight
columns a byte, lowest bit first), A is [L, m, k], B is [L, k, n]. Compiled once, then cached beside this file.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.weights.lanes import ROWS, dots_1, dots_2, dots_3, dots_4
from holdall.weights.sign_lanes import build_1, build_4

_F32 = np.float32


def to_words(signs: np.ndarray) -> np.ndarray:
    """Sign bytes [..., ceil(n / 8)] as the 16-bit words of the kernels, [..., ceil(n / 16)]."""
    odd = signs.shape[-1] % 2
    padded = np.pad(signs, [(0, 0)] * (signs.ndim - 1) + [(0, odd)]) if odd else np.ascontiguousarray(signs)
    return padded.view("<u2")


def widen(b: np.ndarray) -> np.ndarray:
    """B [..., n] as float32 with zeros up to a multiple of 16 columns."""
    spare = -b.shape[-1] % 16
    return np.pad(b.astype(_F32), [(0, 0)] * (b.ndim - 1) + [(0, spare)])


def naive_rebuild(signs: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """W [m, n] from signs [L, m, bytes], a [L, m, k], b [L, k, n]."""
    bits = np.unpackbits(signs, axis=-1, bitorder="little")[..., : b.shape[-1]]  # [L, m, n]
    return ((1.0 - 2.0 * bits) * (a.astype(np.float64) @ b.astype(np.float64))).sum(0).astype(_F32)


@njit(nogil=True, cache=True)
def _aligned(rows: int, n: int) -> np.ndarray:
    """Zeros [rows, n] that start at a multiple of 64 bytes."""
    room = np.zeros(rows * n + 16, np.float32)
    skip = (-room.ctypes.data) % 64 // 4
    return room[skip : skip + rows * n].reshape(rows, n)


@njit(nogil=True, cache=True, fastmath=True)
def _tile(signs: np.ndarray, a: np.ndarray, b: np.ndarray, first: int, rows: int, tile: np.ndarray) -> None:
    """Up to four rows of W, from `first` on, into the first rows of a tile [4, 16 G]."""
    if rows == ROWS:
        build_4(signs, a, b, first, tile)
    else:
        for t in range(rows):
            build_1(signs, a, b, first + t, tile[t])


@njit(nogil=True, cache=True, fastmath=True)
def rebuild(
    signs: np.ndarray, a: np.ndarray, b: np.ndarray, out: np.ndarray, start: int, first: int, last: int
) -> None:
    """Rows [start + first, start + last) of `naive_rebuild` into rows [first, last) of `out` [., n].

    signs are words [L, m, G], a is [L, m, k], b [L, k, 16 G].
    """
    n = out.shape[1]
    tile = _aligned(ROWS, b.shape[2])
    for i in range(first, last, ROWS):
        some = min(ROWS, last - i)
        _tile(signs, a, b, start + i, some, tile)
        out[i : i + some] = tile[:some, :n]


def naive_products(signs: np.ndarray, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x W^T [T, m] for x [T, n]."""
    return x.astype(np.float64) @ naive_rebuild(signs, a, b).astype(np.float64).T


@njit(nogil=True, cache=True, fastmath=True)
def products(
    signs: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    start: int,
    first: int,
    last: int,
) -> None:
    """Columns [first, last) of `naive_products` into y [T, M] from column `start` on, for x [T, 16 G].

    Each sign is read once for all tokens: four rows of W at a time are made, in the nearest cache, and used at once.
    One token costs as much as it would to add up its products sign by sign; the seven after it cost a fifth more.
    """
    tile = _aligned(ROWS, x.shape[1])
    for i in range(first, last, ROWS):
        some = min(ROWS, last - i)
        _tile(signs, a, b, i, some, tile)
        _multiply(tile.reshape(-1), 0, some, x, y, start + i)


def naive_few(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x w^T [T, m] for dense w [m, n]."""
    return x.astype(np.float64) @ w.astype(np.float64).T


@njit(nogil=True, cache=True, fastmath=True)
def few(w: np.ndarray, x: np.ndarray, y: np.ndarray, first: int, last: int) -> None:
    """Columns [first, last) of `naive_few` into y [T, m]; w [m, 16 G] is float32, or bfloat16 as uint16.

    Each weight is read once, which is all that counts for a few tokens. (Libraries lay the matrix out anew for more
    than two tokens, and take two to three times as long for eight.)
    """
    whole, n = last - (last - first) % ROWS, x.shape[1]
    flat = w.reshape(-1)
    for i in range(first, whole, ROWS):
        _multiply(flat, i * n, ROWS, x, y, i)
    if whole < last:
        tile = np.zeros((ROWS, n), w.dtype)
        tile[: last - whole] = w[whole:last]
        _multiply(tile.reshape(-1), 0, last - whole, x, y, whole)


@njit(nogil=True, cache=True, fastmath=True)
def _multiply(w: np.ndarray, place: int, rows: int, x: np.ndarray, y: np.ndarray, start: int) -> None:
    """y[:, start : start + rows] = x times the rows from `place` on of a flat matrix, which has four of them there."""
    n, sums = x.shape[1], np.empty(16, np.float32)
    for first in range(0, len(x), 4):
        some = min(4, len(x) - first)
        dots(w, place, n, x, first, some, sums)
        for t in range(some):
            for i in range(rows):
                y[first + t, start + i] = sums[i * some + t]


@njit(nogil=True, cache=True, fastmath=True)
def dots(
    w: np.ndarray, start: int, stride: int, x: np.ndarray, first: int, tokens: int, out: np.ndarray
) -> None:
    """Four rows of w, `stride` apart from `start` on, times up to four tokens: see `lanes`."""
    if tokens == 4:
        dots_4(w, start, stride, x, first, out)
    elif tokens == 3:
        dots_3(w, start, stride, x, first, out)
    elif tokens == 2:
        dots_2(w, start, stride, x, first, out)
    else:
        dots_1(w, start, stride, x, first, out)


def naive_feedback_signs(
    work: np.ndarray, sizes: np.ndarray, upper: np.ndarray, strength: float
) -> np.ndarray:
    """Signs [L, m, n] (bool, True = minus) of magnitudes [L, m, n] that are to add up to `work`, column by column.

    `upper` is the upper Cholesky factor of the inverse second moment of the inputs: what a column got wrong is
    made good where the inputs are correlated with it (the classic error feedback of optimal brain surgery).
    """
    work, n = work.astype(np.float64), work.shape[1]
    negative = np.zeros(sizes.shape, bool)
    for j in range(n):
        left = work[:, j].copy()
        for level, size in enumerate(sizes[:, :, j]):
            negative[level, :, j] = (left >= 0) != (size >= 0)
            left -= np.where(negative[level, :, j], -size, size)
        work[:, j + 1 :] -= (strength * left / upper[j, j])[:, None] * upper[j, j + 1 :]
    return negative


@njit(nogil=True, cache=True, fastmath=True)
def feedback_panel(
    work: np.ndarray,
    sizes: np.ndarray,
    upper: np.ndarray,
    strength: float,
    out: np.ndarray,
    errors: np.ndarray,
    first: int,
    last: int,
) -> None:
    """`naive_feedback_signs` on a panel of columns [m, c]; `errors` [m, c] is for the columns behind the panel."""
    n = work.shape[1]
    for i in range(first, last):
        row = work[i].copy()
        for j in range(n):
            left = row[j]
            for level in range(sizes.shape[0]):
                size = sizes[level, i, j]
                flip = (left >= 0) != (size >= 0)
                out[level, i, j] = flip
                left += size if flip else -size
            error = np.float32(strength) * left / upper[j, j]
            errors[i, j] = error
            for t in range(j + 1, n):
                row[t] -= error * upper[j, t]
