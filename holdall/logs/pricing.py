"""What a layout would cost, by the kernel itself, and which column foretells another (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.logs import mixing


def price(values: np.ndarray, keys_a: np.ndarray, keys_b: np.ndarray, mode: int) -> float:
    """Bytes that the kernel would take for one column of symbols."""
    slots, weights = mixing.tables(values.size)
    state = np.array([0, 0xFFFFFFFF, 0, 0, 0, 1, 0], np.int64)
    modes, fresh = np.array([mode], np.int64), np.zeros(1, np.int64)
    columns = np.zeros(values.size, np.int64)
    mixing.run(state, np.empty(0, np.uint8), slots, weights, values.astype(np.int64), columns,
               keys_a, keys_b, modes, fresh)  # fmt: skip
    return float(state[6]) / 65536 / 8


@njit(cache=True, nogil=True)
def hits(values, keys, events):
    """How often a value is the one that stood last with the same key and event."""
    last = np.full(1 << 14, np.int64(-1 << 60))
    n = 0
    for i in range(values.size):
        h = (np.uint64(keys[i]) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(events[i]) * np.uint64(0xD6E8FEB86659FD93))
        at = np.int64((h ^ (h >> np.uint64(31))) & np.uint64((1 << 14) - 1))
        n += last[at] == values[i]
        last[at] = values[i]
    return n
