"""Late interaction in numba: for each document the sum, over a query's vectors, of the best of its codes.

A document is a set of centroids. Short sets are lists of codes of `width` bits, one document behind the other; long
ones are bits, 64 documents to a word: sets [B, K], where bit d of sets[b, c] says that document 64 b + d has
centroid c. Both give the same sums, bit for bit: the best of each query vector, added in their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_F32, _ONE, _U64 = np.float32, np.uint64(1), np.uint64


@intrinsic
def _lowest(typing: Any, word: Any) -> Any:
    """The number of the lowest bit that is set."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), code


@njit(cache=True, nogil=True)
def code_at(codes, width, number):  # type: ignore[no-untyped-def]
    """Code number `number` of a packed stream, whose last byte has one behind it."""
    bit = number * width
    at = bit >> 3
    word = np.int64(codes[at]) | (np.int64(codes[at + 1]) << 8)
    return (word >> (bit & 7)) & ((1 << width) - 1)


@njit(cache=True, nogil=True)
def pack(values, width, codes):  # type: ignore[no-untyped-def]
    for number in range(len(values)):
        bit = number * width
        at, value = bit >> 3, np.int64(values[number]) << (bit & 7)
        codes[at] |= np.uint8(value & 255)
        codes[at + 1] |= np.uint8(value >> 8)


@njit(cache=True, nogil=True)
def unpack(codes, width, values):  # type: ignore[no-untyped-def]
    for number in range(len(values)):
        values[number] = code_at(codes, width, number)


@njit(cache=True, nogil=True)
def walk(sets, alive, order, table, floor, scores):  # type: ignore[no-untyped-def]
    """scores [64 B]. order, table [Q, P]: centroids of each query vector, the best first, and what they are worth;
    floor [Q]: the worth of those that are not among them. alive [B]: which documents are looked at.

    Each query vector walks from its best centroid on until all 64 documents have met one of theirs.
    """
    for b in range(len(sets)):
        if not alive[b]:
            continue
        for i in range(len(order)):
            rest = alive[b]
            for p in range(order.shape[1]):
                hit = rest & sets[b, order[i, p]]
                if hit:
                    rest ^= hit
                    while hit:
                        scores[64 * b + _lowest(hit)] += table[i, p]  # type: ignore[call-arg]
                        hit &= hit - _ONE
                    if not rest:
                        break
            while rest:
                scores[64 * b + _lowest(rest)] += floor[i]  # type: ignore[call-arg]
                rest &= rest - _ONE


@njit(cache=True, nogil=True)
def scan(codes, width, ends, each, keep, table, scores):  # type: ignore[no-untyped-def]
    """scores [N] of packed lists. table [K, Q]: what a centroid is worth to each query vector. ends [N], or of no
    size where all documents have `each` codes. keep [N], or of no size."""
    wide = table.shape[1]
    best = np.empty(wide, np.float32)
    for d in range(len(scores)):
        if keep.size and not keep[d]:
            continue
        first, last = _span(ends, each, d)
        best[:] = -np.inf
        for number in range(first, last):
            code = code_at(codes, width, number)
            for i in range(wide):
                best[i] = max(best[i], table[code, i])
        total = _F32(0)
        for i in range(wide):
            total += best[i]
        scores[d] = total


@njit(cache=True, nogil=True)
def _span(ends, each, d):  # type: ignore[no-untyped-def]
    if not ends.size:
        return d * each, (d + 1) * each
    return (np.int64(ends[d - 1]) if d else 0), np.int64(ends[d])


@njit(cache=True, nogil=True)
def popcount(x):  # type: ignore[no-untyped-def]
    """Bits that are set, of numbers below 2**16."""
    x = x - ((x >> np.int16(1)) & np.int16(0x5555))
    x = (x & np.int16(0x3333)) + ((x >> np.int16(2)) & np.int16(0x3333))
    x = (x + (x >> np.int16(4))) & np.int16(0x0F0F)
    return (x + (x >> np.int16(8))) & np.int16(0x1F)


@njit(cache=True, nogil=True)
def bit_scan(codes, width, ends, each, keep, asked, scores):  # type: ignore[no-untyped-def]
    """scores [N]: the sum, over codes asked int16 [Q], of `width` less the fewest bits in which one of the
    document's differs."""
    least = np.empty(len(asked), np.int16)
    for d in range(len(scores)):
        if keep.size and not keep[d]:
            continue
        first, last = _span(ends, each, d)
        least[:] = width
        for number in range(first, last):
            code = np.int16(code_at(codes, width, number))
            for i in range(len(asked)):
                least[i] = min(least[i], popcount(np.int16(asked[i] ^ code)))
        total = 0
        for i in range(len(asked)):
            total += width - least[i]
        scores[d] = total


@njit(cache=True, nogil=True)
def fine(parts, begins, stops, tables, scores):  # type: ignore[no-untyped-def]
    """scores [C] of documents whose product codes [., m] are rows begins to stops. tables [m, 256, Q]."""
    wide = tables.shape[2]
    best, total = np.empty(wide, np.float32), np.empty(wide, np.float32)
    for c in range(len(scores)):
        best[:] = -np.inf
        for row in range(begins[c], stops[c]):
            total[:] = tables[0, parts[row, 0]]
            for m in range(1, parts.shape[1]):
                worth = tables[m, parts[row, m]]
                for i in range(wide):
                    total[i] += worth[i]
            for i in range(wide):
                best[i] = max(best[i], total[i])
        whole = _F32(0)
        for i in range(wide):
            whole += best[i]
        scores[c] = whole
