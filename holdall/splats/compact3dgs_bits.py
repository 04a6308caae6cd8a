"""Columns of bytes, coded as what their neighbours in the row and in the rows before make likely (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.coded_bits import CONTEXTS, decide, finished, fresh, started

_COARSE = 16  # kinds of a neighbour that are told apart
_TOPS = (
    16  # what the upper half of a byte may be, of which the lower half depends; 0 to ask for the upper one
)


def written(rows: np.ndarray, groups: np.ndarray, kinds: int) -> np.ndarray:
    """Bytes of uint8 [R, C]; groups [R], below `kinds`: rows that are alike, and stand together."""
    coder, data = started(None, 64 + 2 * rows.size)
    _walk(coder, data, *_fresh(rows, kinds), rows.copy(), groups)
    assert coder[2] <= data.size
    return finished(coder, data)


def read(raw: np.ndarray, shape: tuple[int, int], groups: np.ndarray, kinds: int) -> np.ndarray:
    coder, data = started(raw)
    rows = np.zeros(shape, np.uint8)
    _walk(coder, data, *_fresh(rows, kinds), rows, groups)
    return rows


def _fresh(rows: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    return fresh(kinds * rows.shape[1] * _COARSE * _TOPS, kinds * rows.shape[1])


@njit(cache=True, nogil=True)
def _half(
    coder: Any, data: Any, counters: Any, weights: Any, where: Any, set_: Any, node: Any, value: Any
) -> Any:
    """Four bits, the highest first. node: where their tree of decisions begins."""
    got = np.int64(1)
    for k in range(3, -1, -1):
        got = (got << 1) | decide(coder, data, counters, weights, where, set_, node + got, (value >> k) & 1)
    return got - 16


@njit(cache=True, nogil=True)
def _walk(coder: Any, data: Any, counters: Any, weights: Any, rows: Any, groups: Any) -> None:
    wide, plain, where = rows.shape[1], np.zeros(CONTEXTS, np.int64), np.zeros(CONTEXTS, np.int64)
    for i in range(len(rows)):
        for c in range(wide):
            column = groups[i] * wide + c
            left = np.int64(rows[i, c - 1]) if c else np.int64(0)
            more = np.int64(rows[i, c - 2]) if c > 1 else np.int64(0)
            same = i > 0 and groups[i - 1] == groups[i]
            above = np.int64(rows[i - 1, c]) if same else np.int64(0)
            older = np.int64(rows[i - 2, c]) if same and i > 1 and groups[i - 2] == groups[i] else above
            plain[0] = 0
            plain[1] = left & 15
            plain[2] = left >> 2 & 15
            plain[3] = above >> 2 & 15 if above < 64 else above >> 4
            plain[4] = (above + older) >> 5
            plain[5] = (more >> 4) + (left >> 6) * 4 & 15
            mine = np.int64(rows[i, c])
            for k in range(CONTEXTS):
                where[k] = (column * _COARSE + plain[k]) * _TOPS
            top = _half(coder, data, counters, weights, where, column, 0, mine >> 4)
            for k in range(CONTEXTS):
                where[k] += top
            low = _half(coder, data, counters, weights, where, column, 16, mine & 15)
            rows[i, c] = top * 16 + low
