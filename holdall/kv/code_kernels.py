"""The kernels that pack keys and values: a row is read, gets its grid, its codes and its bytes while it is near.

They do what `holdall.kv.codes` says in terms of torch. M heads (rows and heads as one), N tokens, D channels. x is
float32, or 16 bits (bfloat16 where `brain`, else halves); see [M, N]: what is shown, or of no size where all is; what
is not has no say in a grid and gets code 0. peaks: the largest number of a grid, by which it is told whether halves can
hold it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.floats import wide
from holdall.parts.grids import lay, pack_row, put, unpack_row
from holdall.parts.tiles import LANES
from holdall.parts.words import put_word, word

_F32 = np.float32


@njit(nogil=True, cache=True, fastmath=True)
def _laid(row, count, see, few, bits, rounds):  # type: ignore[no-untyped-def]
    """`lay` of a row, of whose numbers `see` are shown; few: room for these."""
    if see.shape[0] == 0:
        return lay(row, count, bits, rounds)
    held = 0
    for t in range(count):
        if see[t]:
            few[held] = row[t]
            held += 1
    return lay(few, held, bits, rounds)


@njit(nogil=True, cache=True, fastmath=True)
def _scales(s, z, less, by):  # type: ignore[no-untyped-def]
    """What is taken from numbers, and by what they are multiplied then."""
    for c in range(len(s)):
        less[c] = wide(z[c], False) if z.shape[0] else _F32(0)
        by[c] = _F32(1) / wide(s[c], False)


@njit(nogil=True, cache=True, fastmath=True)
def _scaled(x, brain, less, by, row):  # type: ignore[no-untyped-def]
    for c in range(len(x)):
        row[c] = (wide(x[c], brain) - less[c]) * by[c]


@njit(nogil=True, cache=True, fastmath=True)
def by_channel(x, brain, see, order, bands, rounds, ends, codes, s, z, peaks, first, last):  # type: ignore[no-untyped-def]
    """Grids s, z [M, P, D] of channels in parts of tokens, and codes [M, bytes], for heads first to last.

    bands [S, 2]: how many channels of how many bits, of rounds [S]; ends [P]; order [M, D] or of no size.
    """
    depth, longest, start = x.shape[2], 0, 0
    for p in range(len(ends)):
        longest = max(longest, ends[p] - start)
        start = ends[p]
    part, few = np.empty((depth, longest + LANES), np.float32), np.empty(longest + LANES, np.float32)
    q = np.empty(longest + 8, np.uint8)
    for head in range(first, last):
        at, start = 0, 0
        for p in range(len(ends)):
            n, c = ends[p] - start, 0
            sees = see[head, start : ends[p]] if see.shape[1] else see[head]
            for t in range(n):
                for i in range(depth):
                    by = order[head, i] if order.shape[1] else i
                    part[i, t] = wide(x[head, start + t, by], brain)
            for band in range(len(bands)):
                for _ in range(bands[band, 0]):
                    bits, row = bands[band, 1], part[c]
                    step, low, peak = _laid(row, n, sees, few, bits, rounds[band])
                    s[head, p, c], z[head, p, c], peaks[head] = step, low, max(peaks[head], peak)
                    put(row, n, step, low, bits, q)
                    for t in range(sees.shape[0]):
                        q[t] = q[t] if sees[t] else 0
                    at += pack_row(q, n, bits, codes[head], at)
                    c += 1
            start = ends[p]


@njit(nogil=True, cache=True, fastmath=True)
def by_token(x, brain, see, bits, rounds, s, z, codes, a, m, peaks, first, last):  # type: ignore[no-untyped-def]
    """Grids a, m [B, N] of tokens and codes [B, H, N, W], for the tokens first to last of all rows.

    x [B, H, N, D], less z and divided by s [B, H, D] (z of no size: nothing): the heads of a row share a token's grid;
    see [B, H, N]; peaks [B * N].
    """
    _, heads, tokens, depth = x.shape
    row, few = np.empty(heads * depth + LANES, np.float32), np.empty(heads * depth + LANES, np.float32)
    q, before = np.empty(depth + 8, np.uint8), -1
    less, by = np.empty((heads, depth), np.float32), np.empty((heads, depth), np.float32)
    for i in range(first, last):
        b, t, held = i // tokens, i % tokens, 0
        if b != before:
            for h in range(heads):
                _scales(s[b, h], z[b, h], less[h], by[h])
            before = b
        for h in range(heads):
            shown = see[b, h, t] if see.shape[2] else True
            _scaled(x[b, h, t], brain, less[h], by[h], row[h * depth :])
            if shown:
                few[held : held + depth] = row[h * depth : h * depth + depth]
                held += depth
        step, low, peaks[i] = lay(few, held, bits, rounds)
        a[b, t], m[b, t] = step, low
        for h in range(heads):
            put(row[h * depth :], depth, step, low, bits, q)
            if see.shape[2] and not see[b, h, t]:
                q[:depth] = 0
            pack_row(q, depth, bits, codes[b, h, t], 0)


@njit(nogil=True, cache=True, fastmath=True)
def keys_by_token(x, brain, see, bits, rounds, s, z, codes, a, m, peaks, first, last):  # type: ignore[no-untyped-def]
    """Grids a, m [M, N] of tokens and codes [M, bytes] packed by channel in one part, for heads first to last.

    x [M, N, D], less z and divided by s [M, D] (z of no size: nothing).
    """
    _, n, depth = x.shape
    q, codes_of = np.empty((depth, n + 8), np.uint8), np.empty(depth + 8, np.uint8)
    row, less, by = (
        np.empty(depth + LANES, np.float32),
        np.empty(depth, np.float32),
        np.empty(depth, np.float32),
    )
    for head in range(first, last):
        _scales(s[head], z[head], less, by)
        for t in range(n):
            if see.shape[1] and not see[head, t]:
                a[head, t], m[head, t], _ = lay(row, 0, bits, 0)
                q[:, t] = 0
                continue
            _scaled(x[head, t], brain, less, by, row)
            step, low, peak = lay(row, depth, bits, rounds)
            a[head, t], m[head, t], peaks[head] = step, low, max(peaks[head], peak)
            put(row, depth, step, low, bits, codes_of)
            for c in range(depth):
                q[c, t] = codes_of[c]
        at = 0
        for c in range(depth):
            at += pack_row(q[c], n, bits, codes[head], at)


@njit(nogil=True, cache=True)
def reorder_keys(codes, bands, ends, order, out, first, last):  # type: ignore[no-untyped-def]
    """Keys packed by channel in parts, [M, bytes], become one part of tokens at order [M, N]."""
    count = order.shape[1]
    old, new = np.empty(count + 8, np.uint8), np.empty(count + 8, np.uint8)
    for head in range(first, last):
        to, runs = 0, _runs(order[head])
        for band in range(len(bands)):
            bits = bands[band, 1]
            for c in range(bands[band, 0]):
                at, start = 0, 0
                for p in range(len(ends)):
                    n = ends[p] - start
                    skip, each, after = _place(bands, band, n)
                    unpack_row(codes[head], at + skip + c * each, n, bits, old[start:])
                    at += skip + bands[band, 0] * each + after
                    start = ends[p]
                _moved(old, order[head], runs, 1, new)
                to += pack_row(new, count, bits, out[head], to)


@njit(nogil=True, cache=True)
def _place(bands, band, count):  # type: ignore[no-untyped-def]
    """Bytes of so many tokens in the bands before one, in each of its channels, and in the bands behind it."""
    before, each, behind = 0, 0, 0
    for i in range(len(bands)):
        bits = bands[i, 1]
        bytes_ = (count * 2 + 7) // 8 + (count + 7) // 8 if bits == 3 else (count * bits + 7) // 8
        if i < band:
            before += bands[i, 0] * bytes_
        elif i == band:
            each = bytes_
        else:
            behind += bands[i, 0] * bytes_
    return before, each, behind


@njit(nogil=True, cache=True)
def _runs(order):  # type: ignore[no-untyped-def]
    """Where runs of neighbours begin in an order [N], and N."""
    starts, found = np.empty(len(order) + 1, np.int64), 0
    for i in range(len(order)):
        if i == 0 or order[i] != order[i - 1] + 1:
            starts[found] = i
            found += 1
    starts[found] = len(order)
    return starts[: found + 1]


@njit(nogil=True, cache=True)
def _moved(old, order, runs, width, new):  # type: ignore[no-untyped-def]
    """Items of `width` bytes, [N * width], at `order` [N], run by run, eight bytes at a time."""
    for i in range(len(runs) - 1):
        to, at = runs[i] * width, order[runs[i]] * width
        count = (runs[i + 1] - runs[i]) * width
        whole = count // 8 * 8
        for j in range(0, whole, 8):
            put_word(new, to + j, word(old, at + j))
        for j in range(whole, count):
            new[to + j] = old[at + j]


@njit(nogil=True, cache=True)
def reorder_rows(rows, width, order, out, first, last):  # type: ignore[no-untyped-def]
    """Items of `width` bytes, [M, N * width], in another order [M, N], for heads first to last."""
    for head in range(first, last):
        _moved(rows[head], order[head], _runs(order[head]), width, out[head])
