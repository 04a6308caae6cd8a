"""Rows of a file straight into their places: compiled, without the interpreter's lock."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numba import njit, types

# of the C library, called without Python
_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))
_memcpy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.uintp))
PAGE = 4096


@njit(cache=True, nogil=True)
def reads_of(rows: np.ndarray, width: int, start: int, gap: int, window: int) -> tuple[np.ndarray, int, int]:
    """Where a new read begins among rising rows, [reads + 1], and the bytes and pages of all reads.

    A row joins the read before it where at most `gap` bytes lie between them and the read stays within `window`.
    """
    ends = np.empty(len(rows) + 1, np.int64)
    count, nbytes, pages, first = 0, 0, 0, 0
    for k in range(1, len(rows) + 1):
        if k < len(rows):
            span = (rows[k] - rows[first] + 1) * width
            if rows[k] == rows[k - 1] or ((rows[k] - rows[k - 1] - 1) * width <= gap and span <= window):
                continue
        at, size = start + rows[first] * width, (rows[k - 1] - rows[first] + 1) * width
        nbytes += size
        pages += (at + size - 1) // PAGE - at // PAGE + 1
        ends[count], first = first, k
        count += 1
    ends[count] = len(rows)
    return ends[: count + 1], nbytes, pages


@njit(cache=True, nogil=True)
def fill(
    fd: int, out: int, rows: np.ndarray, places: np.ndarray, ends: np.ndarray,
    low: int, high: int, width: int, start: int, held: int,
) -> int:  # fmt: skip
    """Do the reads [low, high): rows[k] goes to place places[k] of the batch at address `out`. Which read fell short,
    else -1.

    A read of one row goes to its place; one of several goes to the small window at `held`, which the cache has.
    """
    for i in range(low, high):
        a, b = ends[i], ends[i + 1]
        first, size = rows[a], (rows[b - 1] - rows[a] + 1) * width
        into = held if size > width else out + places[a] * width
        if _pread(fd, into, size, start + first * width) != size:
            return i
        for k in range(a, b):
            place = out + places[k] * width
            if place != into:
                _memcpy(place, into + (rows[k] - first) * width, width)
    return -1


def naive_gather(fd: int, rows: np.ndarray, width: int, start: int) -> np.ndarray:
    """uint8 [rows, width]: one read a row, in the order asked."""
    raw = b"".join(os.pread(fd, width, start + int(r) * width) for r in rows)
    return np.frombuffer(raw, np.uint8).reshape(len(rows), width)
