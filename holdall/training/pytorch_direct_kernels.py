"""Rows of a file straight into their places: compiled, without the interpreter's lock."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numba import njit, types

# of the C library, called without Python
_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))
_preadv2: Any = types.ExternalFunction(
    "preadv2", types.intp(types.int32, types.uintp, types.int32, types.int64, types.int32)
)
_memcpy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.uintp))
PAGE = 4096
NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  # Linux; elsewhere nobody can ask what is in the cache


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
def _placed(rows: np.ndarray, places: np.ndarray, a: int, b: int, out: int, into: int, width: int) -> None:
    """What was read at `into`, to all the places that want it."""
    for k in range(a, b):
        place = out + places[k] * width
        if place != into:
            _memcpy(place, into + (rows[k] - rows[a]) * width, width)


@njit(cache=True, nogil=True)
def fill(
    fd: int, out: int, rows: np.ndarray, places: np.ndarray, ends: np.ndarray,
    which: np.ndarray, width: int, start: int, held: int,
) -> int:  # fmt: skip
    """Do the reads `which`: rows[k] goes to place places[k] of the batch at address `out`. How many of them were done
    before one fell short.

    A read of one row goes to its place; one of several goes to the small window at `held`, which the cache has.
    """
    for n, i in enumerate(which):
        a, b = ends[i], ends[i + 1]
        size = (rows[b - 1] - rows[a] + 1) * width
        into = held if size > width else out + places[a] * width
        if _pread(fd, into, size, start + rows[a] * width) != size:
            return n
        _placed(rows, places, a, b, out, into, width)
    return len(which)


@njit(cache=True, nogil=True)
def fill_cached(
    fd: int, out: int, rows: np.ndarray, places: np.ndarray, ends: np.ndarray,
    width: int, start: int, held: int, nowait: int,
) -> np.ndarray:  # fmt: skip
    """As `fill`, all the reads that the kernel has in its cache; the others, which would wait for the disk."""
    left, count, vector = np.empty(len(ends) - 1, np.int64), 0, np.empty(2, np.int64)
    for i in range(len(ends) - 1):
        a, b = ends[i], ends[i + 1]
        size = (rows[b - 1] - rows[a] + 1) * width
        into = held if size > width else out + places[a] * width
        vector[0], vector[1] = into, size
        if _preadv2(fd, vector.ctypes.data, 1, start + rows[a] * width, nowait) == size:
            _placed(rows, places, a, b, out, into, width)
        else:
            left[count] = i
            count += 1
    return left[:count]


def naive_gather(fd: int, rows: np.ndarray, width: int, start: int) -> np.ndarray:
    """uint8 [rows, width]: one read a row, in the order asked."""
    raw = b"".join(os.pread(fd, width, start + int(r) * width) for r in rows)
    return np.frombuffer(raw, np.uint8).reshape(len(rows), width)
