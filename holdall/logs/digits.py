"""Many whole numbers at once: their varints and their decimal text (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def read_varints(raw: Any) -> Any:
    """All LEB128 numbers of a byte array; the flag is False if the last is cut short or one is too long."""
    out, n = np.empty(raw.size, np.int64), 0
    value, shift = np.int64(0), 0
    for i in range(raw.size):
        if shift > 56:
            return out[:n], False
        value |= np.int64(raw[i] & 127) << shift
        shift += 7
        if raw[i] < 128:
            out[n] = value
            n += 1
            value, shift = np.int64(0), 0
    return out[:n], shift == 0


@njit(cache=True, nogil=True)
def write_lines(values: Any) -> Any:
    """The decimal text of whole numbers, a line each."""
    out, at = np.empty(values.size * 21, np.uint8), 0
    for i in range(values.size):
        v = np.uint64(values[i])
        if values[i] < 0:
            out[at] = 45
            at += 1
            v = np.uint64(0) - v
        width, rest = 1, v // np.uint64(10)
        while rest > np.uint64(0):
            width += 1
            rest //= np.uint64(10)
        for k in range(width - 1, -1, -1):
            out[at + k] = np.uint8(np.uint64(48) + v % np.uint64(10))
            v //= np.uint64(10)
        at += width
        out[at] = 10
        at += 1
    return out[:at]


def naive_read_varints(raw: bytes) -> list[int]:
    """`read_varints`, slowly."""
    out, value, shift = [], 0, 0
    for byte in raw:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            out.append(value)
            value = shift = 0
    return out


def naive_write_lines(values: np.ndarray) -> bytes:
    """`write_lines`, slowly."""
    return b"".join(b"%d\n" % v for v in values.tolist())


@njit(cache=True, nogil=True)
def tour_edges(numbers: Any, segments: Any, new: Any, lists: Any) -> Any:
    """[segments, lists + 1] where each segment's lists begin and end; empty if the numbers do not fit.

    A segment but the first has `new` numbers, then each has `lists` times a count and as many numbers.
    """
    out, at = np.empty((segments, lists + 1), np.int64), 0
    for k in range(segments):
        at += new if k else 0
        out[k, 0] = at
        for j in range(lists):
            if at >= numbers.size or numbers[at] < 0 or numbers[at] > numbers.size - at - 1:
                return out[:0]
            at += numbers[at] + 1
            out[k, j + 1] = at
    return out if at <= numbers.size else out[:0]


@njit(cache=True, nogil=True)
def holders(numbers: Any, firsts: Any, ends: Any, wanted: Any) -> Any:
    """[segments] whether the list numbers[firsts + 1 : ends], told as steps from -1, has one of `wanted` (sorted)."""
    out = np.zeros(firsts.size, np.bool_)
    for k in range(firsts.size):
        value, at = np.int64(-1), 0
        for i in range(firsts[k] + 1, ends[k]):
            value += numbers[i]
            while at < wanted.size and wanted[at] < value:
                at += 1
            if at == wanted.size:
                break
            if wanted[at] == value:
                out[k] = True
                break
    return out
