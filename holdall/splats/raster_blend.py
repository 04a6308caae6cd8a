"""Blending of one row of tiles, from the front to the back (numba, eight pixels at once).

Each Gaussian is computed only over the pixels between the edges of its ellipse on each line. A pixel whose light is
used up keeps what is left of it as a negative number, so that no branch is needed to pass it by.
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
WIDE = 8
LINE = SIDE + WIDE  # floats of a tile's line: lanes may hang over its end
PLANE = LINE * SIDE
_DARK = F(1e-4)  # light that is not worth following
MOST = F(0.99)  # opacity of one Gaussian in one pixel
_LEAST = F(LEAST)
_FAR = F(-20)  # of powers of two: far below what is drawn
_LOG2 = 1 / math.log(2)
_CHECK = 16  # Gaussians between looks at which lines are dark


@njit(inline="always")
def line(flat: Any, i: Any, y: Any) -> Any:
    """(middle of the ellipse on that line, half its width or less than 0, its exponent there)."""
    down = y + 0.5 - flat[i, 1]
    fallen = flat[i, 4] * down * down
    rest = flat[i, 6] - fallen
    return flat[i, 0] - flat[i, 2] * down, (math.sqrt(rest / flat[i, 3]) if rest >= 0 else -1.0), fallen, down


@njit(inline="always")
def alphas(off: Any, bend: Any, fallen: Any, opacity: Any) -> Any:
    """(opacities of eight pixels at distances `off` from the middle of their line, exponentials)."""
    power = fma(off * off, bend, fallen)
    held = power_of_two(select(power >= _FAR, power, _FAR))
    alpha = held * opacity
    return select(alpha < MOST, alpha, MOST), held


@njit(inline="always")
def lit(light: Any, alpha: Any) -> Any:
    """(what of the light each pixel takes from a Gaussian, the light after it)."""
    after = light * (F(1) - alpha)
    seen, bright = alpha >= _LEAST, after >= _DARK
    taken = select(seen & bright, alpha * light, F(0))
    return taken, select(seen, select(bright, after, negative(light)), light)


@njit(inline="always")
def fresh(light: Any, wide: Any, high: Any) -> None:
    """Light of a tile before its first Gaussian: 1 on pixels of the picture, used up elsewhere."""
    for y in range(SIDE):
        for x in range(LINE):
            light[y * LINE + x] = F(1) if x < wide and y < high else F(-1)


@njit(inline="always")
def looked(light: Any, bright: Any, high: Any) -> Any:
    """Mark the lines with light; whether there are any."""
    any_line = False
    for y in range(high):
        at = y * LINE
        bright[y] = some(load(light, at) >= F(0)) or some(load(light, at + WIDE) >= F(0))
        any_line = any_line or bright[y]
    return any_line


@njit(cache=True, nogil=True, error_model="numpy")
def _lay(flat: Any, colour: Any, i: Any, x0: Any, y0: Any, size: Any, bright: Any, tile: Any) -> Any:
    """One Gaussian into a tile [4 planes: light, red, green, blue]; pixels computed."""
    tall = math.sqrt(flat[i, 6] / flat[i, 4])
    first = max(0, math.ceil(max(flat[i, 1] - tall - 0.5 - y0, 0.0)))
    last = min(size[1] - 1, math.floor(min(flat[i, 1] + tall - 0.5 - y0, 16.0)))
    bend, opacity = F(-_LOG2 * flat[i, 3]), F(flat[i, 5])
    red, green, blue = colour[i, 0], colour[i, 1], colour[i, 2]
    done = 0
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
            taken, light = lit(load(tile, at), alpha)
            store(tile, at, light)
            store(tile, at + PLANE, fma(taken, red, load(tile, at + PLANE)))
            store(tile, at + 2 * PLANE, fma(taken, green, load(tile, at + 2 * PLANE)))
            store(tile, at + 3 * PLANE, fma(taken, blue, load(tile, at + 3 * PLANE)))
            done += WIDE
    return done


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
    tile, bright = np.empty(4 * PLANE, np.float32), np.empty(SIDE, np.bool_)
    y0 = row * SIDE
    for t in range(wide):
        x0 = t * SIDE
        size = min(SIDE, width - x0), min(SIDE, height - y0)
        tile[PLANE:] = 0
        fresh(tile, size[0], size[1])
        counts[2] += starts[t + 1] - starts[t]
        for k in range(starts[t], starts[t + 1]):
            if (k - starts[t]) % _CHECK == 0 and not looked(tile, bright, size[1]):
                break
            counts[0] += _lay(flat, colour, entries[held[k]], x0, y0, size, bright, tile)
            counts[1] += 1
        for y in range(size[1]):
            for x in range(size[0]):
                at = y * LINE + x
                rest = abs(tile[at])
                left[y0 + y, x0 + x] = rest
                for c in range(3):
                    picture[y0 + y, x0 + x, c] = tile[at + (c + 1) * PLANE] + rest * ground[c]
