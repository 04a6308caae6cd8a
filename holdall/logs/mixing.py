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

from holdall.logs.coding import decide, scatter, spread, symbol, tables

PLAIN, IDS, RANKS, EVENTS = 0, 1, 2, 3  # symbols: numbers; dictionary ids; recency ranks of ids; events
BY_B, BY_A = 8, 16  # added: first ask whether it is the last one under key B; under key A or the last of all
WINDOW = 120  # how many recent ids a column of ranks remembers
_NONE = np.int64(-1)


@njit(cache=True, nogil=True)
def rank_of(recent: Any, column: Any, value: Any) -> Any:
    found = np.int32(WINDOW)  # no early way out: so the loop is done with vector instructions
    wanted = np.int32(value)
    for k in range(WINDOW):
        found = min(found, np.int32(k) if recent[column, k] == wanted else np.int32(WINDOW))
    return np.int64(found)


@njit(cache=True, nogil=True)
def rank_or_none(recent: Any, column: Any, value: Any) -> Any:
    """`rank_of`, or -1 where there is no value yet."""
    return rank_of(recent, column, value) if value >= 0 else np.int64(-1)


@njit(cache=True, nogil=True)
def promote(recent: Any, column: Any, rank: Any, value: Any) -> Any:
    for k in range(min(rank, WINDOW - 1), 0, -1):
        recent[column, k] = recent[column, k - 1]
    recent[column, 0] = value


@njit(cache=True, nogil=True, forceinline=True)
def _contexts(
    column: Any, key_a: Any, key_b: Any, one: Any, two: Any, by_a: Any, by_b: Any, mode: Any, older: Any
) -> Any:
    """A hash for each context. one, two, older: the last values of the column; by_a, by_b: the last under a key."""
    one, two = np.uint64(one + 2), np.uint64(two + 2)
    c = scatter(np.uint64(column) + np.uint64(77))
    a = scatter(c + np.uint64(key_a) * np.uint64(0x9E3779B97F4A7C15))
    history = scatter(scatter(c + one) + two)
    both = scatter(a + one * np.uint64(0xA0761D6478BD642F))
    if mode == EVENTS:
        three = scatter(history + np.uint64(older[2] + 2))
        return a, history, both, three, scatter(three + np.uint64(older[3] + 2))
    b = scatter(c + np.uint64(key_b) * np.uint64(0xD6E8FEB86659FD93))
    under_a = scatter(a + np.uint64(by_a + 2) * np.uint64(0xE7037ED1A0B428DB) + np.uint64(1))
    return a, history, both, under_a, scatter(b + np.uint64(by_b + 2) * np.uint64(0x8EBC6AF09C88C6E3))


@njit(cache=True, nogil=True, forceinline=True)
def _guess(slots: Any, weights: Any, data: Any, coder: Any, places: Any, asks: Any, mine: Any, by_b: Any, second: Any,
           decode: Any) -> Any:  # fmt: skip
    """Ask whether it is the value that stood last under key B, then the second one; -1 if it is neither."""
    most = np.int64(WINDOW - 1 if asks & 7 == RANKS else (1 << 63) - 1)
    if asks & BY_B and 0 <= by_b <= most:
        bit = np.int64(-1) if decode else np.int64(mine == by_b)
        bit, coder = decide(slots, weights, data, coder, places, np.uint64(15), np.int64(0), bit)
        if bit == 1:
            return by_b, coder
    if asks & BY_A and 0 <= second <= most and not (asks & BY_B and second == by_b):
        bit = np.int64(-1) if decode else np.int64(mine == second)
        bit, coder = decide(slots, weights, data, coder, places, np.uint64(14), np.int64(1), bit)
        if bit == 1:
            return second, coder
    return np.int64(-1), coder


@njit(cache=True, nogil=True, forceinline=True)
def _tell(slots: Any, weights: Any, data: Any, single: Any, coder: Any, hashes: Any, places: Any, value: Any,
          rank: Any, new: Any, mode: Any, decode: Any) -> Any:  # fmt: skip
    """Code a value as a symbol; returns the value, for ranks the rank (WINDOW: not among the recent), and the coder."""
    named, code = mode == IDS or mode == RANKS, value  # noqa: SIM109 (numba is slower with in)
    if named and value == new:
        code = np.int64(0)
    elif mode == IDS:
        code = value + 1
    elif mode == RANKS:
        code = 1 + rank if rank < WINDOW else 1 + WINDOW + value
    firm = np.int64(20 if named else 7)
    code, coder = symbol(slots, weights, data, single, coder, hashes, places, code, decode, firm)
    if not decode:
        return value, rank, coder
    if not named:
        return code, rank, coder
    if code == 0:
        return new, np.int64(WINDOW), coder
    if mode == IDS:
        return code - 1, rank, coder
    return code - 1 - WINDOW, min(code - 1, np.int64(WINDOW)), coder


