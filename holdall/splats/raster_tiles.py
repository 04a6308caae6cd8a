"""Which Gaussians each tile of 16 pixels holds, from the nearest to the farthest (numba).

Gaussians sorted by depth are dealt to the rows of tiles that they touch; each row then finds, by itself, the tiles of
each of its Gaussians. Dealing keeps the order, so there is nothing else to sort.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from holdall.splats.raster_project import SIDE


@njit(cache=True, nogil=True, error_model="numpy")
def dealt(flat: Any, rows: Any) -> Any:
    """For flat [n, FLAT] by depth: (first row of tiles of each [n], entries before each [n + 1], entries before each
    row [rows + 1], the Gaussian of each entry). Entries are by row, then by depth."""
    n = len(flat)
    top, before = np.empty(n, np.int32), np.zeros(n + 1, np.int64)
    starts = np.zeros(rows + 1, np.int64)
    for i in range(n):
        high = math.sqrt(flat[i, 6] / flat[i, 4])
        low = max(0.0, math.ceil(flat[i, 1] - high - 0.5)) // SIDE
        end = min(rows - 1.0, math.floor(flat[i, 1] + high - 0.5) // SIDE)
        top[i] = min(low, rows)
        before[i + 1] = before[i] + max(0, int(end) - top[i] + 1)
        for row in range(top[i], int(end) + 1):
            starts[row + 1] += 1
    starts = np.cumsum(starts)
    at, entries = starts.copy(), np.empty(before[n], np.int32)
    for i in range(n):
        for row in range(top[i], top[i] + before[i + 1] - before[i]):
            entries[at[row]] = i
            at[row] += 1
    return top, before, starts, entries


@njit(inline="always")
def _edges(flat: Any, i: Any, low: Any, high: Any) -> Any:
    """(left, right): how far the part of the ellipse between two heights (from its middle) goes."""
    lean, bend, fall, reach = flat[i, 2], flat[i, 3], flat[i, 4], flat[i, 6]
    tall = math.sqrt(reach / fall)
    low, high = max(low, -tall), min(high, tall)
    side = -lean * 0.5 / fall * math.sqrt(2 * reach / flat[i, 7])  # the height of the rightmost point
    at = min(max(side, low), high)
    right = -lean * at + math.sqrt(max(0.0, reach - fall * at * at) / bend)
    at = min(max(-side, low), high)
    left = -lean * at - math.sqrt(max(0.0, reach - fall * at * at) / bend)
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
        left, right = max(0.0, math.ceil(flat[i, 0] + left - 0.5)), math.floor(flat[i, 0] + right - 0.5)
        first[k] = min(left, 16.0 * wide) // SIDE
        last[k] = min(wide - 1.0, right // SIDE) if right >= left else -1
        for tile in range(first[k], last[k] + 1):
            starts[tile + 1] += 1
    starts = np.cumsum(starts)
    at, held = starts.copy(), np.empty(starts[wide], np.int32)
    for k in range(n):
        for tile in range(first[k], last[k] + 1):
            held[at[tile]] = k
            at[tile] += 1
    return starts, held
