"""Places on a grid as a tree of halvings (numba): how many of a box's Gaussians are in its first half, from the largest
box down, all boxes of a size before the next size. What is said of a box is predicted from how full its neighbours are,
and from how those were halved that came before it: surfaces go on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.coded_bits import decide, finished, fresh, number, started
from holdall.splats.coded_near import AXIS_BITS, slot

_PLACES = 448
_ROOM = 64


def written(places: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of int64 [N, 3] along Morton's curve, each number below 2**bits."""
    coder, data = started(None, _ROOM + 10 * bits * len(places))
    assert _walk(coder, data, *fresh(_PLACES, 2), places.copy(), bits)
    return finished(coder, data)


def read(raw: np.ndarray, count: int, bits: int) -> np.ndarray | None:
    """The same places again; None where the bytes contradict themselves."""
    coder, data = started(raw)
    places = np.zeros((count, 3), np.int64)
    return places if _walk(coder, data, *fresh(_PLACES, 2), places, bits) else None


@njit(cache=True, nogil=True)
def _table(boxes: Any, count: Any) -> Any:
    size = 16
    while size < 3 * count:
        size *= 2
    table = np.zeros((size, 2), np.uint64)
    for i in range(count):
        at = slot(table, _name(boxes[i, 0], boxes[i, 1], boxes[i, 2]))
        table[at, 0], table[at, 1] = _name(boxes[i, 0], boxes[i, 1], boxes[i, 2]) + np.uint64(1), i
    return table


@njit(cache=True, nogil=True)
def _name(x: Any, y: Any, z: Any) -> Any:
    return (np.uint64(x) << np.uint64(2 * AXIS_BITS)) | (np.uint64(y) << np.uint64(AXIS_BITS)) | np.uint64(z)


@njit(cache=True, nogil=True)
def _beside(table: Any, boxes: Any, i: Any, axis: Any, by: Any) -> Any:
    """The box next to box i, or -1."""
    x, y, z = boxes[i, 0] + by * (axis == 0), boxes[i, 1] + by * (axis == 1), boxes[i, 2] + by * (axis == 2)
    if min(x, y, z) < 0 or max(x, y, z) >= 1 << AXIS_BITS:
        return np.int64(-1)
    at = slot(table, _name(x, y, z))
    return np.int64(table[at, 1]) if table[at, 0] != 0 else np.int64(-1)


@njit(cache=True, nogil=True)
def _contexts(
    out: Any, table: Any, boxes: Any, counts: Any, firsts: Any, i: Any, axis: Any, step: Any
) -> None:
    """What box i's halving depends on. firsts: how many were in the first halves, of boxes before i."""
    n, full, low, high, pattern = min(counts[i], 4) - 1, np.zeros(2, np.int64), 0, 0, 0
    before = 0
    for side in range(6):
        j = _beside(table, boxes, i, side >> 1, 2 * (side & 1) - 1)
        if j < 0:
            continue
        pattern |= 1 << side
        if side >> 1 == axis:
            full[side & 1] = min(counts[j], 3)
            if j < i:
                before = 1 + min(firsts[j], 1) + 2 * min(counts[j] - firsts[j], 1)
        elif j < i:
            low += firsts[j]
            high += counts[j] - firsts[j]
    lean, much = min(max(low - high, -3), 3) + 3, min(low + high, 3)
    tilt = 1 + (full[1] > full[0]) - np.int64(full[1] < full[0])
    out[0] = (full[0] * 4 + full[1]) * 8 + min(counts[i], 8) - 1
    out[1] = (lean * 4 + much) * 4 + n
    out[2] = min(step, 63) * 4 + n
    out[3] = ((tilt * 7 + lean) * 4 + n) * 3 + axis
    out[4] = pattern * 4 + n
    out[5] = ((before * 7 + lean) * 3 + tilt) * 4 + n


@njit(cache=True, nogil=True)
def _halved(coder: Any, data: Any, counters: Any, weights: Any, where: Any, count: Any, mine: Any) -> Any:
    """How many of `count` are in the first half."""
    if count == 1:
        return decide(coder, data, counters, weights, where, 0, 95, mine)
    return count // 2 + number(coder, data, counters, weights, where, 1, mine - count // 2)


@njit(cache=True, nogil=True)
def _walk(coder: Any, data: Any, counters: Any, weights: Any, places: Any, bits: Any) -> Any:
    """Code `places`, or fill them. False: impossible counts."""
    total, where = len(places), np.zeros(6, np.int64)
    boxes, counts = np.zeros((total, 3), np.int64), np.zeros(total, np.int64)
    after, sizes = np.zeros((total, 3), np.int64), np.zeros(total, np.int64)
    firsts, used, decode = np.zeros(total, np.int64), min(1, total), coder[4] == 1
    counts[0] = total
    for step in range(3 * bits):
        axis, shift, made, seen = step % 3, bits - 1 - step // 3, 0, 0
        table = _table(boxes, used)
        for i in range(used):
            mine = np.int64(0)
            if not decode:
                for j in range(seen, seen + counts[i]):
                    mine += 1 - ((places[j, axis] >> shift) & 1)
            seen += counts[i]
            _contexts(where, table, boxes, counts, firsts, i, axis, step)
            firsts[i] = _halved(coder, data, counters, weights, where, counts[i], mine)
            if firsts[i] < 0 or firsts[i] > counts[i]:
                return False
            for half in range(2):
                size = counts[i] - firsts[i] if half else firsts[i]
                if size > 0:
                    after[made] = boxes[i]
                    after[made, axis] = 2 * boxes[i, axis] + half
                    sizes[made] = size
                    made += 1
        boxes, after, counts, sizes, used = after, boxes, sizes, counts, made
    seen = 0
    for i in range(used):
        for j in range(seen, seen + counts[i]):
            places[j] = boxes[i]
        seen += counts[i]
    return True
