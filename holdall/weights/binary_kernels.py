"""Kernels of networks of signs: packing, gathering what a window covers, products by popcount, scales.

A bit is 1 where the number has a minus, so a word of zeros is all +1: that is what zero padding becomes, and what it
adds is taken off again (`outside`). Words run along channels; bits beyond the last one are 0 on both sides and add
nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.parts.rows import by_rows
from holdall.weights.binary_lanes import PANEL, ROWS, negatives, tile_one, tile_rows

WORD = 64
_BLOCK = 256  # rows whose words and products stay in the second cache
_WORTH = 2e-8  # of a product of two signs, in units of what another thread costs


def words_of(columns: int) -> int:
    return -(-columns // WORD)


def pack_bits(minus: np.ndarray) -> np.ndarray:
    """bool [..., C] as u64 [..., ceil(C / 64)]."""
    padded = np.zeros((*minus.shape[:-1], words_of(minus.shape[-1]) * WORD), bool)
    padded[..., : minus.shape[-1]] = minus
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


def pack_rows(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Signs of x + shift, float32 [N, C] + [C], as u64 [N, ceil(C / 64)]."""
    out = np.empty((len(x), words_of(x.shape[1])), np.uint64)
    by_rows(_pack_rows, len(x), x.size * 1e-5, x.reshape(-1), shift, x.shape[1], out)
    return out


