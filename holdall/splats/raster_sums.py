"""What each Gaussian adds to a picture, summed while one row of tiles is blended (numba)."""

from __future__ import annotations

from typing import Any

from numba import njit

from holdall.splats.raster_blend import CHECK, bright, fresh, lines_of, lit, shapes, spot
from holdall.splats.raster_lanes import load, store
from holdall.splats.raster_project import SIDE
from holdall.splats.raster_tiles import in_row


@njit(inline="always")
def _weigh(flat: Any, i: Any, x0: Any, y0: Any, high: Any, light: Any, share: Any, into: Any) -> None:
    """Add one Gaussian's sum, pixels and largest share in a tile to into [3]."""
    first, last, bend, opacity, x, lean, fall, down = shapes(flat, i, x0, y0, high)
    for y in range(first, last + 1):
        alpha, _, _ = spot(x, lean, fall, down, bend, opacity)
        down += 1.0
        taken, after = lit(load(light, y * SIDE), alpha)
        store(light, y * SIDE, after)
        store(share, 0, taken)
        for lane in range(SIDE):
            one = float(share[lane])
            into[0] += one
            into[1] += one > 0
            into[2] = max(into[2], one)


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(flat: Any, entries: Any, row: Any, height: Any, width: Any, into: Any) -> None:
    """Add to into [entries, 3] for a row of tiles."""
    wide = (width + SIDE - 1) // SIDE
    starts, held = in_row(flat, entries, row, wide, height)
    light, share = lines_of(SIDE), lines_of(1)
    high = min(SIDE, height - row * SIDE)
    for t in range(wide):
        fresh(light, width - t * SIDE, high)
        for k in range(starts[t], starts[t + 1]):
            if (k - starts[t]) % CHECK == 0 and not bright(light):
                break
            e = held[k]
            _weigh(flat, entries[e], t * SIDE, row * SIDE, high, light, share, into[e])
