"""Curator's loops over flat arrays: distances, Bloom filters, the way down a tree, heaps. Compiled.

A tree's nodes are numbered so that what is below node v is v + 1 to ends[v] - 1; a leaf's end is v + 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from holdall.parts.floats import wide

_FAST = {"contract", "reassoc", "nsz"}
_ODD, _ODDER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_LINE = 64  # bytes of memory that come together
_HALF, _ONE = np.uint64(32), np.uint64(1)


def still(x: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, as what comes from a file: another type would be compiled for."""
    view = x.view()
    view.setflags(write=False)
    return view


def number(x):  # type: ignore[no-untyped-def]
    """float32 of a stored number; halves come as uint16, which no vectors are of."""


@overload(number)
def _number(x):  # type: ignore[no-untyped-def]
    if x == types.uint16:
        return lambda x: wide(x, False)
    return lambda x: np.float32(x)


def _ahead(typingctx, vectors, row):  # type: ignore[no-untyped-def]
    """fn(vectors [N, D], row): have its memory come near. Rows of a tenant are far apart, and no processor guesses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        step = builder.extract_value(array.strides, 0)
        first = builder.add(builder.ptrtoint(array.data, step.type), builder.mul(args[1], step))
        byte = ir.IntType(8).as_pointer()
        flags = [ir.IntType(32)] * 3
        kind = ir.FunctionType(ir.VoidType(), [byte, *flags])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        lines = builder.udiv(builder.add(step, step.type(_LINE - 1)), step.type(_LINE))
        with cgutils.for_range(builder, lines) as loop:
            place = builder.add(first, builder.mul(loop.index, step.type(_LINE)))
            read, near, data = (flags[0](n) for n in (0, 3, 1))
            builder.call(fetch, [builder.inttoptr(place, byte), read, near, data])
        return context.get_dummy_value()

    return types.void(vectors, types.intp), codegen


ahead: Any = intrinsic(_ahead)


@njit(nogil=True, cache=True, fastmath=_FAST)
def key(query, vectors, row, metric):  # type: ignore[no-untyped-def]
    """Rises with distance. 0: squared distance; 1: the same of vectors of length one; 2: minus the inner product."""
    total, size = np.float32(0), np.float32(0)
    if metric == 0:
        for d in range(len(query)):
            away = query[d] - number(vectors[row, d])
            total += away * away
        return total
    for d in range(len(query)):
        x = number(vectors[row, d])
        total += query[d] * x
        size += x * x
    if metric == 2:
        return -total
    return np.float32(2) - np.float32(2) * total / np.sqrt(size) if size > 0 else np.float32(2)


@njit(nogil=True, cache=True, fastmath=_FAST)
def distance(query, vectors, row, metric):  # type: ignore[no-untyped-def]
    """As users are told it, in float64."""
    total, size, asked = 0.0, 0.0, 0.0
    if metric == 0:
        for d in range(len(query)):
            away = np.float64(query[d]) - number(vectors[row, d])
            total += away * away
        return np.sqrt(total)
    for d in range(len(query)):
        x = np.float64(number(vectors[row, d]))
        total += query[d] * x
        asked += query[d] * query[d]
        size += x * x
    if metric == 2:
        return -total
    if not (size > 0 and asked > 0):
        return 1.0
    total, scale = 0.0, 1 / np.sqrt(size)
    for d in range(len(query)):  # of two that are nearly the same, 1 - cosine would lose everything
        away = query[d] - number(vectors[row, d]) * scale
        total += away * away
    return total / 2


@njit(nogil=True, cache=True)
def mixed(token, node):  # type: ignore[no-untyped-def]
    """A tenant's two numbers for the filter of a node."""
    x = token + np.uint64(node) * _ODD
    x = (x ^ (x >> _HALF)) * _ODDER
    x ^= x >> _HALF
    return x, (x >> _HALF) | _ONE


@njit(nogil=True, cache=True)
def has(words, offsets, hashes, node, token):  # type: ignore[no-untyped-def]
    """Whether the tenant may be at a node or below; False is certain."""
    first, step = mixed(token, node)
    mask = np.uint64(64 * (offsets[node + 1] - offsets[node]) - 1)
    for i in range(hashes):
        at = (first + np.uint64(i) * step) & mask
        if not (words[offsets[node] + np.int64(at >> np.uint64(6))] >> (at & np.uint64(63))) & _ONE:
            return False
    return True


