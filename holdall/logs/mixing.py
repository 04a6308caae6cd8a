"""A context-mixing kernel for columns of symbols (numba).

A symbol is written in Exp-Golomb form, and each binary decision is predicted by a small logistic mixture of
adaptive counters, one per context: what stood before in this column, what stood last under the same key, and
so on. Everything is integer arithmetic, so a file decodes alike on every machine. The general
coders (lzma, PPMd) see bytes; this one sees that a row has a column, a template and a parent value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs.tables import ENTROPY, RATE, SQUASH, STRETCH

CONTEXTS = 5
PLAIN, IDS, RANKS, EVENTS = 0, 1, 2, 3  # symbols: numbers; dictionary ids; recency ranks of ids; events
BY_B, BY_A = 8, 16  # added: first ask whether it is the last one under key B; under key A or the last of all
WINDOW = 120  # how many recent ids a column of ranks remembers
STEP = 5
_SETS = 4 * 4 * 4 * 3
_NONE = np.int64(-1)


def tables(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh counters and mixer weights for a stream of `rows` symbols."""
    bits = min(18, max(11, int(rows * 6).bit_length()))
    slots = np.full((CONTEXTS, 1 << bits), 1 << 31, np.uint32)
    return slots, np.full((_SETS, CONTEXTS), int(0.3 * 65536), np.int32)


@njit(cache=True, nogil=True, inline="always")
def _scatter(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x9FB21C651E98DF25)
    return x ^ (x >> np.uint64(28))


@njit(cache=True, nogil=True, inline="always")
def _grade(n: Any) -> Any:  # how often a context was seen, in four steps
    return (n > 0) + (n > 2) + (n > 15)


