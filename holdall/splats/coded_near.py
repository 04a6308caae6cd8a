"""Order and neighbours: Morton's curve over a grid, and for each place the nearest ones that came before it (numba).

Whole numbers only, so that packing and unpacking find the same neighbours on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

NEAR = 6
AXIS_BITS = 21  # of a place along an axis: three of them fill a key
_CROWD = 24  # places of one cell that are looked at
_FAR = np.int64(1) << np.int64(60)


@njit(cache=True, nogil=True)
def _apart(x: Any) -> Any:
    """The bits of a number, two zeros between each."""
    x = np.uint64(x) & np.uint64(0x1FFFFF)
    x = (x | x << np.uint64(32)) & np.uint64(0x1F00000000FFFF)
    x = (x | x << np.uint64(16)) & np.uint64(0x1F0000FF0000FF)
    x = (x | x << np.uint64(8)) & np.uint64(0x100F00F00F00F00F)
    x = (x | x << np.uint64(4)) & np.uint64(0x10C30C30C30C30C3)
    return (x | x << np.uint64(2)) & np.uint64(0x1249249249249249)


@njit(cache=True, nogil=True)
def key(x: Any, y: Any, z: Any) -> Any:
    return _apart(x) << np.uint64(2) | _apart(y) << np.uint64(1) | _apart(z)


@njit(cache=True, nogil=True)
def keys(places: Any) -> Any:
    """uint64 [N] of int64 [N, 3]."""
    out = np.zeros(len(places), np.uint64)
    for i in range(len(places)):
        out[i] = key(places[i, 0], places[i, 1], places[i, 2])
    return out


@njit(cache=True, nogil=True)
def slot(table: Any, wanted: Any) -> Any:
    """Where a key is in a table [size, 2] of (key + 1, value), or would be."""
    mask = np.uint64(len(table) - 1)
    at = (wanted * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)) & mask
    while table[at, 0] != 0 and table[at, 0] != wanted + np.uint64(1):
        at = (at + np.uint64(1)) & mask
    return at


@njit(cache=True, nogil=True)
def _cells(codes: Any) -> Any:
    """A table from a cell's key to where its places begin. codes: rising."""
    size = 16
    while size < 3 * len(codes):
        size *= 2
    table = np.zeros((size, 2), np.uint64)
    for i in range(len(codes)):
        if i == 0 or codes[i] != codes[i - 1]:
            at = slot(table, codes[i])
            table[at, 0], table[at, 1] = codes[i] + np.uint64(1), i
    return table


@njit(cache=True, nogil=True)
def _shift(codes: Any) -> Any:
    """How coarse cells are that hold some three places each."""
    for shift in range(AXIS_BITS):
        used = 1
        for i in range(1, len(codes)):
            used += codes[i] >> np.uint64(3 * shift) != codes[i - 1] >> np.uint64(3 * shift)
        if 3 * used <= len(codes):
            return shift
    return AXIS_BITS - 1


@njit(cache=True, nogil=True)
def _insert(far: Any, who: Any, d: Any, j: Any) -> None:
    k = far.size - 1
    if d >= far[k]:
        return
    while k > 0 and far[k - 1] > d:
        far[k], who[k] = far[k - 1], who[k - 1]
        k -= 1
    far[k], who[k] = d, j


@njit(cache=True, nogil=True)
def _gap(x: Any, side: Any, shift: Any) -> Any:
    """How far the next cell is along an axis, squared."""
    inside = x & ((1 << shift) - 1)
    far = inside + 1 if side < 0 else ((1 << shift) - inside if side > 0 else 0)
    return far * far


@njit(cache=True, nogil=True)
def neighbours(places: Any) -> Any:
    """(near int64 [N, NEAR]: earlier ones, the nearest first, -1: none; far int64 [N, NEAR]: their squared distances;
    around int64 [N]: squared distance of the fourth nearest of all). places: int64 [N, 3] along Morton's curve."""
    n, codes = len(places), keys(places)
    shift = _shift(codes)
    codes = codes >> np.uint64(3 * shift)
    table, last = _cells(codes), (1 << (AXIS_BITS - shift)) - 1
    near, far = np.full((n, NEAR), -1), np.full((n, NEAR), _FAR)
    around, those, four = np.zeros(n, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    for i in range(n):
        x, y, z = places[i, 0], places[i, 1], places[i, 2]
        four[:] = _FAR
        for turn in range(27):  # its own cell first: what is found there makes others needless
            cell = 13 if turn == 0 else turn - (turn <= 13)
            a, b, c = cell // 9 - 1, cell // 3 % 3 - 1, cell % 3 - 1
            if _gap(x, a, shift) + _gap(y, b, shift) + _gap(z, c, shift) >= max(far[i, NEAR - 1], four[3]):
                continue
            a, b, c = a + (x >> shift), b + (y >> shift), c + (z >> shift)
            if min(a, b, c) < 0 or max(a, b, c) > last:
                continue
            wanted = key(a, b, c)
            at = slot(table, wanted)
            if table[at, 0] == 0:
                continue
            j: Any = np.int64(table[at, 1])
            if turn == 0 and j < i - _CROWD // 2:
                j = i - _CROWD // 2
            end = min(n, j + _CROWD)
            while j < end and codes[j] == wanted:
                d = (places[j, 0] - x) ** 2 + (places[j, 1] - y) ** 2 + (places[j, 2] - z) ** 2
                if j < i and d < far[i, NEAR - 1]:
                    _insert(far[i], near[i], d, j)
                if j != i and d < four[3]:
                    _insert(four, those, d, j)
                j += 1
        if near[i, 0] < 0 and i > 0:
            near[i, 0] = i - 1
            far[i, 0] = (
                (places[i - 1, 0] - x) ** 2 + (places[i - 1, 1] - y) ** 2 + (places[i - 1, 2] - z) ** 2
            )
        around[i] = four[3] if four[3] < _FAR else (four[0] if four[0] < _FAR else far[i, 0])
    return near, far, around
