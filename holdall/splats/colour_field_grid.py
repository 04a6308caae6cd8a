"""A grid of features by hashing, read and taught (numba): places between corners see a blend of the eight around."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_PRIMES = (np.uint32(1), np.uint32(2654435761), np.uint32(805459861))


@njit(cache=True, nogil=True)
def _entry(x: Any, y: Any, z: Any, side: Any, size: Any) -> Any:
    """Of a corner: its own entry where a level has room for all of its corners, else the one that its hash names."""
    if (side + 1) * (side + 1) * (side + 1) <= size:
        return np.int64(x + (side + 1) * (y + (side + 1) * z))
    mixed = np.uint32(x) * _PRIMES[0] ^ np.uint32(y) * _PRIMES[1] ^ np.uint32(z) * _PRIMES[2]
    return np.int64(mixed & np.uint32(size - 1))


@njit(cache=True, nogil=True)
def _cell(place: Any, side: Any, low: Any, part: Any) -> None:
    for c in range(3):
        inside = place[c] if place[c] > np.float32(0) else np.float32(0)  # of what is no number, too
        at = min(inside, np.float32(1)) * np.float32(side)
        low[c] = min(np.int64(at), side - 1)
        part[c] = at - np.float32(low[c])


@njit(cache=True, nogil=True)
def _share(part: Any, corner: Any) -> Any:
    share = np.float32(1)
    for c in range(3):
        share *= part[c] if corner >> c & 1 else np.float32(1) - part[c]
    return share


@njit(cache=True, nogil=True)
def read(table: Any, places: Any, sides: Any, out: Any) -> None:
    """out [N, 2 * levels] of table [levels, size, 2] at places [N, 3] in 0 to 1."""
    low, part = np.zeros(3, np.int64), np.zeros(3, np.float32)
    for level in range(len(sides)):
        for i in range(len(places)):
            _cell(places[i], sides[level], low, part)
            one, two = np.float32(0), np.float32(0)
            for k in range(8):
                at = _entry(
                    low[0] + (k & 1), low[1] + (k >> 1 & 1), low[2] + (k >> 2), sides[level], table.shape[1]
                )
                share = _share(part, k)
                one += share * table[level, at, 0]
                two += share * table[level, at, 1]
            out[i, 2 * level] = one
            out[i, 2 * level + 1] = two


@njit(cache=True, nogil=True)
def taught(grad: Any, places: Any, sides: Any, out: Any) -> None:
    """Adds to out [levels, size, 2] what grad [N, 2 * levels] asks of each entry."""
    low, part = np.zeros(3, np.int64), np.zeros(3, np.float32)
    for level in range(len(sides)):
        for i in range(len(places)):
            _cell(places[i], sides[level], low, part)
            for k in range(8):
                at = _entry(
                    low[0] + (k & 1), low[1] + (k >> 1 & 1), low[2] + (k >> 2), sides[level], out.shape[1]
                )
                share = _share(part, k)
                out[level, at, 0] += share * grad[i, 2 * level]
                out[level, at, 1] += share * grad[i, 2 * level + 1]
