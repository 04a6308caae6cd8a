"""What a layout would cost, by the kernel itself, and which column foretells another (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs import mixing, sequences


@njit(cache=True, nogil=True)
def _ideal(values: Any, keys: Any, size: Any) -> Any:
    """Bits for `values` by counts under `keys`, escaping to counts without, and then to an Exp-Golomb code.

    A stand-in for the kernel, some twenty times as fast: it need only order the layouts.
    """
    seen, of = np.zeros((2, size), np.int32), np.zeros((2, size), np.int32)
    mask, bits = np.uint64(size - 1), 0.0
    for i in range(values.size):
        v = np.uint64(values[i]) * np.uint64(0x9E3779B97F4A7C15)
        found = False
        for order in range(2):
            k = np.uint64(keys[i] + 1) * np.uint64(0xD6E8FEB86659FD93) if order == 0 else np.uint64(0)
            x = (k ^ (k >> np.uint64(29))) * np.uint64(0x8EBC6AF09C88C6E3)
            here = np.int64((x >> np.uint64(20)) & mask)
            y = (x ^ v) * np.uint64(0xA0761D6478BD642F)
            there = np.int64((y >> np.uint64(33)) & mask)
            if not found:
                total, n = of[order, here], seen[order, there]
                found = n > 0
                bits += LOGS[min(total * 2 + 2, 8191)] - (LOGS[min(2 * n - 1, 8191)] if found else LOGS[2])
            of[order, here] += 1
            seen[order, there] += 1
        if not found:
            width = 0
            while (values[i] + 1) >> (width + 1):
                width += 1
            bits += width + 1.0
    return bits


LOGS = np.log2(np.maximum(np.arange(8192), 1))


def price(values: np.ndarray, keys_a: np.ndarray, keys_b: np.ndarray, mode: int) -> float:
    """About the bytes that the kernel would take for one column of symbols: the better of its two keys."""
    if mode in (mixing.IDS, mixing.RANKS):
        values = sequences.ranks_of(values) if mode == mixing.RANKS else sequences.news_of(values)
    size = max(256, 1 << int(values.size * 4).bit_length())
    costs = [_ideal(values, keys_a, size)]
    if keys_b.any():
        costs.append(_ideal(values, keys_b, size))
    return float(min(costs)) / 8


@njit(cache=True, nogil=True)
def hits(values: Any, keys: Any, events: Any) -> Any:
    """How often a value is the one that stood last with the same key and event."""
    last = np.full(1 << 14, np.int64(-1 << 60))
    n = 0
    for i in range(values.size):
        h = (np.uint64(keys[i]) * np.uint64(0x9E3779B97F4A7C15)) ^ (
            np.uint64(events[i]) * np.uint64(0xD6E8FEB86659FD93)
        )
        at = np.int64((h ^ (h >> np.uint64(31))) & np.uint64((1 << 14) - 1))
        n += last[at] == values[i]
        last[at] = values[i]
    return n
