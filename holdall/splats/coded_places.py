"""What lies below the grid: bits of places that are a Gaussian's own (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.coded_bits import code, finished, started


def written(low: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Bytes of int64 [N, 3] below 2**bits[i]."""
    coder, data = started(None, 64 + int(bits.sum()))
    _walk(coder, data, low.copy(), bits)
    return finished(coder, data)


def read(raw: np.ndarray, bits: np.ndarray) -> np.ndarray:
    coder, data = started(raw)
    low = np.zeros((len(bits), 3), np.int64)
    _walk(coder, data, low, bits)
    return low


@njit(cache=True, nogil=True)
def _walk(coder: Any, data: Any, low: Any, bits: Any) -> None:
    for i in range(len(low)):
        for axis in range(3):
            value, got = low[i, axis], np.int64(0)
            for k in range(bits[i] - 1, -1, -1):
                got = (got << 1) | code(coder, data, np.int64(32768), (value >> k) & 1)
            low[i, axis] = got
