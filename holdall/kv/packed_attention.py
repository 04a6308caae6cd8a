"""The kernels of attention over packed entries: codes become numbers in registers, and nowhere else.

Scores and weighted sums are computed tier by tier, with one softmax over all of them in between. With keys
k[t, c] = (a[t] q[t, c] + m[t]) s[c] + z[c], the score of a query is a[t] (w . q[t]) + m[t] sum(w) + query . z, where
w = query * s: the product runs over whole numbers. Keys are held channel by channel and values token by token, so
that both are one thing: rows of codes times factors, added up in float32. M heads (rows and heads as one), G queries
of each, N tokens, D channels. Compiled once, then cached; heads are shared among threads that sleep while they wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import njit
from torch import Tensor

from holdall.kv.packed_lanes import MOST, fold_lanes
from holdall.parts.rows import by_rows

if TYPE_CHECKING:
    from holdall.kv.codes import ByChannel, ByToken
    from holdall.kv.tiers import Tier

_WORTH = 200_000  # numbers that are worth handing heads to another thread
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
def _planes(codes, at, stride, rows, factors, out, bits, count):  # type: ignore[no-untyped-def]
    """`_fold` of rows of `count` codes of any width; the bytes of a row."""
    low = 2 if bits == 3 else bits
    per = 8 // low
    width = (count + per - 1) // per
    _fold(codes, at, stride, rows, factors, out, low, width)
    if bits == 3:  # a plane of two bits, and one of one bit that counts four
        high = (count + 7) // 8
        _fold(codes, at + width, stride, rows, factors * _F32(4), out, 1, high)
        width += high
    return width


@njit(nogil=True, cache=True, fastmath=True)
def scores(codes, bands, ends, w, more, out, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, N] = whole-number products plus `more`, over keys packed channel by channel, for heads first to last.

    codes [M, bytes]: part by part, band by band, channel by channel, the tokens of the part; bands [S, 2]: how many
    channels of how many bits; ends [P]: of the parts, in tokens; w [M, P, G, D] = queries * s; more [M, P, G].
    """
    groups, longest, start = w.shape[2], 0, 0
    for p in range(len(ends)):
        longest = max(longest, ends[p] - start)
        start = ends[p]
    for g in range(0, groups, MOST):
        some = min(MOST, groups - g)
        row = np.empty((some, longest + 8), np.float32)
        for head in range(first, last):
            at, start = 0, 0
            for p in range(len(ends)):
                n, channel = ends[p] - start, 0
                row[:, :] = 0
                for band in range(len(bands)):
                    rows, bits = bands[band, 0], bands[band, 1]
                    factors = w[head, p, g : g + some, channel : channel + rows].copy()
                    bytes_ = (n * 2 + 7) // 8 + (n + 7) // 8 if bits == 3 else (n * bits + 7) // 8
                    _planes(codes[head], at, bytes_, rows, factors, row, bits, n)
                    at += bytes_ * rows
                    channel += rows
                for i in range(some):
                    base = more[head, p, g + i]
                    for t in range(n):
                        out[head, g + i, start + t] = row[i, t] + base
                start = ends[p]


