"""The numba kernels of sign-and-low-rank blocks, each with its slow truth beside it.

A weight is the sum of L blocks, W = sum_l S_l * (A_l B_l): S holds one sign bit a weight (bit 1 = negative, eight
columns a byte, lowest bit first), A is [L, m, k], B is [L, k, n]. Compiled once, then cached beside this file.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.weights.lanes import ROWS, add_signed, sums_1, sums_2, sums_3, sums_4, sums_alone

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


@njit(nogil=True, cache=True, fastmath=True)
def rebuild(signs: np.ndarray, a: np.ndarray, b: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """Rows [first, last) of `naive_rebuild` into `out` [m, n]; signs are words [L, m, G], b is [L, k, 16 G]."""
    levels, _, groups = signs.shape
    k, n = b.shape[1], out.shape[1]
    for i in range(first, last):
        sizes = np.zeros(16 * groups, np.float32)
        total = np.zeros(16 * groups, np.float32)
        for level in range(levels):
            lead = a[level, i, 0]
            for j in range(16 * groups):
                sizes[j] = lead * b[level, 0, j]
            for r in range(1, k):
                factor = a[level, i, r]
                for j in range(16 * groups):
                    sizes[j] += factor * b[level, r, j]
            add_signed(signs[level, i], sizes, total)  # type: ignore[call-arg]
        for j in range(n):
            out[i, j] = total[j]


def naive_product(signs: np.ndarray, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y [m] = W x."""
    return naive_rebuild(signs, a, b).astype(np.float64) @ x.astype(np.float64)


@njit(nogil=True, cache=True, fastmath=True)
def product(
    signs: np.ndarray, a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, first: int, last: int
) -> None:
    """Rows [first, last) of `naive_product` into y [m] from the packed words [L, m, G]: W is never written.

    With z_r = B[r] * x, sum_j S_ij z_rj = sum_j z_rj - 2 * (the sum of z_rj over the negative signs of row i).
    """
    levels, _, groups = signs.shape
    k, n = b.shape[1], x.shape[0]
    z = np.zeros((levels, k, 16 * groups), np.float32)
    whole = np.zeros((levels, k), np.float32)
    for level in range(levels):
        for r in range(k):
            for j in range(n):
                z[level, r, j] = b[level, r, j] * x[j]
                whole[level, r] += z[level, r, j]
    for i in range(first, last):
        y[i] = 0
    negative, left = np.zeros(ROWS * 4, np.float32), last - (last - first) % ROWS
    for level in range(levels):
        r = 0
        while r < k:
            step = _step(k - r)
            for i in range(first, left, ROWS):
                _negative_sums(signs[level, i : i + ROWS], z[level, r:], negative, step)
                for t in range(ROWS):
                    for f in range(step):
                        part = whole[level, r + f] - np.float32(2) * negative[t * step + f]
                        y[i + t] += a[level, i + t, r + f] * part
            for i in range(left, last):
                for f in range(step):
                    sums_alone(signs[level, i : i + 1], z[level, r + f :], negative)
                    part = whole[level, r + f] - np.float32(2) * negative[0]
                    y[i] += a[level, i, r + f] * part
            r += step


@njit(nogil=True, cache=True)
def _step(left: int) -> int:
    """How many factors are summed at once: few enough for the processor's registers, and no single one left over."""
    return left if left <= 4 else 3 if left <= 6 else 4


@njit(nogil=True, cache=True, fastmath=True)
def _negative_sums(signs: np.ndarray, z: np.ndarray, out: np.ndarray, factors: int) -> None:
    if factors == 4:
        sums_4(signs, z, out)
    elif factors == 3:
        sums_3(signs, z, out)
    elif factors == 2:
        sums_2(signs, z, out)
    else:
        sums_1(signs, z, out)


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
