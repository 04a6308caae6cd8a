"""The kernel of `holdall.parts.attention.mass`: scores of a few queries stay near until they have been added up."""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.floats import wide
from holdall.parts.tiles import COLUMNS, ROWS, peak, powers, tile

_F32 = np.float32


@njit(nogil=True, cache=True, fastmath=True)
def sums(q, q_brain, q_steps, k, k_brain, k_steps, d, scale, sees, more, out, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, T] += softmax weights summed over queries, for the heads first to last, of H a row.

    q, k: float32, or 16 bits (bfloat16 where `brain`, else halves), flat; steps [4]: H, and how far the next row, head
    (of queries, so G a key head) and token are. d: numbers of each. sees [M, W]: how many of the first keys a query
    sees; more [M, T]: what is added to scores, or of no size; far below zero, the key may be anything.
    """
    heads, groups, total = q_steps[0], out.shape[1], out.shape[2]
    wide_ = (total + COLUMNS - 1) // COLUMNS * COLUMNS
    strip, some = _aligned(ROWS * wide_).reshape(ROWS, wide_), np.zeros((ROWS, d), np.float32)
    panels, shares = _aligned(wide_ * d), np.empty(ROWS, np.float32)
    for head in range(first, last):
        row, h = head // heads, head % heads
        _panels(
            k[row * k_steps[1] + h * k_steps[2] :], k_brain, k_steps[3], scale, more[head], panels, d, total
        )
        for g in range(groups):
            mine = q[row * q_steps[1] + (h * groups + g) * q_steps[2] :]
            for start in range(0, sees.shape[1], ROWS):
                rows, end = min(ROWS, sees.shape[1] - start), 0
                for r in range(rows):
                    end = max(end, sees[head, start + r])
                    for c in range(d):
                        some[r, c] = wide(mine[(start + r) * q_steps[3] + c], q_brain)
                for p in range((end + COLUMNS - 1) // COLUMNS):
                    tile(some, 0, d, panels, p * d * COLUMNS, strip, p * COLUMNS, wide_)
                for r in range(rows):
                    shares[r] = _weights(strip[r], more[head], sees[head, start + r], end)
                for r in range(rows, ROWS):
                    shares[r] = 0
                    strip[r, :end] = 0
                _add(strip, shares, out[head, g], end)


@njit(nogil=True, cache=True)
def _aligned(count):  # type: ignore[no-untyped-def]
    """Zeros that start with a line of the cache: vectors that cross one are read twice."""
    room = np.zeros(count + 16, np.float32)
    first = (64 - room.ctypes.data % 64) // 4 % 16
    return room[first : first + count]


@njit(nogil=True, cache=True, fastmath=True)
def _panels(k, brain, step, scale, more, out, d, total):  # type: ignore[no-untyped-def]
    """Keys of one head, scaled: COLUMNS of them side by side, number by number. out [P * D * COLUMNS]."""
    for start in range(0, total, COLUMNS):
        some = min(COLUMNS, total - start)
        for c in range(d):
            line = out[start * d + c * COLUMNS : start * d + c * COLUMNS + some]
            for i in range(some):
                line[i] = wide(k[(start + i) * step + c], brain) * scale
        for i in range(some):
            if more.shape[0] and more[start + i] < _F32(-1e29):
                for c in range(d):
                    out[start * d + c * COLUMNS + i] = 0


@njit(nogil=True, cache=True, fastmath=True)
def _weights(row, more, sees, end):  # type: ignore[no-untyped-def]
    """Scores of one query become weights but for a factor, which is returned; 0 for keys that it does not see."""
    if more.shape[0]:
        for t in range(sees):
            row[t] += more[t]
    full = (sees + COLUMNS - 1) // COLUMNS * COLUMNS
    row[sees:full] = _F32(-1e38)
    top = peak(row, full)
    if top < _F32(-1e29):  # nothing is seen
        row[:end] = 0
        return _F32(0)
    whole = powers(row, full, top)
    row[full:end] = 0
    return _F32(1) / whole


@njit(nogil=True, cache=True, fastmath=True)
def _add(strip, shares, out, end):  # type: ignore[no-untyped-def]
    """out [T] += the rows of a strip, each times its share."""
    for r in range(0, ROWS, 4):
        a, b, c, d = shares[r], shares[r + 1], shares[r + 2], shares[r + 3]
        for t in range(end):
            out[t] += a * strip[r, t] + b * strip[r + 1, t] + c * strip[r + 2, t] + d * strip[r + 3, t]
