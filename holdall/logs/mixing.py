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

from holdall.logs.coding import CONTEXTS, decide, scatter, symbol, tables

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


@njit(cache=True, nogil=True)
def _contexts(
    hashes: Any, column: Any, key_a: Any, key_b: Any, last: Any, by_a: Any, by_b: Any, mode: Any
) -> Any:
    one, two = np.uint64(last[column, 0] + 2), np.uint64(last[column, 1] + 2)
    c = scatter(np.uint64(column) + np.uint64(77))
    a = scatter(c + np.uint64(key_a) * np.uint64(0x9E3779B97F4A7C15))
    b = scatter(c + np.uint64(key_b) * np.uint64(0xD6E8FEB86659FD93))
    la, lb = np.uint64(by_a + 2), np.uint64(by_b + 2)
    hashes[0] = a
    hashes[1] = scatter(scatter(c + one) + two)
    hashes[2] = scatter(a + one * np.uint64(0xA0761D6478BD642F))
    hashes[3] = scatter(a + la * np.uint64(0xE7037ED1A0B428DB) + np.uint64(1))
    hashes[4] = scatter(b + lb * np.uint64(0x8EBC6AF09C88C6E3))
    if mode == EVENTS:
        three = np.uint64(last[column, 2] + 2)
        hashes[3] = scatter(hashes[1] + three)
        hashes[4] = scatter(hashes[3] + np.uint64(last[column, 3] + 2))


@njit(cache=True, nogil=True)
def _guess(state: Any, data: Any, slots: Any, weights: Any, hashes: Any, at: Any, lean: Any, asks: Any, mine: Any,
           by_b: Any, second: Any) -> Any:  # fmt: skip
    """Ask whether it is the value that stood last under key B, then the second one; -1 if it is neither."""
    decode, ranked = state[4] == 1, asks & 7 == RANKS
    if asks & BY_B and by_b >= 0 and not (ranked and by_b >= WINDOW):
        bit = -1 if decode else np.int64(mine == by_b)
        if decide(state, data, slots, weights, hashes, at, lean, 15, 0, bit) == 1:
            return by_b
    if (
        asks & BY_A
        and second >= 0
        and not (asks & BY_B and second == by_b)
        and not (ranked and second >= WINDOW)
    ):
        bit = -1 if decode else np.int64(mine == second)
        if decide(state, data, slots, weights, hashes, at, lean, 14, 1, bit) == 1:
            return second
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _tell(state: Any, data: Any, slots: Any, weights: Any, single: Any, hashes: Any, at: Any, lean: Any, value: Any,
          rank: Any, new: Any, mode: Any) -> Any:  # fmt: skip
    """Code a value as a symbol; returns the value and, for ranks, the rank (WINDOW: not among the recent)."""
    decode, named, code = state[4] == 1, mode == IDS or mode == RANKS, value  # noqa: SIM109 (numba is slower with in)
    if named and value == new:
        code = np.int64(0)
    elif mode == IDS:
        code = value + 1
    elif mode == RANKS:
        code = 1 + rank if rank < WINDOW else 1 + WINDOW + value
    firm = 20 if named else 7
    code = symbol(state, data, slots, weights, single, hashes, at, lean, code, decode, firm)
    if not decode:
        return value, rank
    if not named:
        return code, rank
    if code == 0:
        return new, np.int64(WINDOW)
    if mode == IDS:
        return code - 1, rank
    return code - 1 - WINDOW, min(code - 1, np.int64(WINDOW))


@njit(cache=True, nogil=True)
def _place(key: Any, column: Any, prime: Any, size: Any) -> Any:
    return np.int64(scatter(np.uint64(key) * prime + np.uint64(column)) & np.uint64(size - 1))


@njit(cache=True, nogil=True)
def run(state: Any, data: Any, slots: Any, weights: Any, values: Any, columns: Any, keys_a: Any, keys_b: Any,
        modes: Any, fresh: Any) -> Any:  # fmt: skip
    """Encode `values` (or fill them, when state[4] says decode). All arrays but `modes`, `fresh` have a row each.

    columns: dense column number; modes: by column; fresh: by column, the next new id. False: impossible values.
    """
    kinds, size = modes.size, 1 << 8
    while size < min(values.size * 4, 1 << 16):
        size *= 2
    last, by_key = np.full((kinds, 4), _NONE), np.full((2, size), _NONE)
    recent = np.full((kinds if ((modes & 7) == RANKS).any() else 0, WINDOW), np.int32(-9))
    hashes, single = np.zeros(CONTEXTS, np.uint64), np.full(64 * 64, np.int32(1 << 15))
    at, lean = np.zeros(CONTEXTS, np.uint64), np.zeros(2 * CONTEXTS, np.int32)
    for i in range(values.size):
        c, value, mode, rank = columns[i], values[i], modes[columns[i]] & 7, np.int64(WINDOW)
        ia = _place(keys_a[i], c, np.uint64(0xD6E8FEB86659FD93), size)
        ib = _place(keys_b[i], c, np.uint64(0xA0761D6478BD642F), size)
        by_a, by_b = by_key[0, ia], by_key[1, ib]
        if mode == RANKS:
            by_a, by_b = rank_or_none(recent, c, by_a), rank_or_none(recent, c, by_b)
            rank = rank_of(recent, c, value) if not state[4] and value != fresh[c] else rank
        _contexts(hashes, c, keys_a[i], keys_b[i], last, by_a, by_b, mode)
        second = by_a if by_a != by_b or not modes[c] & BY_B else last[c, 0]
        mine = rank if mode == RANKS else value  # what guesses are compared with
        guess = _guess(state, data, slots, weights, hashes, at, lean, modes[c], mine, by_b, second)
        if guess < 0:
            value, rank = _tell(
                state, data, slots, weights, single, hashes, at, lean, value, rank, fresh[c], mode
            )
        elif mode == RANKS:
            rank = guess
        else:
            value = guess
        if mode == RANKS and rank < WINDOW:
            value = np.int64(recent[c, rank])
        values[i] = value
        if value < 0 or ((mode == IDS or mode == RANKS) and value > fresh[c]):  # noqa: SIM109
            return False
        fresh[c] += (mode == IDS or mode == RANKS) and value == fresh[c]  # noqa: SIM109
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
        state = np.array([0, 0xFFFFFFFF, 0, 0, 0], np.int64)
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
    state = np.array([0, 0xFFFFFFFF, 4, first, 1], np.int64)
    values = np.zeros(columns.size, np.int64)
    data = np.frombuffer(bytearray(raw), np.uint8)  # one type for both ways: one compilation
    good = run(state, data, slots, weights, values, columns, keys_a, keys_b, modes, fresh)
    return values if good else None
