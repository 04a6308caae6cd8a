"""Binary decisions, predicted by a mixture of counters and coded arithmetically (numba).

All is integer arithmetic, so a file decodes alike on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs.tables import RATE, SQUASH, STRETCH

CONTEXTS = 5
_STEP = 5  # of the mixer's weights
_SETS = 4 * 4 * 4 * 3


def tables(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh counters and mixer weights for a stream of `rows` symbols."""
    bits = min(18, max(11, int(rows * 6).bit_length()))
    slots = np.full((CONTEXTS, 1 << bits), 1 << 31, np.uint32)
    return slots, np.full((_SETS, CONTEXTS), int(0.3 * 65536), np.int32)


@njit(cache=True, nogil=True, inline="always")
def scatter(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x9FB21C651E98DF25)
    return x ^ (x >> np.uint64(28))


@njit(cache=True, nogil=True, inline="always")
def _grade(n: Any) -> Any:  # how often a context was seen, in four steps
    return (n > 0) + (n > 2) + (n > 15)


@njit(cache=True, nogil=True)
def decide(
    state: Any,
    data: Any,
    slots: Any,
    weights: Any,
    hashes: Any,
    at: Any,
    lean: Any,
    node: Any,
    kind: Any,
    bit: Any,
) -> Any:
    """One binary decision: predict it, code it (bit -1: decode it), learn from it."""
    mask, salt = np.uint64(slots.shape[1] - 16), np.uint64(node >> 4) * np.uint64(0x9E3779B97F4A7C15)
    near = np.uint64(node & 15)  # decisions of one symbol lie in one cache line
    for j in range(CONTEXTS):
        h = (hashes[j] ^ salt) * np.uint64(0x9FB21C651E98DF25)
        h ^= h >> np.uint64(32)
        at[j] = (h & mask) | near
        mark = np.uint32(h >> np.uint64(54))
        s = slots[j, at[j]]
        if (s & np.uint32(1023)) != mark:
            s = np.uint32(1 << 31) | mark
            slots[j, at[j]] = s
        seen = (s >> np.uint32(10)) & np.uint32(63)
        lean[j] = STRETCH[s >> np.uint32(20)] if seen else np.int32(0)
        lean[CONTEXTS + j] = np.int32(seen)
    grade = (_grade(lean[CONTEXTS + 4]) * 4 + _grade(lean[CONTEXTS + 2])) * 4 + _grade(lean[CONTEXTS + 1])
    chosen = np.uint64(kind * 64 + grade)
    total = np.int64(0)
    for j in range(CONTEXTS):
        total += (weights[chosen, j] * lean[j]) >> 16
    p = np.int64(SQUASH[np.uint64(min(max(total, np.int64(-2800)), np.int64(2800)) + 2800)])
    p = min(max(p, np.int64(16)), np.int64(65520))
    bit = _code(state, data, p, bit)
    miss = (65536 * bit - p) * _STEP
    goal = 65535 * bit
    for j in range(CONTEXTS):
        weights[chosen, j] += np.int32((lean[j] * miss + (1 << 16)) >> 17)
        s = slots[j, at[j]]
        n, q = np.uint64(lean[CONTEXTS + j]), np.int64(s >> np.uint32(16))
        q += ((goal - q) * RATE[n]) >> 16
        n = min(n + np.uint64(1), np.uint64(63))
        slots[j, at[j]] = np.uint32(q << 16) | np.uint32(n << 10) | (s & np.uint32(1023))
    return bit


@njit(cache=True, nogil=True, inline="always")
def _code(state: Any, data: Any, p: Any, bit: Any) -> Any:
    """Arithmetic coding of one decision. state: low, high, position, code, decode."""
    low, high = state[0], state[1]
    split = low + ((high - low) >> 16) * p + ((((high - low) & 0xFFFF) * p) >> 16)
    if bit < 0:
        bit = 1 if state[3] <= split else 0
    if bit:
        high = split
    else:
        low = split + 1
    while (low ^ high) & 0xFF000000 == 0:
        if state[4]:
            state[3] = ((state[3] << 8) & 0xFFFFFFFF) | (data[state[2]] if state[2] < data.size else 0)
        elif state[2] < data.size:  # an encoder that runs over is asked again with more room
            data[state[2]] = high >> 24
        state[2] += 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    state[0], state[1] = low, high
    return bit


@njit(cache=True, nogil=True)
def _loose(state: Any, data: Any, single: Any, at: Any, bit: Any) -> Any:
    """A decision with one counter and no mixture: low bits of large numbers."""
    p = np.int64(single[at])
    bit = _code(state, data, p, bit)
    single[at] += ((65000 if bit else 536) - p) >> 5
    return bit


@njit(cache=True, nogil=True)
def symbol(
    state: Any,
    data: Any,
    slots: Any,
    weights: Any,
    single: Any,
    hashes: Any,
    at: Any,
    lean: Any,
    value: Any,
    decode: Any,
    firm: Any,
) -> Any:
    """One Exp-Golomb symbol: the class in unary, then the mantissa, high bits first, `firm` of them modelled."""
    size = 0
    if not decode:
        while (value + 1) >> (size + 1):
            size += 1
    n = 0
    while n < 62:
        bit = decide(state, data, slots, weights, hashes, at, lean, n if n < 14 else 16 + n, 0 if n == 0 else 1,
                      -1 if decode else (1 if n < size else 0))  # fmt: skip
        if not bit:
            break
        n += 1
    got = np.int64(1)
    for k in range(n - 1, -1, -1):
        bit = -1 if decode else ((value + 1) >> k) & 1
        if n - 1 - k < firm:
            bit = decide(state, data, slots, weights, hashes, at, lean, 128 + (n << 20) + got, 2, bit)
        else:
            bit = _loose(state, data, single, n * 64 + k, bit)
        got = (got << 1) | bit
    return got - 1
