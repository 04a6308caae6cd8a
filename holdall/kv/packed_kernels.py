"""The kernels of attention over packed entries: codes become numbers in registers, and nowhere else.

Scores and weighted sums are computed tier by tier, with one softmax over all of them in between. With keys
k[t, c] = (a[t] q[t, c] + m[t]) s[c] + z[c], the score of a query is a[t] (w . q[t]) + m[t] sum(w) + query . z, where
w = query * s: the product runs over whole numbers. Keys are held channel by channel and values token by token, so
that both are one thing: rows of codes times factors, added up in float32. M heads (rows and heads as one), G queries
of each, N tokens, D channels. Compiled once, then cached; heads are shared among threads that sleep while they wait.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.kv.packed_lanes import MOST, fold_lanes
from holdall.parts.floats import wide
from holdall.parts.tiles import peak, powers

_F32 = np.float32


@njit(nogil=True, cache=True, fastmath=True)
def _fold(codes, at, stride, rows, factors, out, bits, width):  # type: ignore[no-untyped-def]
    """out [G, >= 8 // bits * width] += factors [G, rows] times rows of `width` bytes of codes, `stride` apart."""
    groups, done = factors.shape[0], 0
    while width - done >= 8:
        lanes = 16 if width - done >= 16 else 8
        fold_lanes(codes, at + done, stride, rows, factors, out, done, bits, groups, lanes, width)  # type: ignore[call-arg]
        done += lanes
    mask = (1 << bits) - 1
    for j in range(done, width):
        for i in range(8 // bits):
            for g in range(groups):
                total = _F32(0)
                for r in range(rows):
                    total += factors[g, r] * _F32((codes[at + r * stride + j] >> (i * bits)) & mask)
                out[g, i * width + j] += total


@njit(nogil=True, cache=True, fastmath=True)
def _planes(codes, at, factors, out, bits, count):  # type: ignore[no-untyped-def]
    """`_fold` of rows of `count` codes of any width; the bytes of a row."""
    low = 2 if bits == 3 else bits
    per = 8 // low
    width = (count + per - 1) // per
    high = (count + 7) // 8 if bits == 3 else 0
    rows = factors.shape[1]
    _fold(codes, at, width + high, rows, factors, out, low, width)
    if bits == 3:  # a plane of two bits, and one of one bit that counts four
        _fold(codes, at + width, width + high, rows, factors * _F32(4), out, 1, high)
    return width + high


@njit(nogil=True, cache=True, fastmath=True)
def scores(codes, bands, ends, order, s, z, a, m, q, channel, out, place, add, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, T] from `place` on = queries q [M, G, D] from `channel` on times packed keys, for heads first to last.

    codes [M, bytes]: part by part, band by band, channel by channel, the tokens of the part; bands [S, 2]: how many
    channels of how many bits; ends [P]: of the parts, in tokens; order [M, D] and s, z [M, P or 1, D], a, m [M, N] as
    `ByChannel` says, halves as 16 bits, and of no size where there are none. add: to what is in `out`.
    """
    groups, depth, longest, start = q.shape[1], s.shape[2], 0, 0
    for p in range(len(ends)):
        longest = max(longest, ends[p] - start)
        start = ends[p]
    for g in range(0, groups, MOST):
        some = min(MOST, groups - g)
        row, w = np.empty((some, longest + 8), np.float32), np.empty((some, depth), np.float32)
        for head in range(first, last):
            at, start = 0, 0
            for p in range(len(ends)):
                n, grid, done = ends[p] - start, min(p, s.shape[1] - 1), 0
                row[:, :] = 0
                for band in range(len(bands)):
                    rows, bits = bands[band, 0], bands[band, 1]
                    factors = w.reshape(-1)[: some * rows].reshape(some, rows)
                    for r in range(rows):
                        by = channel + (order[head, done + r] if order.shape[1] else done + r)
                        step = wide(s[head, grid, done + r], False)
                        for i in range(some):
                            factors[i, r] = q[head, g + i, by] * step
                    at += rows * _planes(codes[head], at, factors, row, bits, n)
                    done += rows
                _put(q, head, g, channel, order, s, z, a, m, grid, row, out, place, start, n, add)
                start = ends[p]


@njit(nogil=True, cache=True, fastmath=True)
def _put(q, head, g, channel, order, s, z, a, m, grid, row, out, place, start, n, add):  # type: ignore[no-untyped-def]
    """Products with codes become scores: times the tokens' steps, plus what is the same for all codes."""
    for i in range(row.shape[0]):
        base, whole = _F32(0), _F32(0)
        for c in range(s.shape[2]):
            asked = q[head, g + i, channel + (order[head, c] if order.shape[1] else c)]
            whole += asked * wide(s[head, grid, c], False)
            if z.shape[1]:
                base += asked * wide(z[head, grid, c], False)
        target = out[head, g + i, place + start : place + start + n]
        if a.shape[1]:
            for t in range(n):
                low = wide(m[head, start + t], False)
                row[i, t] = row[i, t] * wide(a[head, start + t], False) + whole * low
        if add:
            for t in range(n):
                target[t] += row[i, t] + base
        else:
            for t in range(n):
                target[t] = row[i, t] + base


@njit(nogil=True, cache=True, fastmath=True)
def soften(q, keys, brain, more, total, out, first, last):  # type: ignore[no-untyped-def]
    """Scores become weights, for heads first to last: those of the first F places are of keys [M, F, D] in full.

    q [M, G, D]; keys float32, or 16 bits (bfloat16 where `brain`); more [M, G, T], added to scores, or of no size;
    out [M, G, T and some up to a multiple of COLUMNS]: scores from F to T, then all weights.
    """
    groups, depth, full, whole = q.shape[1], q.shape[2], keys.shape[1], out.shape[2]
    key = np.empty(depth, np.float32)
    for head in range(first, last):
        for t in range(full):
            for c in range(depth):
                key[c] = wide(keys[head, t, c], brain)
            for g in range(groups):
                score = _F32(0)
                for c in range(depth):
                    score += q[head, g, c] * key[c]
                out[head, g, t] = score
        for g in range(groups):
            row = out[head, g]
            if more.shape[2]:
                for t in range(total):
                    row[t] += more[head, g, t]
            row[total:] = _F32(-1e38)
            share = _F32(1) / powers(row, whole, peak(row, whole))
            for t in range(whole):
                row[t] *= share


@njit(nogil=True, cache=True, fastmath=True)
def mix_full(values, brain, weights, out, heat, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, D] = the first weights [M, G, T] times values [M, F, D] in full, for heads first to last.

    heat [M, F]: what each of them gets of all groups, or of no size.
    """
    full, depth, groups = values.shape[1], values.shape[2], out.shape[1]
    value = np.empty(depth, np.float32)
    for head in range(first, last):
        out[head] = 0
        for t in range(full):
            for c in range(depth):
                value[c] = wide(values[head, t, c], brain)
            for g in range(groups):
                weight = weights[head, g, t]
                for c in range(depth):
                    out[head, g, c] += weight * value[c]
        if heat.shape[1]:
            heat[head] = 0
            for g in range(groups):
                for t in range(full):
                    heat[head, t] += weights[head, g, t]


@njit(nogil=True, cache=True, fastmath=True)
def mix(codes, bits, weights, place, a, m, s, z, out, channel, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, E] from `channel` on += weights [M, G, T] from `place` on times packed values, for some heads.

    The values are (a q + m) s + z, with codes [M, N, W]; a, m [M or M / heads, N]: the first may serve several heads;
    s, z [M, D], z may have no size. Halves as 16 bits.
    """
    n, groups, d = codes.shape[1], out.shape[1], s.shape[1]
    heads = codes.shape[0] // max(1, a.shape[0])
    for g in range(0, groups, MOST):
        some = min(MOST, groups - g)
        row, factors = np.empty((some, d + 8), np.float32), np.empty((some, n), np.float32)
        for head in range(first, last):
            row[:, :] = 0
            mine, low = a[head // heads], m[head // heads]
            for i in range(some):
                weight = weights[head, g + i, place : place + n]
                for t in range(n):
                    factors[i, t] = weight[t] * wide(mine[t], False)
            _planes(codes[head].reshape(-1), 0, factors, row, bits, d)
            for i in range(some):
                weight, lows, whole = weights[head, g + i, place : place + n], _F32(0), _F32(0)
                for t in range(n):
                    lows += weight[t] * wide(low[t], False)
                    whole += weight[t]
                for c in range(d):
                    got = (row[i, c] + lows) * wide(s[head, c], False)
                    got += whole * wide(z[head, c], False) if z.shape[1] else _F32(0)
                    out[head, g + i, channel + c] += got


def naive_scores(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """[M, G, N] from the numbers of keys [M, N, D]."""
    return queries.astype(np.float64) @ keys.astype(np.float64).transpose(0, 2, 1)


def naive_mix(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[M, G, D] from the numbers of values [M, N, D]."""
    return weights.astype(np.float64) @ values.astype(np.float64)
