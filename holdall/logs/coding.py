"""Binary decisions, predicted by a mixture of counters and coded arithmetically (numba).

All is integer arithmetic, so a file decodes alike on every machine. What changes with every decision (the coder's
interval, the five contexts) is in tuples of whole numbers, so that the compiler can keep it in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs.tables import RATE, SQUASH, STRETCH

CONTEXTS = 5
_STEP = 5  # of the mixer's weights
_SETS = 4 * 4 * 4 * 3
_FRESH = np.uint32(1 << 31)  # a counter that saw nothing: even odds
_PRIME = np.uint64(0x9FB21C651E98DF25)
_GOLD = np.uint64(0x9E3779B97F4A7C15)


def tables(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh counters and mixer weights for a stream of `rows` symbols."""
    bits = min(18, max(11, int(rows * 6).bit_length()))
    slots = np.full((CONTEXTS, 1 << bits), 1 << 31, np.uint32)
    return slots, np.full((_SETS, CONTEXTS), int(0.3 * 65536), np.int32)


@njit(cache=True, nogil=True, forceinline=True)
def scatter(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(31))) * _PRIME
    return x ^ (x >> np.uint64(28))


@njit(cache=True, nogil=True, forceinline=True)
def _spread(h: Any, salt: Any) -> Any:
    h = (h ^ salt) * _PRIME
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True, forceinline=True)
def spread(hashes: Any, salt: Any) -> Any:
    """Where the counters of each context are (low bits) and the marks by which they are known (high bits)."""
    a, b, c, d, e = hashes
    return _spread(a, salt), _spread(b, salt), _spread(c, salt), _spread(d, salt), _spread(e, salt)


@njit(cache=True, nogil=True, forceinline=True)
def _look(row: Any, at: Any, h: Any) -> Any:
    """A counter, a fresh one if another context left its own there; its log-odds; how often it was seen."""
    mark = np.uint32(h >> np.uint64(54))
    s = row[at]
    s = s if (s & np.uint32(1023)) == mark else _FRESH | mark
    seen = (s >> np.uint32(10)) & np.uint32(63)
    return s, np.int64(STRETCH[s >> np.uint32(20)]) if seen else np.int64(0), seen


@njit(cache=True, nogil=True, forceinline=True)
def _grade(n: Any) -> Any:  # how often a context was seen, in four steps
    return np.uint64(n > 0) + np.uint64(n > 2) + np.uint64(n > 15)


@njit(cache=True, nogil=True, forceinline=True)
def _moved(s: Any, goal: Any) -> Any:
    """The counter after it saw a decision."""
    n, q = np.uint64((s >> np.uint32(10)) & np.uint32(63)), np.int64(s >> np.uint32(16))
    q += ((goal - q) * RATE[n]) >> 16
    n = min(n + np.uint64(1), np.uint64(63))
    return np.uint32(q << 16) | np.uint32(n << np.uint64(10)) | (s & np.uint32(1023))


