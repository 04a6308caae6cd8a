"""Entries of a book as bits, each predicted from the entries of neighbours (numba).

The book is ordered so that entries with the same first bits are alike; the mask of who has an entry is coded as
entries of a book of two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.coded_bits import CONTEXTS, decide, finished, fresh, started

_SIDES = 32


def written(codes: np.ndarray, bits: int, near: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Bytes of int64 [N] below 2**bits. near [N, K]: neighbours that came before, -1: none; side [N] below 32."""
    coder, data = started(None, 64 + 2 * codes.size * max(1, bits))
    _walk(coder, data, *_fresh(bits), codes.copy(), bits, near, side)
    assert coder[2] <= data.size
    return finished(coder, data)


def read(raw: np.ndarray, bits: int, near: np.ndarray, side: np.ndarray) -> np.ndarray:
    coder, data = started(raw)
    codes = np.zeros(len(near), np.int64)
    _walk(coder, data, *_fresh(bits), codes, bits, near, side)
    return codes


def _fresh(bits: int) -> tuple[np.ndarray, np.ndarray]:
    return fresh(max(1 << bits, 3 * 64, _SIDES * 9), 1)


@njit(cache=True, nogil=True)
def _told(codes: Any, near: Any, i: Any, k: Any, got: Any, bit: Any) -> Any:
    """What a neighbour says of the next bit: 0 nothing, 1 a zero, 2 a one."""
    j = near[i, k]
    if j < 0 or codes[j] >> (bit + 1) != got:
        return np.int64(0)
    return 1 + ((codes[j] >> bit) & 1)


@njit(cache=True, nogil=True)
def _walk(
    coder: Any, data: Any, counters: Any, weights: Any, codes: Any, bits: Any, near: Any, side: Any
) -> None:
    where = np.zeros(CONTEXTS, np.int64)
    for i in range(len(codes)):
        got, mine = np.int64(0), codes[i]
        for bit in range(bits - 1, -1, -1):
            deep = bits - 1 - bit
            first, second = _told(codes, near, i, 0, got, bit), _told(codes, near, i, 1, got, bit)
            ones, zeros = np.int64(0), np.int64(0)
            for k in range(near.shape[1]):
                said = _told(codes, near, i, k, got, bit)
                ones += said == 2
                zeros += said == 1
            where[0] = (np.int64(1) << deep) + got - 1
            where[1] = first * 9 + second * 3 + _told(codes, near, i, 2, got, bit)
            where[2] = first * 64 + ((np.int64(1) << deep) + got if deep < 6 else np.int64(0))
            where[3] = ones * 8 + zeros
            where[4] = side[i] * 9 + first * 3 + second
            where[5] = side[i]
            got = (got << 1) | decide(
                coder, data, counters, weights, where, 0, min(deep, 63), (mine >> bit) & 1
            )
        codes[i] = got
