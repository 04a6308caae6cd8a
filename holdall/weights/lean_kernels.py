"""What a decoder layer does besides its matrix products, in a few kernels, each with its slow truth beside it."""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.floats import exp, narrow, wide
from holdall.parts.tiles import COLUMNS as STEP
from holdall.parts.tiles import peak, powers

_F32 = np.float32
_FAST = {"contract", "nsz", "reassoc", "arcp"}


def naive_normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


@njit(nogil=True, cache=True, fastmath=_FAST)
def normed(x, more, weight, eps, out):  # type: ignore[no-untyped-def]
    """x += more, then `naive_normed` of it into out; all [T, I]."""
    for t in range(len(x)):
        total = _F32(0)
        for j in range(x.shape[1]):
            x[t, j] += more[t, j]
            total += x[t, j] * x[t, j]
        each = _F32(1) / np.sqrt(total / _F32(x.shape[1]) + _F32(eps))
        for j in range(x.shape[1]):
            out[t, j] = x[t, j] * each * weight[j]


def naive_gated(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate = gate.astype(np.float64)
    return gate / (1 + np.exp(-gate)) * up


@njit(nogil=True, cache=True, fastmath=_FAST)
def gated(gate, up):  # type: ignore[no-untyped-def]
    """`naive_gated` into up [T, I]."""
    for t in range(len(up)):
        for j in range(up.shape[1]):
            g = gate[t, j]
            up[t, j] *= g / (_F32(1) + exp(min(-g, _F32(80))))


def naive_turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions: x [T, H, D], cos and sin [T, D]."""
    half = x.shape[-1] // 2
    return x * cos[:, None] + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin[:, None]


@njit(nogil=True, cache=True, inline="always")
def _kept(x, like):  # type: ignore[no-untyped-def]
    """A number as an array holds it: float32, or the 16 bits of a half."""
    return narrow(x) if like.itemsize == 2 else x


@njit(nogil=True, cache=True, inline="always")
def _number(x, like):  # type: ignore[no-untyped-def]
    return wide(x, False) if like.itemsize == 2 else x


@njit(nogil=True, cache=True, fastmath=_FAST)
def turned(x, cos, sin, start, to, out):  # type: ignore[no-untyped-def]
    """`naive_turned` of x [T, H * D], whose first position is `start`, into out [H, capacity, D] from `to` on."""
    half = cos.shape[1] // 2
    for t in range(len(x)):
        at = start + t
        for h in range(len(out)):
            base = h * 2 * half
            for d in range(half):
                a, b = x[t, base + d], x[t, base + half + d]
                out[h, to + t, d] = _kept(a * cos[at, d] - b * sin[at, d], out)
                out[h, to + t, half + d] = _kept(b * cos[at, half + d] + a * sin[at, half + d], out)


@njit(nogil=True, cache=True)
def put(x, start, out):  # type: ignore[no-untyped-def]
    """x [T, H * D] into out [H, capacity, D] from `start` on."""
    each = out.shape[2]
    for t in range(len(x)):
        for h in range(len(out)):
            for d in range(each):
                out[h, start + t, d] = _kept(x[t, h * each + d], out)


def naive_attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """One token's attention: q [H, D], k and v [G, S, D], H / G heads to each of G."""
    out = np.zeros(q.shape)
    for h in range(len(q)):
        g = h * len(k) // len(q)
        scores = k[g].astype(np.float64) @ q[h] * scale
        share = np.exp(scores - scores.max())
        out[h] = share @ v[g] / share.sum()
    return out


@njit(nogil=True, cache=True, fastmath=_FAST)
def attended(q, k, v, scale, stop, scores, out, first, last):  # type: ignore[no-untyped-def]
    """`naive_attended` for key heads [first, last), over the first `stop` entries of k and v [G, capacity, D], which
    are float32 or the bits of halves.

    q: flat, [H * D]; scores: [G, H / G, room] float32, room a multiple of STEP not below stop; out: flat, [H * D].
    """
    size, many = k.shape[2], scores.shape[1]
    padded = (stop + STEP - 1) // STEP * STEP
    row = np.empty(size, np.float32)
    for g in range(first, last):
        for s in range(stop):
            for d in range(size):
                row[d] = _number(k[g, s, d], k)
            for i in range(many):
                base, total = (g * many + i) * size, _F32(0)
                for d in range(size):
                    total += q[base + d] * row[d]
                scores[g, i, s] = total * scale
        for i in range(many):
            mine = scores[g, i]
            mine[stop:padded] = _F32(-1e30)
            each = _F32(1) / powers(mine, padded, peak(mine, padded))
            mine[:stop] *= each
            base = (g * many + i) * size
            out[base : base + size] = 0
        for s in range(stop):
            for d in range(size):
                row[d] = _number(v[g, s, d], v)
            for i in range(many):
                base, share = (g * many + i) * size, scores[g, i, s]
                for d in range(size):
                    out[base + d] += share * row[d]
