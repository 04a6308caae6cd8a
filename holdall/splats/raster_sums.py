"""What each Gaussian adds to a picture, summed while one row of tiles is blended (numba)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from holdall.splats.raster_blend import (
    _CHECK,
    _LOG2,
    LINE,
    PLANE,
    WIDE,
    F,
    alphas,
    fresh,
    line,
    lit,
    looked,
)
from holdall.splats.raster_lanes import count, load, spread, store
from holdall.splats.raster_project import SIDE
from holdall.splats.raster_tiles import in_row


@njit(cache=True, nogil=True, error_model="numpy")
def _weigh(
    flat: Any, i: Any, x0: Any, y0: Any, size: Any, bright: Any, light: Any, share: Any, into: Any
) -> None:
    """Add one Gaussian's sum, pixels and largest share in a tile to into [3]."""
    tall = math.sqrt(flat[i, 6] / flat[i, 4])
    first = max(0, math.ceil(max(flat[i, 1] - tall - 0.5 - y0, 0.0)))
    last = min(size[1] - 1, math.floor(min(flat[i, 1] + tall - 0.5 - y0, 16.0)))
    bend, opacity = F(-_LOG2 * flat[i, 3]), F(flat[i, 5])
    for y in range(first, last + 1):
        if not bright[y]:
            continue
        middle, half, fallen, _ = line(flat, i, y0 + y)
        middle -= x0 + 0.5
        left = math.ceil(max(middle - half, 0.0))
        right = math.floor(min(middle + half, size[0] - 1.0))
        fell, off = F(-_LOG2 * fallen), F(left - middle)
        for at in range(y * LINE + left, y * LINE + right + 1, WIDE):
            alpha, _ = alphas(count() + off, bend, spread(fell), opacity)
            off += F(WIDE)
            taken, after = lit(load(light, at), alpha)
            store(light, at, after)
            store(share, 0, taken)
            for lane in range(WIDE):
                one = float(share[lane])
                into[0] += one
                into[1] += one > 0
                into[2] = max(into[2], one)


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(flat: Any, entries: Any, row: Any, height: Any, width: Any, into: Any) -> None:
    """Add to into [entries, 3] for a row of tiles."""
    wide = (width + SIDE - 1) // SIDE
    starts, held = in_row(flat, entries, row, wide, height)
    light, bright = np.empty(PLANE, np.float32), np.empty(SIDE, np.bool_)
    share = np.empty(WIDE, np.float32)
    for t in range(wide):
        size = min(SIDE, width - t * SIDE), min(SIDE, height - row * SIDE)
        fresh(light, size[0], size[1])
        for k in range(starts[t], starts[t + 1]):
            if (k - starts[t]) % _CHECK == 0 and not looked(light, bright, size[1]):
                break
            e = held[k]
            _weigh(flat, entries[e], t * SIDE, row * SIDE, size, bright, light, share, into[e])
