"""Blending of one row of tiles, from the front to the back (numba, a line of a tile at once).

A Gaussian is computed on whole lines of a tile, those that its ellipse touches: on an AVX-512 core a line costs one
instruction of each kind, and to find the pixels between the ellipse's edges costs more than it saves. A pixel whose
light is used up keeps what is left of it as a negative number, so that no branch is needed to pass it by.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from holdall.splats.raster_lanes import count, fma, load, negative, power_of_two, select, some, spread, store
from holdall.splats.raster_project import LEAST, SIDE
from holdall.splats.raster_tiles import in_row

F = np.float32
PLANE = SIDE * SIDE
_DARK = F(1e-4)  # light that is not worth following
MOST = F(0.99)  # opacity of one Gaussian in one pixel
_LEAST = F(LEAST)
_FAR = F(-20)  # of powers of two: far below what is drawn
_LOG2 = 1 / math.log(2)
CHECK = 16  # Gaussians between looks at whether a tile is dark


@njit(inline="always")
def shapes(flat: Any, i: Any, x0: Any, y0: Any, high: Any) -> Any:
    """What `spot` needs of a Gaussian in a tile: (first and last line that it touches, bend, opacity, the first pixel's
    way from the middle, lean, fall, the first line's way from the middle). Exponents are of two."""
    down = y0 + 0.5 - flat[i, 1]
    first = math.ceil(max(-down - flat[i, 6], 0.0))
    last = math.floor(min(-down + flat[i, 6], high - 1.0))
    bend, fall = F(-_LOG2 * flat[i, 3]), -_LOG2 * flat[i, 4]
    return first, last, bend, F(flat[i, 5]), x0 + 0.5 - flat[i, 0], flat[i, 2], fall, down + first


@njit(inline="always")
def spot(x: Any, lean: Any, fall: Any, down: Any, bend: Any, opacity: Any) -> Any:
    """(opacities of a line of pixels, what they were before they were held down, ways from the line's middle)."""
    off = count() + F(x + lean * down)
    power = fma(off * off, bend, spread(F(fall * down * down)))
    free = power_of_two(select(power >= _FAR, power, _FAR)) * opacity
    return select(free < MOST, free, MOST), free, off


@njit(inline="always")
def lit(light: Any, alpha: Any) -> Any:
    """(what of the light each pixel takes from a Gaussian, the light after it)."""
    shown = select(alpha >= _LEAST, alpha, F(0))
    after = light * (F(1) - shown)
    bright = after >= _DARK
    return select(bright, shown * light, F(0)), select(bright, after, negative(light))


@njit(inline="always")
def lines_of(count: Any) -> Any:
    """float32 [count * SIDE], each line within one line of the cache."""
    room = np.empty(count * SIDE + SIDE, np.float32)
    skip = (-room.ctypes.data % 64) // 4
    return room[skip : skip + count * SIDE]


@njit(inline="always")
def fresh(light: Any, wide: Any, high: Any) -> None:
    """Light of a tile before its first Gaussian: 1 on pixels of the picture, used up elsewhere."""
    for y in range(SIDE):
        for x in range(SIDE):
            light[y * SIDE + x] = F(1) if x < wide and y < high else F(-1)


@njit(inline="always")
def bright(light: Any) -> Any:
    """Whether any pixel of a tile has light."""
    most = load(light, 0)
    for y in range(1, SIDE):
        line = load(light, y * SIDE)
        most = select(line >= most, line, most)
    return some(most >= F(0))


@njit(inline="always")
def _lay(flat: Any, colour: Any, i: Any, x0: Any, y0: Any, high: Any, tile: Any) -> Any:
    """One Gaussian into a tile [4 planes: light, red, green, blue]; lines computed."""
    first, last, bend, opacity, x, lean, fall, down = shapes(flat, i, x0, y0, high)
    red, green, blue = colour[i, 0], colour[i, 1], colour[i, 2]
    for y in range(first, last + 1):
        at = y * SIDE
        alpha, _, _ = spot(x, lean, fall, down, bend, opacity)
        down += 1.0
        taken, light = lit(load(tile, at), alpha)
        store(tile, at, light)
        store(tile, at + PLANE, fma(taken, red, load(tile, at + PLANE)))
        store(tile, at + 2 * PLANE, fma(taken, green, load(tile, at + 2 * PLANE)))
        store(tile, at + 3 * PLANE, fma(taken, blue, load(tile, at + 3 * PLANE)))
    return last - first + 1


@njit(cache=True, nogil=True, error_model="numpy")
def blend(
    flat: Any, colour: Any, entries: Any, row: Any, ground: Any, picture: Any, left: Any, counts: Any
) -> None:
    """Fill a row of tiles of picture [H, W, 3], and left [H, W], the light that reaches the ground.

    counts [3] of the row: pixels computed, Gaussians laid into tiles, Gaussians in the tiles' lists.
    """
    height, width = left.shape
    wide = (width + SIDE - 1) // SIDE
    starts, held = in_row(flat, entries, row, wide, height)
    tile = lines_of(4 * SIDE)
    y0 = row * SIDE
    for t in range(wide):
        x0 = t * SIDE
        size = min(SIDE, width - x0), min(SIDE, height - y0)
        tile[PLANE:] = 0
        fresh(tile, size[0], size[1])
        counts[2] += starts[t + 1] - starts[t]
        for k in range(starts[t], starts[t + 1]):
            if (k - starts[t]) % CHECK == 0 and not bright(tile):
                break
            counts[0] += SIDE * _lay(flat, colour, entries[held[k]], x0, y0, size[1], tile)
            counts[1] += 1
        for y in range(size[1]):
            for x in range(size[0]):
                at = y * SIDE + x
                rest = abs(tile[at])
                left[y0 + y, x0 + x] = rest
                for c in range(3):
                    picture[y0 + y, x0 + x, c] = tile[at + (c + 1) * PLANE] + rest * ground[c]
