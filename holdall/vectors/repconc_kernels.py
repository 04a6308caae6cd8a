"""Kernels for codes that add up: which two entries are nearest together."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def nearest_pairs(first, second, cross, beam, out):  # type: ignore[no-untyped-def]
    """out uint8 [N, 2]: of the `beam` best entries of the first table, with each of the second, the best pair.

    first, second float32 [N, K]: |c|^2 - 2 x c. cross float32 [K, K]: 2 c c'. What is least is |x - c - c'|^2.
    """
    entries = first.shape[1]
    keys, order = np.empty(beam, np.float32), np.empty(beam, np.int64)
    for i in range(len(first)):
        held = 0
        for a in range(entries):
            key = first[i, a]
            if held == beam and key >= keys[held - 1]:
                continue
            at = held if held < beam else beam - 1
            held = min(held + 1, beam)
            while at > 0 and keys[at - 1] > key:
                keys[at], order[at] = keys[at - 1], order[at - 1]
                at -= 1
            keys[at], order[at] = key, a
        least = np.float32(np.inf)
        for j in range(held):
            a, own = order[j], keys[j]
            low = np.float32(np.inf)
            for b in range(entries):
                low = min(low, second[i, b] + cross[a, b])
            if own + low < least:
                least = own + low
                out[i, 0] = a
                for b in range(entries):
                    if second[i, b] + cross[a, b] == low:
                        out[i, 1] = b
                        break


def naive_pairs(x: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """uint8 [N, 2] by the definition, all pairs: of x [N, d] and tables [2, K, d]."""
    sums = tables[0][:, None] + tables[1]  # [K, K, d]
    away = np.square(x[:, None, None].astype(np.float64) - sums).sum(-1).reshape(len(x), -1)
    return np.stack(np.unravel_index(away.argmin(1), sums.shape[:2]), 1).astype(np.uint8)


def naive_scan(tables: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys [k], places [k]) of all codes, by the definition."""
    sums = tables[np.arange(codes.shape[1]), codes].astype(np.float64).sum(1)
    order = np.argsort(sums, kind="stable")[:k]
    return sums[order], order
