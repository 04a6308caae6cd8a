"""Momentum SGD with a rate of its own for each block of rows, in one pass and in place."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _block(p, g, m, beta, keep, decay, rate):  # type: ignore[no-untyped-def]
    for i in range(len(p)):
        new = beta * m[i] + keep * g[i]
        m[i] = new
        p[i] = p[i] * decay - rate * new


@njit(nogil=True, cache=True, error_model="numpy")
def step(p, g, m, rates, beta, keep, decay):  # type: ignore[no-untyped-def]
    """p, g, m float32 [N] in len(rates) equal blocks; keep: of the gradient, less than none to maximize."""
    size = len(p) // len(rates)
    for b in range(len(rates)):
        part = slice(b * size, (b + 1) * size)
        _block(p[part], g[part], m[part], beta, keep, decay, np.float32(rates[b]))


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def sums(g, out):  # type: ignore[no-untyped-def]
    """out float64 [blocks, 2]: sums of g float32 [blocks, n] and of its squares."""
    for b in range(len(g)):
        row, total, squares = g[b], 0.0, 0.0
        for i in range(len(row)):
            x = np.float64(row[i])
            total += x
            squares += x * x
        out[b, 0], out[b, 1] = total, squares
