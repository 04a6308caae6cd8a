"""Search in a tenant's part of the tree, best first, then in the lists that were gathered. Compiled.

`lists` is (ids, starts, nodes, firsts, spans): tenant t's rows ids[starts[t]:starts[t + 1]], and the nodes that have
lists of it, rising, nodes[spans[t]:spans[t + 1]], with where in its rows each begins.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.vectors.curator_kernels import ahead, distance, has, key, place, settle, sink

_FAR = 4  # rows ahead that are fetched while one is compared


@njit(nogil=True, cache=True)
def scan(query, vectors, ids, first, last, metric, keys, rows, filled):  # type: ignore[no-untyped-def]
    """Compare with the vectors of ids[first:last]; the nearest are in the heap."""
    k = len(keys)
    for i in range(first, last):
        if i + _FAR < last:
            ahead(vectors, ids[i + _FAR])
        row = ids[i]
        away = key(query, vectors, row, metric)
        if filled < k or away < keys[0] or (away == keys[0] and row < rows[0]):
            filled = sink(keys, rows, filled, away, row)
    return filled


@njit(nogil=True, cache=True)
def gather(query, tree, lists, which, token, filters, settings, work):  # type: ignore[no-untyped-def]
    """The best lists of a tenant, as places in `nodes` with their scores in work, until `probes` rows are there; how
    many, and centroids compared. Best first: the node whose centroid is nearest, less `boost` of its vectors' mean
    distance to it."""
    centroids, spread, ends = tree
    _, starts, nodes, firsts, spans = lists
    words, offsets, hashes, filtered = filters
    probes, boost, metric, size = settings
    heap, waiting, places, scores = work
    low, high, total = spans[which], spans[which + 1], starts[which + 1] - starts[which]
    waiting[0], heap[0], open_, found, gathered, compared = 0, 0.0, 1, 0, 0, 0
    if filtered and not has(words, offsets, hashes, 0, token):
        return found, compared
    while open_ and gathered < probes:
        score, node = -heap[0], waiting[0]
        open_ -= 1
        if open_:
            settle(heap, waiting, open_, heap[open_], waiting[open_])
        at = place(nodes, low, high, node)
        if at < high and nodes[at] == node:
            places[found], scores[found] = at, score
            gathered += (firsts[at + 1] if at + 1 < high else total) - firsts[at]
            found += 1
            continue
        child = node + 1
        while child < ends[node]:
            if not filtered or has(words, offsets, hashes, child, token):
                away = key(query, centroids, child, metric)
                near = away * np.float32(1) if metric == 2 else np.sqrt(max(away, np.float32(0)))
                near -= boost * spread[child] * size
                open_ = sink(heap, waiting, open_, -near, child)
                compared += 1
            child = ends[child]
    return found, compared


@njit(nogil=True, cache=True)
def ordered(query, vectors, metric, keys, rows, filled, away, found):  # type: ignore[no-untyped-def]
    """What is in the heap, the nearest first, with true distances."""
    for last in range(filled - 1, -1, -1):
        row = rows[0]
        if last:
            settle(keys, rows, last, keys[last], rows[last])
        told, at = np.float32(distance(query, vectors, row, metric)), last
        while at + 1 < filled and (away[at + 1] < told or (away[at + 1] == told and found[at + 1] < row)):
            away[at], found[at] = away[at + 1], found[at + 1]
            at += 1
        away[at], found[at] = told, row


@njit(nogil=True, cache=True)
def finite(query):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for d in range(len(query)):
        total += query[d] * np.float32(0)
    return total == 0


@njit(nogil=True, cache=True)
def through(queries, vectors, ids, first, last, metric, k, counts):  # type: ignore[no-untyped-def]
    """(distances float32 [Q, k], rows int64 [Q, k]) among ids[first:last], infinity and -1 where there are no more.

    counts: ids that were touched, distances computed, lists read; and where a query is not finite, its number from 1.
    """
    away, found = np.full((len(queries), k), np.float32(np.inf)), np.full((len(queries), k), -1)
    keys, rows = np.empty(k, np.float32), np.empty(k, np.int32)
    for q in range(len(queries)):
        if not finite(queries[q]):
            counts[3] = q + 1
            break
        filled = scan(queries[q], vectors, ids, first, last, metric, keys, rows, 0)
        ordered(queries[q], vectors, metric, keys, rows, filled, away[q], found[q])
        counts[0] += last - first
        counts[1] += last - first
        counts[2] += 1
    return away, found


@njit(nogil=True, cache=True)
def search(queries, vectors, tree, lists, which, token, filters, settings, k, counts):  # type: ignore[no-untyped-def]
    """As `through`, among those rows of a tenant that are in the lists nearest to each query.

    settings: rows to gather; `boost`; `prune`; metric.
    """
    probes, boost, prune, metric = settings
    nodes, most = len(tree[2]), lists[4][which + 1] - lists[4][which]
    away, found = np.full((len(queries), k), np.float32(np.inf)), np.full((len(queries), k), -1)
    keys, rows = np.empty(k, np.float32), np.empty(k, np.int32)
    work = (np.empty(nodes, np.float32), np.empty(nodes, np.int32),
            np.empty(most, np.int64), np.empty(most, np.float32))  # fmt: skip
    for q in range(len(queries)):
        query = queries[q]
        if not finite(query):
            counts[3] = q + 1
            break
        size = np.float32(np.sqrt((query * query).sum())) if metric == 2 else np.float32(1)
        some = (probes, boost, metric, size)
        read, compared = gather(query, tree, lists, which, token, filters, some, work)
        bound = reach(tree[1], lists, work, read, prune, size)
        filled, touched = near(query, vectors, lists, which, work, read, bound, metric, keys, rows)
        counts[0] += touched
        counts[1] += touched + compared
        counts[2] += read
        ordered(query, vectors, metric, keys, rows, filled, away[q], found[q])
    return away, found


@njit(nogil=True, cache=True)
def reach(spread, lists, work, read, prune, size):  # type: ignore[no-untyped-def]
    """The score up to which lists are looked at. The best score may be about zero, or below: what it may be exceeded by
    is a multiple of its size, or of the mean distance in its node where that is more."""
    places, scores = work[2], work[3]
    best, scale = np.float32(np.inf), np.float32(0)
    for i in range(read):
        if scores[i] < best:
            best, scale = scores[i], max(abs(scores[i]), size * spread[lists[2][places[i]]])
    return best + (prune - 1) * scale


@njit(nogil=True, cache=True)
def near(query, vectors, lists, which, work, read, bound, metric, keys, rows):  # type: ignore[no-untyped-def]
    """Compare with the gathered lists whose score is within the bound, and with others while k are not found; (in the
    heap, rows seen)."""
    ids, starts, _, firsts, spans = lists
    filled, touched = 0, 0
    for beyond in range(2):
        for i in range(read):
            if (work[3][i] > bound) == (beyond == 1) and (beyond == 0 or filled < len(keys)):
                at = work[2][i]
                first = starts[which] + firsts[at]
                last = starts[which] + firsts[at + 1] if at + 1 < spans[which + 1] else starts[which + 1]
                filled = scan(query, vectors, ids, first, last, metric, keys, rows, filled)
                touched += last - first
    return filled, touched
