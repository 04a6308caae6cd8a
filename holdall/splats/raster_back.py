"""The way back through blending, of one row of tiles (numba, a line of a tile at once).

A tile is blended again, and each Gaussian's opacities and the light before it are kept. Then it is walked from the back
to the front with what is behind each pixel, as it is seen from there: no division, no rounding that grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.raster_blend import CHECK, MOST, PLANE, F, bright, fresh, lines_of, lit, shapes, spot
from holdall.splats.raster_lanes import count, fma, load, select, spread, store, total
from holdall.splats.raster_project import SIDE
from holdall.splats.raster_tiles import in_row

# Per Gaussian: sums over its pixels of the gradient s of its exponent's fall, of s u, s u u, s v, s u v, s v v for ways
# u along the line and v down from its middle; and the gradients of its red, green and blue.
SUMS = 9


@njit(inline="always")
def _again(flat: Any, i: Any, x0: Any, y0: Any, high: Any, light: Any, kept: Any, at: Any) -> Any:
    """Blend one Gaussian, keep from kept[at] on its opacities and the light before it; where the next one's begin."""
    first, last, bend, opacity, x, lean, fall, down = shapes(flat, i, x0, y0, high)
    for y in range(first, last + 1):
        alpha, _, _ = spot(x, lean, fall, down, bend, opacity)
        down += 1.0
        before = load(light, y * SIDE)
        taken, after = lit(before, alpha)
        store(light, y * SIDE, after)
        store(kept, at, select(F(0) < taken, alpha, F(0)))
        store(kept, at + SIDE, before)
        at += 2 * SIDE
    return at


@njit(inline="always")
def _unlay(
    flat: Any, colour: Any, i: Any, x0: Any, y0: Any, high: Any, tile: Any, kept: Any, end: Any, into: Any
) -> Any:
    """Add one Gaussian's SUMS; tile [4 planes: what is behind, gradients of red, green, blue]; where its kept begin."""
    first, last, _, _, x, lean, _, down = shapes(flat, i, x0, y0, high)
    red, green, blue = colour[i, 0], colour[i, 1], colour[i, 2]
    s0 = s1 = s2 = d0 = d1 = dd = r = g = b = spread(F(0))
    at = start = end - 2 * SIDE * max(0, last - first + 1)
    for y in range(first, last + 1):
        p = y * SIDE
        alpha, light, behind = load(kept, at), load(kept, at + SIDE), load(tile, p)
        by_red, by_green, by_blue = (
            load(tile, p + PLANE),
            load(tile, p + 2 * PLANE),
            load(tile, p + 3 * PLANE),
        )
        at += 2 * SIDE
        share = alpha * light
        r, g, b = fma(share, by_red, r), fma(share, by_green, g), fma(share, by_blue, b)
        more = fma(by_red, red, fma(by_green, green, by_blue * blue)) - behind
        store(tile, p, fma(alpha, more, behind))
        s = select(alpha < MOST, more * share, F(0))
        off = count() + F(x + lean * down)
        along, v = s * off, F(down)
        s0, s1, s2 = s0 + s, s1 + along, fma(along, off, s2)
        d0, d1, dd = fma(s, spread(v), d0), fma(along, spread(v), d1), fma(s, spread(v * v), dd)
        down += 1.0
    for k, one in enumerate((s0, s1, s2, d0, d1, dd, r, g, b)):
        into[k] += total(one)
    return start


@njit(inline="always")
def _wanted(x0: Any, y0: Any, size: Any, ground: Any, by_colour: Any, by_alpha: Any, tile: Any) -> None:
    """Fill a tile's planes for its last Gaussian: behind it is the ground."""
    tile[:] = 0
    for y in range(size[1]):
        for x in range(size[0]):
            at = y * SIDE + x
            tile[at] = -by_alpha[y0 + y, x0 + x]
            for c in range(3):
                tile[at] += ground[c] * by_colour[y0 + y, x0 + x, c]
                tile[at + (c + 1) * PLANE] = by_colour[y0 + y, x0 + x, c]


@njit(cache=True, nogil=True, error_model="numpy")
def unblend(
    flat: Any, colour: Any, entries: Any, row: Any, ground: Any, by_colour: Any, by_alpha: Any, into: Any
) -> None:
    """Add to into [entries, SUMS], for gradients by colour [H, W, 3] and by alpha [H, W]."""
    height, width = by_alpha.shape
    wide = (width + SIDE - 1) // SIDE
    starts, held = in_row(flat, entries, row, wide, height)
    tile, light = lines_of(4 * SIDE), lines_of(SIDE)
    kept = lines_of(2 * SIDE * np.diff(starts).max())  # of which only as much is touched as is needed
    y0 = row * SIDE
    for t in range(wide):
        x0 = t * SIDE
        size = min(SIDE, width - x0), min(SIDE, height - y0)
        fresh(light, size[0], size[1])
        at, k = 0, starts[t]
        while k < starts[t + 1] and ((k - starts[t]) % CHECK or bright(light)):
            at = _again(flat, entries[held[k]], x0, y0, size[1], light, kept, at)
            k += 1
        _wanted(x0, y0, size, ground, by_colour, by_alpha, tile)
        while k > starts[t]:
            k -= 1
            e = held[k]
            at = _unlay(flat, colour, entries[e], x0, y0, size[1], tile, kept, at, into[e])


@njit(cache=True, nogil=True, error_model="numpy")
def gathered(entries: Any, parts: Any, n: Any) -> Any:
    """parts [entries, SUMS] summed for each of n Gaussians, from the top of the picture down."""
    found = np.zeros((n, parts.shape[1]))
    for e in range(len(entries)):
        for k in range(parts.shape[1]):
            found[entries[e], k] += parts[e, k]
    return found