@njit(nogil=True, cache=True)
def put(words, offsets, hashes, node, token):  # type: ignore[no-untyped-def]
    first, step = mixed(token, node)
    mask = np.uint64(64 * (offsets[node + 1] - offsets[node]) - 1)
    for i in range(hashes):
        at = (first + np.uint64(i) * step) & mask
        words[offsets[node] + np.int64(at >> np.uint64(6))] |= _ONE << (at & np.uint64(63))


@njit(nogil=True, cache=True)
def place(nodes, first, last, node):  # type: ignore[no-untyped-def]
    """Where the first of nodes[first:last], which rise, stands that is no less than `node`."""
    while first < last:
        middle = (first + last) // 2
        if nodes[middle] < node:
            first = middle + 1
        else:
            last = middle
    return first


@njit(nogil=True, cache=True)
def descend(vectors, centroids, ends, metric, leaves, sums, counts):  # type: ignore[no-untyped-def]
    """The leaf of each vector [n, D], float32: at each node on to the nearest child. Distances go into sums."""
    for i in range(len(vectors)):
        node, away = 0, key(vectors[i], centroids, 0, metric)
        while True:
            sums[node] += np.sqrt(max(away, np.float32(0)))
            counts[node] += 1
            if ends[node] == node + 1:
                break
            child, best = node + 1, -1
            while child < ends[node]:
                found = key(vectors[i], centroids, child, metric)
                if best < 0 or found < away:
                    best, away = child, found
                child = ends[child]
            node = best
        leaves[i] = node


@njit(nogil=True, cache=True)
def leave(vectors, centroids, ends, metric, leaves, sums, counts):  # type: ignore[no-untyped-def]
    """The way of `descend`, with distances taken out of sums."""
    for i in range(len(vectors)):
        node = 0
        while True:
            sums[node] -= np.sqrt(max(key(vectors[i], centroids, node, metric), np.float32(0)))
            counts[node] -= 1
            if node == leaves[i]:
                break
            child = node + 1
            while leaves[i] >= ends[child]:
                child = ends[child]
            node = child


@njit(nogil=True, cache=True)
def sink(keys, rows, filled, away, row):  # type: ignore[no-untyped-def]
    """Put one into a heap whose greatest is first: in place of that where it is full."""
    at = filled
    if filled < len(keys):
        while at > 0:
            up = (at - 1) >> 1
            if keys[up] > away or (keys[up] == away and rows[up] > row):
                break
            keys[at], rows[at] = keys[up], rows[up]
            at = up
        keys[at], rows[at] = away, row
        return filled + 1
    settle(keys, rows, filled, away, row)
    return filled


@njit(nogil=True, cache=True)
def settle(keys, rows, count, away, row):  # type: ignore[no-untyped-def]
    """The first of a heap of `count` gives way to this one, which goes to its place."""
    at = 0
    while 2 * at + 1 < count:
        low = 2 * at + 1
        if low + 1 < count and (
            keys[low + 1] > keys[low] or (keys[low + 1] == keys[low] and rows[low + 1] > rows[low])
        ):
            low += 1
        if keys[low] < away or (keys[low] == away and rows[low] < row):
            break
        keys[at], rows[at] = keys[low], rows[low]
        at = low
    keys[at], rows[at] = away, row


@njit(nogil=True, cache=True)
def parents_of(ends):  # type: ignore[no-untyped-def]
    """The node above each, -1 of the first; nothing where these cannot be the ends of a tree."""
    parents, node = np.full(len(ends), -1, np.int32), -1
    if len(ends) == 0 or ends[0] != len(ends):
        return parents[:0]
    for v in range(len(ends)):
        while node >= 0 and ends[node] <= v:
            node = parents[node]
        if ends[v] <= v or ends[v] > len(ends) or (node >= 0 and ends[v] > ends[node]) or (v and node < 0):
            return parents[:0]
        parents[v], node = node, v
    return parents
