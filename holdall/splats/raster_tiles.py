"""Which Gaussians each tile of 16 pixels holds, from the nearest to the farthest (numba).

Gaussians sorted by depth are dealt to the rows of tiles that they touch; each row then finds, by itself, the tiles of
each of its Gaussians. Dealing keeps the order, so there is nothing else to sort.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from holdall.splats.raster_project import SIDE, clamp


@njit(cache=True, nogil=True, error_model="numpy")
def dealt(tops: Any, rows: Any) -> Any:
    """For the rows of tiles [n, 2] that Gaussians by depth touch: (entries before each row [rows + 1], the Gaussian of
    each entry). Entries are by row, then by depth."""
    starts = np.zeros(rows + 1, np.int64)
    for i in range(len(tops)):
        for row in range(tops[i, 0], tops[i, 1]):
            starts[row + 1] += 1
    starts = np.cumsum(starts)
    at, entries = starts.copy(), np.empty(starts[rows], np.int32)
    for i in range(len(tops)):
        for row in range(tops[i, 0], tops[i, 1]):
            entries[at[row]] = i
            at[row] += 1
    return starts, entries


@njit(inline="always")
def _edges(flat: Any, i: Any, low: Any, high: Any) -> Any:
    """(left, right): how far the part of the ellipse between two heights (from its middle) goes."""
    lean, tall, side = flat[i, 2], flat[i, 6], flat[i, 7]
    low, high, wide = max(low, -tall), min(high, tall), math.sqrt(flat[i, 4] / flat[i, 3])
    at, back = min(max(side, low), high), min(max(-side, low), high)
    right = -lean * at + wide * math.sqrt(max(0.0, tall * tall - at * at))
    left = -lean * back - wide * math.sqrt(max(0.0, tall * tall - back * back))
    return left, right


@njit(cache=True, nogil=True, error_model="numpy")
def in_row(flat: Any, entries: Any, row: Any, wide: Any, height: Any) -> Any:
    """(entries before each tile [wide + 1], which of `entries` each tile holds): for one row of tiles."""
    n = len(entries)
    first, last = np.empty(n, np.int32), np.empty(n, np.int32)
    starts = np.zeros(wide + 1, np.int64)
    y0, y1 = row * SIDE + 0.5, min(row * SIDE + SIDE, height) - 0.5
    for k in range(n):
        i = entries[k]
        left, right = _edges(flat, i, y0 - flat[i, 1], y1 - flat[i, 1])
        left, right = flat[i, 0] + left - 0.5, flat[i, 0] + right - 0.5
        first[k] = math.ceil(clamp(left, 0.0, SIDE * wide)) // SIDE
        last[k] = math.floor(clamp(right, -1.0, SIDE * wide - 1.0)) // SIDE
        for tile in range(first[k], last[k] + 1):
            starts[tile + 1] += 1
    starts = np.cumsum(starts)
    at, held = starts.copy(), np.empty(starts[wide], np.int32)
    for k in range(n):
        for tile in range(first[k], last[k] + 1):
            held[at[tile]] = k
            at[tile] += 1
    return starts, held
