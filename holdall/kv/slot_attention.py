"""The next token of several slots: all their keys and values are written, and attended to, in one call each.

A call for every slot and layer costs as much as the attention itself where contexts are short: for eight slots of 200
tokens a step of SmolLM2 took 20 ms for it, of 100, and takes 13 with these kernels, which wait for memory.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.floats import exp
from holdall.weights.kernels import dots
from holdall.weights.lanes import mix_1, mix_2, mix_3, mix_4

_F32 = np.float32


def naive_attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, firsts: np.ndarray, ends: np.ndarray, scale: float
) -> np.ndarray:
    """What the queries q [R, H, G, D] get from the tokens [first, end) of k, v [R, S, H, D]."""
    out = np.zeros(q.shape, np.float64)
    for r, (first, end) in enumerate(zip(firsts, ends, strict=True)):
        for h in range(q.shape[1]):
            keys, values = (t[r, first:end, h].astype(np.float64) for t in (k, v))
            scores = q[r, h].astype(np.float64) @ keys.T * scale  # [G, T]
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[r, h] = weights @ values / weights.sum(1, keepdims=True)
    return out


@njit(nogil=True, cache=True)
def write(k: np.ndarray, v: np.ndarray, new_k: np.ndarray, new_v: np.ndarray, places: np.ndarray) -> None:
    """The rows of new_k, new_v [R, width] into the flat tensors k, v, from `places` [R] on."""
    for r in range(len(places)):
        for c in range(new_k.shape[1]):
            k[places[r] + c] = new_k[r, c]
            v[places[r] + c] = new_v[r, c]


@njit(nogil=True, cache=True, fastmath=True)
def attend(q, k, v, places, steps, firsts, ends, scale, out, first, last):  # type: ignore[no-untyped-def]
    """`naive_attend` into out [R * H, G, D], for its rows first to last; q is like it, float32.

    k, v: flat, float32 or bfloat16 as uint16. places [R]: where a slot begins; steps: from one token to the next, and
    from one head to the next. D is a multiple of 16.
    """
    groups = q.shape[1]
    heads = len(q) // len(places)
    scores = np.empty((groups, max(1, np.max(ends - firsts))), _F32)
    for row in range(first, last):
        r, head = row // heads, row % heads
        n, start = ends[r] - firsts[r], places[r] + firsts[r] * steps[0] + head * steps[1]
        for g in range(0, groups, 4):
            _score(q[row], k, start, steps[0], n, g, min(4, groups - g), scores)
        for g in range(groups):
            _soften(scores[g], n, scale)
        for g in range(0, groups, 4):
            _mix(v, start, steps[0], scores, g, min(4, groups - g), n, out[row])


@njit(nogil=True, cache=True, fastmath=True)
def _score(q, k, start, step, n, g, some, scores):  # type: ignore[no-untyped-def]
    """Four tokens at a time; the last few are looked at one by one, as four times the same: nothing is behind them."""
    sums = np.empty(16, _F32)
    whole = n - n % 4
    for t in range(0, whole, 4):
        dots(k, start + t * step, step, q, g, some, sums)
        for i in range(4):
            for j in range(some):
                scores[g + j, t + i] = sums[i * some + j]
    for t in range(whole, n):
        dots(k, start + t * step, 0, q, g, some, sums)
        for j in range(some):
            scores[g + j, t] = sums[j]


@njit(nogil=True, cache=True, fastmath=True)
def _soften(scores, n, scale):  # type: ignore[no-untyped-def]
    most = scores[0]
    for t in range(n):
        most = max(most, scores[t])
    total = _F32(0)
    for t in range(n):
        scores[t] = exp((scores[t] - most) * scale)
        total += scores[t]
    for t in range(n):
        scores[t] /= total


@njit(nogil=True, cache=True, fastmath=True)
def _mix(v, start, step, weights, g, some, n, out):  # type: ignore[no-untyped-def]
    if some == 4:
        mix_4(v, start, step, weights, g, n, out)
    elif some == 3:
        mix_3(v, start, step, weights, g, n, out)
    elif some == 2:
        mix_2(v, start, step, weights, g, n, out)
    else:
        mix_1(v, start, step, weights, g, n, out)