@njit(nogil=True, cache=True, fastmath=True)
def mix(codes, bits, weights, a, m, s, z, out, first, last):  # type: ignore[no-untyped-def]
    """out [M, G, D] = weights [M, G, N] times the values (a q + m) s + z in codes [M, N, W], for heads first to last.

    a, m [M or M / heads, N]: the first of them may serve several heads; s, z [M, D].
    """
    n, bytes_ = codes.shape[1], codes.shape[2]
    groups, d = out.shape[1], out.shape[2]
    share = codes.shape[0] // a.shape[0]
    for g in range(0, groups, MOST):
        some = min(MOST, groups - g)
        row = np.empty((some, d + 8), np.float32)
        factors = np.empty((some, n), np.float32)
        for head in range(first, last):
            row[:, :] = 0
            mine, low = a[head // share], m[head // share]
            for i in range(some):
                weight = weights[head, g + i]
                for t in range(n):
                    factors[i, t] = weight[t] * mine[t]
            _planes(codes[head].reshape(-1), 0, bytes_, n, factors, row, bits, d)
            for i in range(some):
                weight, lows, whole = weights[head, g + i], _F32(0), _F32(0)
                for t in range(n):
                    lows += weight[t] * low[t]
                    whole += weight[t]
                for c in range(d):
                    out[head, g + i, c] = (row[i, c] + lows) * s[head, c] + whole * z[head, c]


def attend(
    keys: Tensor,
    values: Tensor,
    tiers: tuple[Tier, ...],
    queries: Tensor,
    more: Tensor | None,
    scale: float | None,
) -> Tensor:
    """One softmax over entries in full [B, H, F, D] and packed tiers: [B, H, G, E], like the queries [B, H, G, D].

    more [B, H, G, F + tiers]: added to the scores, of the entries in full first, then tier by tier.
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    asked = queries.float() * scale
    found = [asked @ keys.float().transpose(2, 3), *(key_scores(t.keys, asked) for t in tiers)]
    weights = torch.cat(found, dim=3) if more is None else torch.cat(found, dim=3) + more
    shares = weights.softmax(dim=-1).split([keys.shape[2], *(t.count for t in tiers)], dim=3)
    out = shares[0] @ values.float()
    for tier, share in zip(tiers, shares[1:], strict=True):
        out += mixed_values(tier.values, share)
    return out.to(queries.dtype)


def key_scores(slices: tuple[ByChannel, ...], queries: Tensor) -> Tensor:
    """Products of queries [B, H, G, D] with packed keys, [B, H, G, N] float32."""
    total, place = torch.zeros(()), 0
    for keys in slices:
        asked = queries[..., place : place + keys.channels]
        total = total + _slice_scores(keys, asked)
        place += keys.channels
    return total


def _slice_scores(keys: ByChannel, asked: Tensor) -> Tensor:
    b, h, g, d = asked.shape
    if keys.order is not None:
        asked = asked.gather(3, keys.order.long()[:, :, None].expand(b, h, g, d))
    w = asked[:, :, None] * keys.s.float()[:, :, :, None]  # [B, H, P, G, D]
    low = torch.zeros(w.shape[:4])
    if keys.z is not None:
        low = (asked @ keys.z.float().transpose(2, 3)).transpose(2, 3)  # [B, H, P, G]
    out = _products(keys, w, torch.zeros_like(low) if keys.a is not None else low)
    if keys.a is None or keys.m is None:
        return out
    out *= keys.a[:, :, None].float()
    out += w[:, :, 0].sum(-1, keepdim=True) * keys.m[:, :, None].float()
    return out + low[:, :, 0, :, None]


def _products(keys: ByChannel, w: Tensor, more: Tensor) -> Tensor:
    """Factors times codes plus `more`, [B, H, G, N]."""
    b, h, _, g, d = w.shape
    out = torch.empty(b, h, g, keys.count)
    if not keys.count:
        return out
    ends, bands = np.array(keys.ends, np.int64), np.array(keys.bands, np.int64)
    if w.shape[2] != len(ends):  # one grid for all parts
        w, more = (t.expand(-1, -1, len(ends), *t.shape[3:]) for t in (w, more))
    codes, w_, more_ = (np.ascontiguousarray(t.flatten(0, 1).numpy()) for t in (keys.codes, w, more))
    work = keys.count * d * b * h * g / _WORTH
    by_rows(scores, b * h, work, codes, bands, ends, w_, more_, out.flatten(0, 1).numpy())
    return out


def mixed_values(slices: tuple[ByToken, ...], weights: Tensor) -> Tensor:
    """Packed values weighted by weights [B, H, G, N], [B, H, G, E] float32."""
    b, h, g, n = weights.shape
    found = []
    mine = np.ascontiguousarray(weights.flatten(0, 1).numpy())
    for values in slices:
        out = torch.empty(b, h, g, values.channels)
        z = torch.zeros_like(values.s) if values.z is None else values.z
        params = [t.float().flatten(0, 1).numpy() for t in (values.a, values.m, values.s, z)]
        codes = values.codes.flatten(0, 1).contiguous().numpy()
        work = n * values.channels * b * h * g / _WORTH
        by_rows(mix, b * h, work, codes, values.bits, mine, *params, out.flatten(0, 1).numpy())
        found.append(out)
    return found[0] if len(found) == 1 else torch.cat(found, dim=3)


def naive_scores(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """[M, G, N] from the numbers of keys [M, N, D]."""
    return queries.astype(np.float64) @ keys.astype(np.float64).transpose(0, 2, 1)


def naive_mix(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[M, G, D] from the numbers of values [M, N, D]."""
    return weights.astype(np.float64) @ values.astype(np.float64)
