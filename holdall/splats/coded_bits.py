"""Whole numbers as bits: each is predicted by a mixture of counters and coded arithmetically (numba).

All is integer arithmetic on fixed tables, so a file decodes alike on every machine. Counters are addressed directly: a
scene's contexts are small numbers (how far off the last ones were, how large, how opaque), not text to be hashed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs.tables import SQUASH, STRETCH

NODES = 96  # decisions of a number that are told apart
CONTEXTS = 6
LIMIT = 250  # sights after which a counter goes on at its slowest
_EVEN, _FREE = np.uint32(1 << 31), np.int64(-1)
_DEEPEST, _DEEP = 44, 20  # a number has fewer bits than the one; more than the other are predicted alike
_STEPS = np.array([65536 * 2 // (2 * n + 3) for n in range(LIMIT + 1)], np.int64)
_TRUST = np.array([256 * (2 * n + 1) // (2 * n + 4) for n in range(LIMIT + 1)], np.int64)


def fresh(places: int, sets: int) -> tuple[np.ndarray, np.ndarray]:
    """(counters [CONTEXTS, places, NODES], mixer weights [sets * NODES, CONTEXTS])."""
    counters = np.full((CONTEXTS, places, NODES), _EVEN, np.uint32)
    return counters, np.full((sets * NODES, CONTEXTS), int(0.3 * 65536), np.int64)


def started(raw: np.ndarray | None, room: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(coder, data): low, high, place in `data`, code, whether it decodes; then room for a mixture's inputs."""
    coder = np.zeros(5 + CONTEXTS, np.int64)
    coder[1] = 0xFFFFFFFF
    if raw is None:
        return coder, np.zeros(room, np.uint8)
    data = np.zeros(max(4, raw.size), np.uint8)
    data[: raw.size] = raw
    coder[2:5] = 4, int.from_bytes(data[:4].tobytes(), "big"), 1
    return coder, data


def finished(coder: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The bytes that were written: the fewest that say a number between low and high; zeros at the end are implied."""
    low, high = int(coder[0]), int(coder[1])
    end = next(e for k in (24, 16, 8, 0) if (e := high >> k << k) >= low)
    raw = data[: coder[2]].tobytes() + end.to_bytes(4, "big")
    return np.frombuffer(raw.rstrip(b"\0"), np.uint8)


@njit(cache=True, nogil=True)
def code(coder: Any, data: Any, p: Any, bit: Any) -> Any:
    """One decision whose chance of 1 is p of 65536; decoding ignores `bit`."""
    low, high = coder[0], coder[1]
    split = low + ((high - low) * p >> 16)
    decode = coder[4] == 1
    if decode:
        bit = np.int64(coder[3] <= split)
    if bit:
        high = split
    else:
        low = split + 1
    while (low ^ high) & 0xFF000000 == 0:
        at = coder[2]
        if decode:
            coder[3] = ((coder[3] << 8) & 0xFFFFFFFF) | (
                np.int64(data[at]) if at < data.size else np.int64(0)
            )
        elif at < data.size:  # an encoder that runs over is asked again with more room
            data[at] = high >> 24
        coder[2] = at + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    coder[0], coder[1] = low, high
    return bit


@njit(cache=True, nogil=True)
def decide(
    coder: Any, data: Any, counters: Any, weights: Any, places: Any, set_: Any, node: Any, bit: Any
) -> Any:
    """Predict one decision from the counters at `places`, code it, learn from it; those of no kind are even odds."""
    if node == _FREE:
        return code(coder, data, np.int64(32768), bit)
    w, logits = weights[set_ * NODES + node], coder[5:]
    total = np.int64(0)
    for k in range(CONTEXTS):
        s = counters[k, places[k], node]
        logits[k] = np.int64(STRETCH[s >> np.uint32(20)]) * _TRUST[s & np.uint32(255)] >> 8
        total += w[k] * logits[k]
    total = min(max(total >> 16, np.int64(-2800)), np.int64(2800))
    p = min(max(np.int64(SQUASH[total + 2800]), np.int64(32)), np.int64(65504))
    bit = code(coder, data, p, bit)
    miss = ((bit << 16) - p) * 6
    for k in range(CONTEXTS):
        w[k] += (logits[k] * miss + (1 << 17)) >> 18
        s = counters[k, places[k], node]
        n, q = np.int64(s & np.uint32(255)), np.int64(s >> np.uint32(8))
        q += (((bit * 0xFFFFFF) - q) * _STEPS[n]) >> 16
        counters[k, places[k], node] = np.uint32(q << 8) | np.uint32(n + 1 if n < LIMIT else n)
    return bit


@njit(cache=True, nogil=True)
def number(coder: Any, data: Any, counters: Any, weights: Any, places: Any, set_: Any, value: Any) -> Any:
    """A whole number, near 0 by habit: whether it is 0, its sign, its size in Exp-Golomb form, two bits modelled.

    One loop asks all, so that the compiler sees one call: it puts the whole of `decide` in its place.
    """
    node: Any
    n: Any
    size: Any
    bit: Any
    negative, n, got, size, rest = np.int64(0), np.int64(-2), np.int64(0), np.int64(0), abs(value)
    while got == 0 or n > 0:
        if n == -2:
            node, bit = np.int64(0), np.int64(value != 0)
        elif n == -1:
            node, bit = np.int64(1), np.int64(value < 0)
        elif got == 0:
            node, bit = 2 + min(n, _DEEP), np.int64(rest >> (n + 1) > 0)
        else:
            node, bit = _FREE, (rest >> (n - 1)) & 1
            if size - n < 2:
                node = 24 + min(size, _DEEP) if n == size else 46 + 2 * min(size, _DEEP) + (got & 1)
        bit = decide(coder, data, counters, weights, places, set_, node, bit)
        if n == -2 and not bit:
            return np.int64(0)
        if n == -1:
            negative = bit
        if got:
            got, n = (got << 1) | bit, n - 1
        elif n < 0 or (bit and n < _DEEPEST):
            n += 1
        else:
            got, size = np.int64(1), n
    return -got if negative else got