@njit(cache=True, nogil=True)
def _decide(
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
    """One binary decision: predict it, code it (bit -1: decode it; state[5]: only price it), learn from it."""
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
    p = np.int64(SQUASH[np.uint64(min(max(total, -2800), 2800) + 2800)])
    p = min(max(p, 16), 65520)
    if state[5]:  # 1/65536 of a bit
        state[6] += ENTROPY[(p if bit else 65536 - p) >> 4]
    else:
        bit = _code(state, data, p, bit)
    miss = (65536 * bit - p) * STEP
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
    """Arithmetic coding of one decision. state: low, high, position, code, decode, price, sum."""
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
    if state[5]:
        state[6] += ENTROPY[(p if bit else 65536 - p) >> 4]
    else:
        bit = _code(state, data, p, bit)
    single[at] += ((65000 if bit else 536) - p) >> 5
    return bit


@njit(cache=True, nogil=True)
def _symbol(
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
        bit = _decide(state, data, slots, weights, hashes, at, lean, n if n < 14 else 16 + n, 0 if n == 0 else 1,
                      -1 if decode else (1 if n < size else 0))  # fmt: skip
        if not bit:
            break
        n += 1
    got = np.int64(1)
    for k in range(n - 1, -1, -1):
        bit = -1 if decode else ((value + 1) >> k) & 1
        if n - 1 - k < firm:
            bit = _decide(state, data, slots, weights, hashes, at, lean, 128 + (n << 20) + got, 2, bit)
        else:
            bit = _loose(state, data, single, n * 64 + k, bit)
        got = (got << 1) | bit
    return got - 1


@njit(cache=True, nogil=True)
def rank_of(recent: Any, column: Any, value: Any) -> Any:
    found = np.int32(WINDOW)  # no early way out: so the loop is done with vector instructions
    wanted = np.int32(value)
    for k in range(WINDOW):
        found = min(found, np.int32(k) if recent[column, k] == wanted else np.int32(WINDOW))
    return np.int64(found)


@njit(cache=True, nogil=True)
def promote(recent: Any, column: Any, rank: Any, value: Any) -> Any:
    for k in range(min(rank, WINDOW - 1), 0, -1):
        recent[column, k] = recent[column, k - 1]
    recent[column, 0] = value


@njit(cache=True, nogil=True)
def _contexts(
    hashes: Any, column: Any, key_a: Any, key_b: Any, last: Any, by_a: Any, by_b: Any, mode: Any
) -> Any:
    one, two = np.uint64(last[column, 0] + 2), np.uint64(last[column, 1] + 2)
    c = _scatter(np.uint64(column) + np.uint64(77))
    a = _scatter(c + np.uint64(key_a) * np.uint64(0x9E3779B97F4A7C15))
    b = _scatter(c + np.uint64(key_b) * np.uint64(0xD6E8FEB86659FD93))
    la, lb = np.uint64(by_a + 2), np.uint64(by_b + 2)
    hashes[0] = a
    hashes[1] = _scatter(_scatter(c + one) + two)
    hashes[2] = _scatter(a + one * np.uint64(0xA0761D6478BD642F))
    hashes[3] = _scatter(a + la * np.uint64(0xE7037ED1A0B428DB) + np.uint64(1))
    hashes[4] = _scatter(b + lb * np.uint64(0x8EBC6AF09C88C6E3))
    hashes[5] = _scatter(_scatter(b + one * np.uint64(0x589965CC75374CC3)) + a)
    if mode == EVENTS:
        three = np.uint64(last[column, 2] + 2)
        hashes[3] = _scatter(hashes[1] + three)
        hashes[4] = _scatter(hashes[3] + np.uint64(last[column, 3] + 2))
        hashes[5] = _scatter(c + one * np.uint64(3))


@njit(cache=True, nogil=True)
def run(
    state: Any,
    data: Any,
    slots: Any,
    weights: Any,
    values: Any,
    columns: Any,
    keys_a: Any,
    keys_b: Any,
    modes: Any,
    fresh: Any,
) -> Any:
    """Encode `values` (or fill them, when state[4] says decode). All arrays but `modes`, `fresh` have a row each.

    columns: dense column number; modes: by column; fresh: by column, the next new id. Returns False when a
    decoded stream contradicts itself.
    """
    decode, kinds = state[4] == 1, modes.size
    size = 1 << 8
    while size < min(values.size * 4, 1 << 16):
        size *= 2
    last, by_key = np.full((kinds, 4), _NONE), np.full((2, size), _NONE)
    recent = np.full((kinds if ((modes & 7) == RANKS).any() else 0, WINDOW), np.int32(-9))
    hashes, single = np.zeros(CONTEXTS, np.uint64), np.full(64 * 64, np.int32(1 << 15))
    at, lean = np.zeros(CONTEXTS, np.uint64), np.zeros(2 * CONTEXTS, np.int32)
    for i in range(values.size):
        c, value = columns[i], values[i]
        mode, asks = modes[c] & 7, modes[c]
        ia = np.int64(
            _scatter(np.uint64(keys_a[i]) * np.uint64(0xD6E8FEB86659FD93) + np.uint64(c))
            & np.uint64(size - 1)
        )
        ib = np.int64(
            _scatter(np.uint64(keys_b[i]) * np.uint64(0xA0761D6478BD642F) + np.uint64(c))
            & np.uint64(size - 1)
        )
        by_a, by_b = by_key[0, ia], by_key[1, ib]
        rank, named = np.int64(WINDOW), mode == IDS or mode == RANKS
        if mode == RANKS:
            by_a = np.int64(rank_of(recent, c, by_a)) if by_a >= 0 else by_a
            by_b = np.int64(rank_of(recent, c, by_b)) if by_b >= 0 else by_b
            if not decode and value != fresh[c]:
                rank = np.int64(rank_of(recent, c, value))
        _contexts(hashes, c, keys_a[i], keys_b[i], last, by_a, by_b, mode)
        mine = rank if mode == RANKS else value  # what guesses are compared with
        second = by_a if by_a != by_b or not asks & BY_B else last[c, 0]
        guessed = False
        if asks & BY_B and by_b >= 0 and (mode != RANKS or by_b < WINDOW):
            guessed = (
                _decide(state, data, slots, weights, hashes, at, lean, 15, 0, -1 if decode else mine == by_b)
                == 1
            )
            if guessed:
                mine = by_b
        if (
            asks & BY_A
            and not guessed
            and second >= 0
            and (not asks & BY_B or second != by_b)
            and (mode != RANKS or second < WINDOW)
        ):
            guessed = (
                _decide(
                    state, data, slots, weights, hashes, at, lean, 14, 1, -1 if decode else mine == second
                )
                == 1
            )
            if guessed:
                mine = second
        if not guessed:
            symbol = value
            if named:
                symbol = 0 if value == fresh[c] else value + 1
                if mode == RANKS and value != fresh[c]:
                    symbol = 1 + rank if rank < WINDOW else 1 + WINDOW + value
            symbol = _symbol(state, data, slots, weights, single, hashes, at, lean, symbol, decode,
                             20 if named else 7)  # fmt: skip
            if decode:
                mine = symbol if not named else (fresh[c] if symbol == 0 else symbol - 1)
                if mode == RANKS:
                    rank = np.int64(WINDOW) if symbol == 0 else min(symbol - 1, WINDOW)
                    value = fresh[c] if symbol == 0 else symbol - 1 - WINDOW
        elif decode and mode == RANKS:
            rank = mine
        if decode:
            if mode != RANKS:
                value = mine
            elif rank < WINDOW:
                value = recent[c, rank]
            if value < 0 or (named and value > fresh[c]):
                return False
            values[i] = value
        if named and value == fresh[c]:
            fresh[c] += 1
        if mode == RANKS:
            promote(recent, c, rank, value)
        by_key[0, ia] = by_key[1, ib] = value
        last[c, 3], last[c, 2], last[c, 1] = last[c, 2], last[c, 1], last[c, 0]
        last[c, 0] = rank if mode == RANKS else value
    return True


def encode(
    values: np.ndarray,
    columns: np.ndarray,
    keys_a: np.ndarray,
    keys_b: np.ndarray,
    modes: np.ndarray,
    fresh: np.ndarray,
) -> bytes:
    """One stream of symbols as bytes; `fresh` moves on."""
    room = values.size * 4 + 64
    while True:
        slots, weights = tables(values.size)
        state = np.array([0, 0xFFFFFFFF, 0, 0, 0, 0, 0], np.int64)
        data, began = np.empty(room, np.uint8), fresh.copy()
        run(state, data, slots, weights, values, columns, keys_a, keys_b, modes, began)
        if state[2] <= room:
            break
        room = int(state[2]) + 64
    fresh[:] = began
    low, high = int(state[0]), int(state[1])
    end = next(
        e for k in (24, 16, 8, 0) if (e := high >> k << k) >= low
    )  # the fewest bytes inside [low, high]
    return (data[: state[2]].tobytes() + end.to_bytes(4, "big")).rstrip(b"\0")


def decode(
    raw: bytes,
    columns: np.ndarray,
    keys_a: np.ndarray,
    keys_b: np.ndarray,
    modes: np.ndarray,
    fresh: np.ndarray,
) -> np.ndarray | None:
    """The symbols again; None if the bytes contradict themselves."""
    slots, weights = tables(columns.size)
    first = int.from_bytes(raw[:4].ljust(4, b"\0"), "big")
    state = np.array([0, 0xFFFFFFFF, 4, first, 1, 0, 0], np.int64)
    values = np.zeros(columns.size, np.int64)
    data = np.frombuffer(bytearray(raw), np.uint8)  # one type for both ways: one compilation
    good = run(state, data, slots, weights, values, columns, keys_a, keys_b, modes, fresh)
    return values if good else None
