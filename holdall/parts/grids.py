"""Grids, codes and bytes of one row at a time, in numba: what `holdall.parts.quant` says in terms of torch.

The results are those of `grid`, `encode` and `pack` but for the rounding of sums, so that a number halfway between two
codes may get the other one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.parts.floats import narrow, wide
from holdall.parts.moments import moments
from holdall.parts.quant import _LEAST, _NARROW
from holdall.parts.tiles import LANES, span
from holdall.parts.words import put_word, word

_F32 = np.float32
_STEP = np.float32(_LEAST)
_ONES = np.uint64(0x0101010101010101)
_SHARES = np.array([_NARROW.get(bits, 1.0) for bits in range(9)], np.float32)


@njit(nogil=True, cache=True, fastmath=True)
def lay(x, count, bits, rounds) -> Any:  # type: ignore[no-untyped-def]
    """(step, low) of the grid of the first numbers of x, rounded to halves, as 16 bits; and the larger of the two.

    x has room for LANES more numbers, which are overwritten.
    """
    top, low, high = _F32((1 << bits) - 1), _F32(0), _F32(0)
    if count:
        whole = (count + LANES - 1) // LANES * LANES
        x[count:whole] = x[0]
        low, high = span(x, whole)
    if rounds:
        middle, half = (low + high) / 2, (high - low) / 2 * _SHARES[bits]
        low, high = middle - half, middle + half
    step = max((high - low) / top, _STEP)
    if rounds and count:
        step, low = _fitted(x, count, step, low, top, rounds)
    return narrow(_F32(step)), narrow(_F32(low)), max(abs(low), step)


@njit(nogil=True, cache=True, fastmath=True)
def _fitted(x, count, step, low, top, rounds):  # type: ignore[no-untyped-def]
    """Rounds of least squares: codes for the grid, then the grid for the codes."""
    mean = _F32(0)
    for t in range(count):
        mean += x[t]
    mean /= _F32(count)
    whole = (count + LANES - 1) // LANES * LANES  # beyond count stands the first number again
    for _ in range(rounds):
        each = _F32(1) / step
        codes, squares, both = moments(x, whole, low, each, top, mean)
        q = (x[0] - low) * each
        q = q if q > 0 else _F32(0)
        q = np.rint(q if q < top else top) * _F32(whole - count)
        codes -= q
        squares -= q * q / _F32(max(1, whole - count))
        both -= q * (x[0] - mean)
        middle = np.float64(codes) / count
        spread = np.float64(squares) - middle * codes
        if spread > 1e-6:
            step = max(_F32(both / spread), _STEP)
        low = mean - step * _F32(middle)
    return step, low


@njit(nogil=True, cache=True, fastmath=True)
def put(x, count, step, low, bits, codes):  # type: ignore[no-untyped-def]
    """The nearest codes of numbers, uint8, for a grid in halves."""
    each, start, top = _F32(1) / wide(step, False), wide(low, False), _F32((1 << bits) - 1)
    for t in range(count):
        q = (x[t] - start) * each
        q = q if q > 0 else _F32(0)
        codes[t] = np.uint8(np.int32(np.rint(q if q < top else top)))


@njit(nogil=True, cache=True)
def pack_row(codes, count, bits, out, to):  # type: ignore[no-untyped-def]
    """Bytes of so many codes, from `to` on, as `holdall.parts.quant.pack` has them; how many.

    codes has room for 8 more, which become 0. Eight bytes at a time: masked codes do not reach into their neighbours.
    """
    codes[count : count + 8] = 0
    plane, at, low = 2 if bits == 3 else bits, to, 0
    while low < bits:
        per, mask, down = 8 // plane, np.uint64((1 << plane) - 1) * _ONES, np.uint64(low)
        bytes_ = (count + per - 1) // per
        whole = bytes_ // 8 * 8
        for j in range(0, whole, 8):
            found = np.uint64(0)
            for i in range(per):
                found |= ((word(codes, i * bytes_ + j) >> down) & mask) << np.uint64(i * plane)
            put_word(out, at + j, found)
        for j in range(whole, bytes_):
            few = 0
            for i in range(per):
                few |= ((codes[i * bytes_ + j] >> low) & ((1 << plane) - 1)) << (i * plane)
            out[at + j] = few
        at += bytes_
        low += plane
        plane = bits - low
    return at - to


@njit(nogil=True, cache=True)
def unpack_row(packed, at, count, bits, codes):  # type: ignore[no-untyped-def]
    """The inverse of `pack_row`, from `at` on. codes has room for 8 more, in which anything may come to stand."""
    plane, low = 2 if bits == 3 else bits, 0
    codes[:count] = 0
    while low < bits:
        per, mask, up = 8 // plane, np.uint64((1 << plane) - 1) * _ONES, np.uint64(low)
        bytes_ = (count + per - 1) // per
        whole = bytes_ // 8 * 8
        for i in range(per):
            start, down = i * bytes_, np.uint64(i * plane)
            for j in range(0, min(whole, count - start), 8):
                found = ((word(packed, at + j) >> down) & mask) << up
                put_word(codes, start + j, word(codes, start + j) | found if low else found)
            for j in range(whole, min(bytes_, count - start)):
                found = (packed[at + j] >> (i * plane)) & ((1 << plane) - 1)
                codes[start + j] = codes[start + j] | (found << low) if low else found
        at += bytes_
        low += plane
        plane = bits - low
