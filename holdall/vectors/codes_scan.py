"""Kernels over product codes in lists: distances from tables, of which the nearest are kept."""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.vectors.lists import scan

FAST = {"contract", "reassoc", "nsz"}


@njit(nogil=True, cache=True, fastmath=FAST)
def products(query, tables, out):  # type: ignore[no-untyped-def]
    """-2 times the product of each part of a query [D] with each entry of its table [M, D / M, 256], into [M, 256]."""
    parts, each, entries = tables.shape
    for m in range(parts):
        for e in range(entries):
            out[m, e] = 0
        for d in range(each):
            value = np.float32(-2) * query[m * each + d]
            for e in range(entries):
                out[m, e] += value * tables[m, d, e]


@njit(nogil=True, cache=True, fastmath=FAST)
def nearest_codes(table, cells, away, starts, codes, bias, low, step, rows, keep, masked, keys, found):  # type: ignore[no-untyped-def]
    """Places of the codes that are nearest by their estimate, into keys [R] rising and found [R], -1 behind the last.

    A code's estimate is what its cell adds (`away`), its bias (low + step * bias, or none where there are no biases)
    and what `table` says of each part. starts [S, C + 1]: where each cell of each segment begins among codes [N, M].
    masked: only rows whose bit in `keep` is set; rows may be empty where they are places. The number of codes that were
    looked at is given back.
    """
    most, parts, count, seen = len(keys), codes.shape[1], 0, 0
    keys[:], found[:] = np.inf, -1
    for j in range(len(cells)):
        cell = cells[j]
        if cell < 0:
            break
        base = away[j] + (low if len(bias) else np.float32(0))
        for s in range(starts.shape[0]):
            for i in range(starts[s, cell], starts[s, cell + 1]):
                if masked:
                    row = np.int64(rows[i]) if len(rows) else i
                    if not (keep[row >> 3] >> (row & 7)) & 1:
                        continue
                seen += 1
                a = base + step * np.float32(bias[i]) if len(bias) else base
                b, c, d = np.float32(0), np.float32(0), np.float32(0)
                m = 0
                while m + 4 <= parts:  # four sums: each waits for itself alone
                    a += table[m, codes[i, m]]
                    b += table[m + 1, codes[i, m + 1]]
                    c += table[m + 2, codes[i, m + 2]]
                    d += table[m + 3, codes[i, m + 3]]
                    m += 4
                while m < parts:
                    a += table[m, codes[i, m]]
                    m += 1
                a += b + c + d
                if a >= keys[most - 1]:
                    continue
                at = min(count, most - 1)
                count = min(count + 1, most)
                while at > 0 and keys[at - 1] > a:
                    keys[at], found[at] = keys[at - 1], found[at - 1]
                    at -= 1
                keys[at], found[at] = a, i
    return seen


@njit(nogil=True, cache=True, fastmath=FAST)
def nearest_held(  # type: ignore[no-untyped-def]
    queries, turned, tables, table, near, away, starts, codes, bias, low, step, rows, keep, masked, vectors, metric,
    most, keys, found,
):  # fmt: skip
    """Of each query [Q, D] the nearest of what the codes say is near, by the vectors [N, D] themselves: into keys and
    found [Q, k], as `scan` has them. How many codes were looked at is given back."""
    guess, places, seen = np.empty(most, np.float32), np.empty(most, np.int64), 0
    mine, close = np.empty(most, np.int32), np.empty((most, vectors.shape[1]), vectors.dtype)
    for q in range(len(queries)):
        products(turned[q], tables, table)
        seen += nearest_codes(
            table, near[q], away[q], starts, codes, bias, low, step, rows, keep, masked, guess, places
        )
        count = 0
        while count < most and places[count] >= 0:
            mine[count] = rows[places[count]]
            close[count] = vectors[places[count]]
            count += 1
        scan(queries[q], mine[:count], close[:count], metric, keep, False, keys[q], found[q])
    return seen


@njit(nogil=True, cache=True, fastmath=FAST)
def biases(codes, owners, centres, tables, out):  # type: ignore[no-untyped-def]
    """|r|^2 + 2 c.r of what each code [N, M] stands for, r, beside its cell's centre c [C, D]: into [N]."""
    parts, each, _ = tables.shape
    for i in range(len(codes)):
        total = np.float32(0)
        for m in range(parts):
            for d in range(each):
                value = tables[m, d, codes[i, m]]
                total += value * (value + np.float32(2) * centres[owners[i], m * each + d])
        out[i] = total
