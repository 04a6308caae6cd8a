"""The nearest of a few vectors, for many (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def nearest(x: Any, book: Any, out: Any) -> None:
    """out [N]: which row of book [K, D] is nearest to each of x [N, D]; of equal ones the first."""
    for i in range(len(x)):
        best, found = np.float32(np.inf), 0
        for k in range(len(book)):
            off = np.float32(0)
            for d in range(x.shape[1]):
                miss = x[i, d] - book[k, d]
                off += miss * miss
            if off < best:
                best, found = off, k
        out[i] = found