def pack_maps(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Signs of x + shift, float32 [B, C, P] + [C], as u64 [B, P, ceil(C / 64)]."""
    out = np.empty((len(x), x.shape[2], words_of(x.shape[1])), np.uint64)
    by_rows(_pack_maps, len(x), x.size * 1e-5, x, shift, out)
    return out


def panels(words: np.ndarray) -> np.ndarray:
    """Rows of weights, u64 [O, K], sixteen side by side: [ceil(O / 16), K, 16]."""
    rows, k = words.shape
    padded = np.zeros((-(-rows // PANEL) * PANEL, k), np.uint64)
    padded[:rows] = words
    return np.ascontiguousarray(padded.reshape(-1, PANEL, k).transpose(0, 2, 1))


def products(a: np.ndarray, w: np.ndarray, bits: int, outputs: int) -> np.ndarray:
    """int32 [N, O]: signs a, u64 [N, K], times signs w, `panels` of [O, K], `bits` of them in a row."""
    out = np.empty((len(a), len(w) * PANEL), np.int32)
    by_rows(_products, len(a), len(a) * outputs * bits * _WORTH, a, w, bits, out)
    return out[:, :outputs]


def naive_products(a: np.ndarray, w: np.ndarray, bits: int) -> np.ndarray:
    """The same of w as rows, u64 [O, K], by numpy."""
    apart = np.bitwise_count(a[:, None] ^ w[None]).sum(-1, dtype=np.int32)
    return np.int32(bits) - 2 * apart


def rows_out(
    a: np.ndarray, w: np.ndarray, bits: int, scale: np.ndarray, shift: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """float32 [N, O]: products times scale [O] times factor [N or 1], plus shift [O]."""
    out = np.empty((len(a), len(scale)), np.float32)
    by_rows(_rows, len(a), len(a) * len(scale) * bits * _WORTH, a, w, bits, scale, shift, factor, out)
    return out


def maps_out(x: np.ndarray, w: np.ndarray, bits: int, form: tuple[int, ...], outside: np.ndarray, scale: np.ndarray,
             shift: np.ndarray, factor: np.ndarray, out: np.ndarray, base: int) -> None:  # fmt: skip
    """A convolution of signs x, u64 [B, H W, words], with w, u64 [O, taps words], into channels [base, base + O) of
    out, float32 [B, ., P].

    form: H, W, then kernel, stride, dilation, first padding and output of both directions. outside: int32 [O, P], what
    +1 beyond the borders adds. factor: float32 [B or 1, P or 1].
    """
    work = len(x) * outside.size * bits * _WORTH
    by_rows(_maps, len(x), work, x, w, bits, form, outside, scale, shift, factor, out, base)


@njit(nogil=True, cache=True)
def _pack_rows(x, shift, columns, out, first, last):  # type: ignore[no-untyped-def]
    whole = columns // 64
    for i in range(first, last):
        begin = i * columns
        for k in range(whole):
            out[i, k] = negatives(x, begin + 64 * k, shift, 64 * k)
        if whole < out.shape[1]:
            word = np.uint64(0)
            for c in range(64 * whole, columns):
                word |= np.uint64(not (x[begin + c] + shift[c] >= 0)) << np.uint64(c % 64)
            out[i, whole] = word


@njit(nogil=True, cache=True)
def _pack_maps(x, shift, out, first, last):  # type: ignore[no-untyped-def]
    _, channels, places = x.shape
    held = np.empty(places, np.uint64)
    for b in range(first, last):
        for k in range(out.shape[2]):
            held[:] = 0
            for c in range(64 * k, min(channels, 64 * k + 64)):
                place = np.uint64(c % 64)
                for p in range(places):
                    held[p] |= np.uint64(not (x[b, c, p] + shift[c] >= 0)) << place
            out[b, :, k] = held


@njit(nogil=True, cache=True)
def _products(a, w, bits, out, first, last):  # type: ignore[no-untyped-def]
    whole = first + (last - first) // ROWS * ROWS
    for panel in range(len(w)):
        for r in range(first, whole, ROWS):
            tile_rows(a, r, w, panel, bits, out, r)
        for r in range(whole, last):
            tile_one(a, r, w, panel, bits, out, r)


@njit(nogil=True, cache=True)
def _rows(a, w, bits, scale, shift, factor, out, first, last):  # type: ignore[no-untyped-def]
    dots = np.empty((_BLOCK, w.shape[0] * PANEL), np.int32)
    for begin in range(first, last, _BLOCK):
        some = min(_BLOCK, last - begin)
        _products(a[begin : begin + some], w, bits, dots, 0, some)
        for i in range(some):
            times = factor[(begin + i) % len(factor)]
            for o in range(len(scale)):
                out[begin + i, o] = np.float32(dots[i, o]) * scale[o] * times + shift[o]


@njit(nogil=True, cache=True)
def _gather(x, form, begin, some, out):  # type: ignore[no-untyped-def]
    """What the windows of places [begin, begin + some) cover, as `panels`; beyond the borders zeros."""
    high, wide, kh, kw, sh, sw, dh, dw, top, left, _, across = form
    words = x.shape[1]
    row, column, found = np.empty(PANEL, np.int64), np.empty(PANEL, np.int64), np.empty(PANEL, np.int64)
    for panel in range((some + PANEL - 1) // PANEL):
        for i in range(PANEL):
            place = begin + panel * PANEL + i
            row[i], column[i] = place // across * sh - top, place % across * sw - left
        at = 0
        for y in range(kh):
            for z in range(kw):
                for i in range(PANEL):
                    r, c = row[i] + y * dh, column[i] + z * dw
                    found[i] = r * wide + c if 0 <= r < high and 0 <= c < wide else -1
                for k in range(words):
                    for i in range(PANEL):
                        out[panel, at + k, i] = x[found[i], k] if found[i] >= 0 else np.uint64(0)
                at += words


@njit(nogil=True, cache=True)
def _maps(x, w, bits, form, outside, scale, shift, factor, out, base, first, last):  # type: ignore[no-untyped-def]
    channels, places = outside.shape
    window = np.empty((_BLOCK // PANEL, w.shape[1], PANEL), np.uint64)
    dots = np.empty((channels, _BLOCK), np.int32)
    times = np.empty(_BLOCK, np.float32)
    for b in range(first, last):
        mine = factor[b % factor.shape[0]]
        for begin in range(0, places, _BLOCK):
            some = min(_BLOCK, places - begin)
            _gather(x[b], form, begin, some, window)
            _products(w, window[: (some + PANEL - 1) // PANEL], bits, dots, 0, channels)
            for i in range(some):
                times[i] = mine[begin + i] if len(mine) > 1 else mine[0]
            for o in range(channels):
                size, more = scale[base + o], shift[base + o]
                line, beyond = out[b, base + o, begin : begin + some], outside[o, begin : begin + some]
                for i in range(some):
                    line[i] = np.float32(dots[o, i] - beyond[i]) * size * times[i] + more


def outside(signs: np.ndarray, form: tuple[int, ...]) -> Any:
    """int32 [O, P]: the sums of signs [O, C, taps] over the taps that lie beyond the borders."""
    high, wide, kh, kw, sh, sw, dh, dw, top, left, down, across = form
    rows = np.arange(down)[:, None] * sh - top + np.arange(kh) * dh  # [down, kh]
    columns = np.arange(across)[:, None] * sw - left + np.arange(kw) * dw
    inside = ((rows >= 0) & (rows < high))[:, None, :, None] & ((columns >= 0) & (columns < wide))[
        None, :, None
    ]
    beyond = ~inside.reshape(down * across, kh * kw)
    return signs.sum(1, dtype=np.int32) @ beyond.astype(np.int32).T
