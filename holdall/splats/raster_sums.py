"""What each Gaussian adds to a picture, summed while one row of tiles is blended (numba)."""

from __future__ import annotations

from typing import Any

from numba import njit

from holdall.splats.raster_blend import CHECK, F, bright, fresh, lines_of, lit, shapes, spot
from holdall.splats.raster_lanes import load, most, select, spread, store, total
from holdall.splats.raster_project import SIDE
from holdall.splats.raster_tiles import in_row


@njit(inline="always")
def _weigh(flat: Any, i: Any, x0: Any, y0: Any, high: Any, light: Any, into: Any) -> None:
    """Add one Gaussian's sum, pixels and largest share in a tile to into [3]."""
    first, last, bend, opacity, x, lean, fall, down = shapes(flat, i, x0, y0, high)
    whole = pixels = largest = spread(F(0))
    for y in range(first, last + 1):
        alpha, _, _ = spot(x, lean, fall, down, bend, opacity)
        down += 1.0
        taken, after = lit(load(light, y * SIDE), alpha)
        store(light, y * SIDE, after)
        whole, pixels = whole + taken, pixels + select(F(0) < taken, F(1), F(0))
        largest = select(largest < taken, taken, largest)
    into[0] += total(whole)
    into[1] += total(pixels)
    into[2] = max(into[2], most(largest))


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(flat: Any, entries: Any, row: Any, height: Any, width: Any, into: Any) -> None:
    """Add to into [entries, 3] for a row of tiles."""
    wide = (width + SIDE - 1) // SIDE
    starts, held = in_row(flat, entries, row, wide, height)
    light = lines_of(SIDE)
    high = min(SIDE, height - row * SIDE)
    for t in range(wide):
        fresh(light, width - t * SIDE, high)
        for k in range(starts[t], starts[t + 1]):
            if (k - starts[t]) % CHECK == 0 and not bright(light):
                break
            e = held[k]
            _weigh(flat, entries[e], t * SIDE, row * SIDE, high, light, into[e])