@njit(cache=True, nogil=True, forceinline=True)
def decide(
    slots: Any, weights: Any, data: Any, coder: Any, places: Any, near: Any, kind: Any, bit: Any
) -> Any:
    """One binary decision: predict it, code it (bit -1: decode it), learn from it. Gives the bit and the coder.

    places: from `spread`; near: which of the sixteen decisions that share a cache line.
    """
    mask = np.uint64(slots.shape[1] - 16)
    ha, hb, hc, hd, he = places
    a, b, c, d, e = ha & mask | near, hb & mask | near, hc & mask | near, hd & mask | near, he & mask | near
    sa, la, _ = _look(slots[0], a, ha)
    sb, lb, nb = _look(slots[1], b, hb)
    sc, lc, nc = _look(slots[2], c, hc)
    sd, ld, _ = _look(slots[3], d, hd)
    se, le, ne = _look(slots[4], e, he)
    set_ = np.uint64(kind * 64) + (_grade(ne) * np.uint64(4) + _grade(nc)) * np.uint64(4) + _grade(nb)
    w = weights[set_]
    wa, wb, wc, wd, we = np.int64(w[0]), np.int64(w[1]), np.int64(w[2]), np.int64(w[3]), np.int64(w[4])
    total = (wa * la >> 16) + (wb * lb >> 16) + (wc * lc >> 16) + (wd * ld >> 16) + (we * le >> 16)
    p = np.int64(SQUASH[np.uint64(min(max(total, np.int64(-2800)), np.int64(2800)) + 2800)])
    p = min(max(p, np.int64(16)), np.int64(65520))
    bit, coder = _code(data, coder, p, bit)
    miss, goal, half = (65536 * bit - p) * _STEP, 65535 * bit, np.int64(1 << 16)
    w[0], w[1] = np.int32(wa + (la * miss + half >> 17)), np.int32(wb + (lb * miss + half >> 17))
    w[2], w[3] = np.int32(wc + (lc * miss + half >> 17)), np.int32(wd + (ld * miss + half >> 17))
    w[4] = np.int32(we + (le * miss + half >> 17))
    sa, sb, sc, sd, se = (
        _moved(sa, goal),
        _moved(sb, goal),
        _moved(sc, goal),
        _moved(sd, goal),
        _moved(se, goal),
    )
    slots[0, a], slots[1, b], slots[2, c], slots[3, d], slots[4, e] = sa, sb, sc, sd, se
    return bit, coder


@njit(cache=True, nogil=True, forceinline=True)
def _code(data: Any, coder: Any, p: Any, bit: Any) -> Any:
    """Arithmetic coding of one decision. coder: low, high, place in `data`, code."""
    low, high, at, code = coder
    split = low + ((high - low) * p >> 16)
    decode = bit < 0
    if decode:
        bit = np.int64(code <= split)
    if bit:
        high = split
    else:
        low = split + 1
    while (low ^ high) & 0xFF000000 == 0:
        if decode:
            code = ((code << 8) & 0xFFFFFFFF) | (
                np.int64(data[np.uint64(at)]) if at < data.size else np.int64(0)
            )
        elif at < data.size:  # an encoder that runs over is asked again with more room
            data[np.uint64(at)] = high >> 24
        at += 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    return bit, (low, high, at, code)


@njit(cache=True, nogil=True, forceinline=True)
def _loose(data: Any, coder: Any, single: Any, at: Any, bit: Any) -> Any:
    """A decision with one counter and no mixture: low bits of large numbers."""
    p = np.int64(single[np.uint64(at)])
    bit, coder = _code(data, coder, p, bit)
    single[np.uint64(at)] += ((65000 if bit else 536) - p) >> 5
    return bit, coder


@njit(cache=True, nogil=True, forceinline=True)
def symbol(
    slots: Any, weights: Any, data: Any, single: Any, coder: Any, hashes: Any, places: Any, value: Any, decode: Any,
    firm: Any,
) -> Any:  # fmt: skip
    """One Exp-Golomb symbol: the class in unary, then the mantissa, high bits first, `firm` of them modelled.

    Gives the symbol and the coder. places: of `hashes` without salt.
    """
    size, n = np.int64(-1), np.int64(0)
    if not decode:
        size = np.int64(0)
        while (value + 1) >> (size + 1):
            size += 1
    while n < 62:
        near, kind = np.uint64(n), np.int64(n > 0)
        if n >= 14:
            near, places = np.uint64(n & 15), spread(hashes, np.uint64(1 + (n >> 4)) * _GOLD)
        bit = np.int64(-1) if decode else np.int64(n < size)
        bit, coder = decide(slots, weights, data, coder, places, near, kind, bit)
        if not bit:
            break
        n += 1
    got = np.int64(1)
    for k in range(n - 1, -1, -1):
        bit = np.int64(-1) if decode else ((value + 1) >> k) & 1
        if n - 1 - k < firm:
            node = 128 + (n << 20) + got
            where = spread(hashes, np.uint64(node >> 4) * _GOLD)
            bit, coder = decide(slots, weights, data, coder, where, np.uint64(node & 15), np.int64(2), bit)
        else:
            bit, coder = _loose(data, coder, single, n * 64 + k, bit)
        got = (got << 1) | bit
    return got - 1, coder