@njit(cache=True, nogil=True, forceinline=True)
def _place(key: Any, column: Any, prime: Any, size: Any) -> Any:
    return scatter(np.uint64(key) * prime + np.uint64(column)) & np.uint64(size - 1)


@njit(cache=True, nogil=True)
def run(state: Any, data: Any, slots: Any, weights: Any, values: Any, columns: Any, keys_a: Any, keys_b: Any,
        modes: Any, fresh: Any, total: Any) -> Any:  # fmt: skip
    """Encode `values` (or fill them, when state[4] says decode). All arrays but `modes`, `fresh` have a row each.

    columns: dense column number; modes: by column; fresh: by column, the next new id; total: rows of the stream, of
    which fewer may be asked for. False: impossible values.
    """
    kinds, size, decode = modes.size, 1 << 8, state[4] == 1
    while size < min(total * 4, 1 << 16):
        size *= 2
    last, by_key = np.full((kinds, 4), _NONE), np.full((2, size), _NONE)
    recent = np.full((kinds if ((modes & 7) == RANKS).any() else 0, WINDOW), np.int32(-9))
    single, coder = np.full(64 * 64, np.int32(1 << 15)), (state[0], state[1], state[2], state[3])
    for i in range(values.size):
        c, value, rank = np.uint64(columns[i]), values[i], np.int64(WINDOW)
        asks, mine, old, key_a, key_b = modes[c], value, last[c], keys_a[i], keys_b[i]
        mode = asks & 7
        ia = _place(key_a, c, np.uint64(0xD6E8FEB86659FD93), size)
        ib = _place(key_b, c, np.uint64(0xA0761D6478BD642F), size)
        by_a, by_b = by_key[0, ia], by_key[1, ib]
        if mode == RANKS:
            by_a, by_b = rank_or_none(recent, c, by_a), rank_or_none(recent, c, by_b)
            mine = rank = rank_of(recent, c, value) if not decode and value != fresh[c] else rank
        hashes = _contexts(c, key_a, key_b, old[0], old[1], by_a, by_b, mode, old)
        places = spread(hashes, np.uint64(0))
        second = by_a if by_a != by_b or not asks & BY_B else old[0]
        guess, coder = _guess(slots, weights, data, coder, places, asks, mine, by_b, second, decode)
        if guess < 0:
            value, rank, coder = _tell(slots, weights, data, single, coder, hashes, places, value, rank, fresh[c], mode,
                                       decode)  # fmt: skip
        elif mode == RANKS:
            rank = guess
        else:
            value = guess
        if mode == RANKS and rank < WINDOW:
            value = np.int64(recent[c, np.uint64(rank)])
        values[i] = value
        if value < 0 or ((mode == IDS or mode == RANKS) and value > fresh[c]):  # noqa: SIM109
            return False
        fresh[c] += (mode == IDS or mode == RANKS) and value == fresh[c]  # noqa: SIM109
        if mode == RANKS:
            promote(recent, c, rank, value)
        by_key[0, ia] = by_key[1, ib] = value
        old[3], old[2], old[1] = old[2], old[1], old[0]
        old[0] = rank if mode == RANKS else value
    state[0], state[1], state[2], state[3] = coder
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
        state = np.array([0, 0xFFFFFFFF, 0, 0, 0], np.int64)
        data, began = np.empty(room, np.uint8), fresh.copy()
        run(state, data, slots, weights, values, columns, keys_a, keys_b, modes, began, values.size)
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
    total: int | None = None,
) -> np.ndarray | None:
    """The symbols again, the first of `total`; None if the bytes contradict themselves."""
    total = columns.size if total is None else total
    slots, weights = tables(total)
    first = int.from_bytes(raw[:4].ljust(4, b"\0"), "big")
    state = np.array([0, 0xFFFFFFFF, 4, first, 1], np.int64)
    values = np.zeros(columns.size, np.int64)
    data = np.frombuffer(bytearray(raw), np.uint8)  # one type for both ways: one compilation
    good = run(state, data, slots, weights, values, columns, keys_a, keys_b, modes, fresh, total)
    return values if good else None
