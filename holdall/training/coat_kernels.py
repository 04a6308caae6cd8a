"""AdamW in one pass over FP8 moments: a group at a time is widened, updated and made codes again.

A group keeps its largest number and the exponent k of its range, in sixteenths less one. A code q stands for
`largest * (q / 448)^(1 / k)`: the same as scale, exponent and centre together, as the centre cancels out.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.training.fp8_lanes import LANES, encode, encode_by_chance, update

_ODD, _SIZE = np.int32(0x7F800000), np.int32(0x7FFFFFFF)
_REACH = np.log2(448.0 * 448.0 / 2)  # octaves that codes span
_TOP = np.log2(448.0)


@njit(nogil=True, cache=True, error_model="numpy")
def _keep(x, bits, n, ends, at, codes, start, tops, powers, group, expand, seed, place):  # type: ignore[no-untyped-def]
    """A tile as one group: its largest, its exponent and its codes. ends[at]: the largest, then the smallest.

    seed: of chance, with which an exponent also stays as long as codes reach and are used; 0: nearest, and anew.
    """
    if not ends[at]:
        tops[group], powers[group] = np.float32(0), np.uint8(15)
        for i in range(n):
            codes[start + i] = np.uint8(127) if (bits[i] & _SIZE) >= _ODD else np.uint8(0)
        return
    top = np.log2(np.float64(ends[at]))
    wide = top - np.log2(np.float64(ends[at + 1]))
    k = 16 if not expand else 256 if wide * 16.0 <= _REACH else max(1, int(np.floor(_REACH / wide * 16.0)))
    old = powers[group] + 1
    if seed and expand and 3 * k <= 4 * old and old <= k:
        k = old
    tops[group], powers[group] = ends[at], np.uint8(k - 1)
    power, shift = np.float32(k / 16.0), np.float32(_TOP - k / 16.0 * top)
    if seed:
        encode_by_chance(x, n, power, shift, codes, start, np.int32(seed), place)
    else:
        encode(x, n, power, shift, codes, start)


@njit(nogil=True, cache=True, error_model="numpy")
def _read(codes, start, n, tables, tops, powers, group, out):  # type: ignore[no-untyped-def]
    row, top = tables[powers[group]], tops[group]
    first = np.uint64(start)
    for i in range(n):
        out[i] = row[codes[first + np.uint64(i)]] * top


@njit(nogil=True, cache=True, error_model="numpy")
def step(p, g, mq, mt, mk, vq, vt, vk, tables, size, first, last, c, expand, seed):  # type: ignore[no-untyped-def]
    """Groups `first` to `last` of a tensor. mq, vq: codes uint8 [N]; mt, vt: the largest; mk, vk: 16 k - 1.

    tables float32 [256, 256]: what a code stands for at each k where the largest is one. size: of a group, whole
    lanes. c: as `update` has it. expand: k fits the group; else it is one, which is plain FP8.
    """
    a, b, spans = np.zeros(size, np.float32), np.zeros(size, np.float32), np.empty(4, np.int32)
    a_bits, b_bits, ends = a.view(np.int32), b.view(np.int32), spans.view(np.float32)
    for group in range(first, last):
        start = group * size
        n = min(size, len(p) - start)
        if n % LANES:
            _odd(p, g, mq, mt, mk, vq, vt, vk, tables, size, group, c, expand, seed)
            continue
        _read(mq, start, n, tables, mt, mk, group, a)
        _read(vq, start, n, tables, vt, vk, group, b)
        update(p, g, start, n, a, b, c, spans)
        _keep(a, a_bits, n, ends, 0, mq, start, mt, mk, group, expand, 0, start)
        _keep(b, b_bits, n, ends, 2, vq, start, vt, vk, group, expand, seed, start)


@njit(nogil=True, cache=True, error_model="numpy")
def _odd(p, g, mq, mt, mk, vq, vt, vk, tables, size, group, c, expand, seed):  # type: ignore[no-untyped-def]
    """The last group of a tensor, which is no whole lanes: filled up with zeros, where these change nothing."""
    start = group * size
    n = len(p) - start
    wide = (n + LANES - 1) // LANES * LANES
    numbers, codes = np.zeros((4, wide), np.float32), np.zeros((2, wide), np.uint8)
    spans = np.empty(4, np.int32)
    numbers[0, :n], numbers[1, :n], codes[0, :n], codes[1, :n] = p[start:], g[start:], mq[start:], vq[start:]
    a, b, ends = numbers[2], numbers[3], spans.view(np.float32)
    _read(codes[0], 0, wide, tables, mt, mk, group, a)
    _read(codes[1], 0, wide, tables, vt, vk, group, b)
    update(numbers[0], numbers[1], 0, wide, a, b, c, spans)
    _keep(a, a.view(np.int32), wide, ends, 0, codes[0], 0, mt, mk, group, expand, 0, start)
    _keep(b, b.view(np.int32), wide, ends, 2, codes[1], 0, vt, vk, group, expand, seed, start)
    p[start:], mq[start:], vq[start:] = numbers[0, :n], codes[0, :n], codes[1, :n]
