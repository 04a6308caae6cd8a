"""The kernel of `holdall.parts.attention.mass`: scores of a strip of queries stay near until they have been added up."""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.tiles import COLUMNS, ROWS, peak, powers, tile

_F32 = np.float32


@njit(nogil=True, cache=True, fastmath=True)
def sums(q, panels, sees, more, out, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, T] += softmax weights summed over queries, for the heads first to last.

    q [M, G, W, D]: scaled; panels [M, P, D, COLUMNS]: keys by COLUMNS, one after the other; sees [M, W]: how many of
    the first keys a query sees; more [M, T]: what is added to scores, or of no size.
    """
    groups, w, d = q.shape[1], q.shape[2], q.shape[3]
    wide = panels.shape[1] * COLUMNS
    strip, some = np.empty((ROWS, wide), np.float32), np.zeros((ROWS, d), np.float32)
    shares = np.empty(ROWS, np.float32)
    for head in range(first, last):
        flat = panels[head].reshape(-1)
        for g in range(groups):
            for start in range(0, w, ROWS):
                rows, end = min(ROWS, w - start), 0
                for r in range(rows):
                    end = max(end, sees[head, start + r])
                    some[r] = q[head, g, start + r]
                for p in range((end + COLUMNS - 1) // COLUMNS):
                    tile(some, 0, d, flat, p * d * COLUMNS, strip, p * COLUMNS, wide)
                for r in range(rows):
                    shares[r] = _weights(strip[r], more[head], sees[head, start + r], end)
                for r in range(rows, ROWS):
                    shares[r] = 0
                    strip[r, :end] = 0
                _add(strip, shares, out[head, g], end)


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
