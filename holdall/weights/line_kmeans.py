"""k-means of numbers on a line, each with a weight: the best there is, or k-means++ and Lloyd's rounds.

Weights of 16 bits have at most 65,536 different values, so what is clustered is a short sorted list with counts.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LLOYD, _STILL = 100, 1e-7


def exact(values: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """float64 [k], rising: centroids of the least weighted squared error for sorted values [U].

    Dynamic programming over where clusters begin; the best beginning rises with the end, so each further cluster costs
    U log U. Of fewer than k values the last is repeated.
    """
    if len(values) <= k:
        return np.concatenate([values, np.repeat(values[-1:], k - len(values))]).astype(np.float64)
    x, weights = values.astype(np.float64), counts.astype(np.float64)
    middle = float((x * weights).sum() / weights.sum())
    shifted = x - middle  # sums of squares of numbers far from 0 would lose digits
    sums = [np.concatenate([[0.0], np.cumsum(weights * shifted**p)]) for p in (0, 1, 2)]
    begins = _begins(sums[0], sums[1], sums[2], k)
    return centroids(x, weights, begins)


def centroids(x: np.ndarray, weights: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Means of the clusters that begin at those places."""
    return np.add.reduceat(x * weights, begins) / np.add.reduceat(weights, begins)


def plus_plus(values: np.ndarray, counts: np.ndarray, k: int, seed: int) -> np.ndarray:
    """float64 [k], rising: each start drawn by its squared distance to those before it, then Lloyd's rounds."""
    if len(values) <= k:
        return exact(values, counts, k)
    x, weights = values.astype(np.float64), counts.astype(np.float64)
    draw = np.random.default_rng(seed)
    chosen = [float(draw.choice(x, p=weights / weights.sum()))]
    while len(chosen) < k:
        far = weights * np.square(x[:, None] - np.array(chosen)).min(1)
        chosen.append(float(draw.choice(x, p=far / far.sum())))
    found, last = np.sort(np.array(chosen)), np.inf
    for _ in range(_LLOYD):
        near = nearest(found, x)
        mass = np.bincount(near, weights, minlength=k)
        sums = np.bincount(near, weights * x, minlength=k)
        found = np.where(mass > 0, sums / np.maximum(mass, 1e-300), found)
        error = float((weights * np.square(x - found[nearest(found, x)])).sum())
        if last - error <= _STILL * error:
            break
        last = error
    return np.sort(found)


def nearest(rising: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which of the rising centroids is nearest to each number."""
    return np.searchsorted((rising[1:] + rising[:-1]) / 2, x)


@njit(nogil=True, cache=True)
def _cost(w, s, q, first, last):  # type: ignore[no-untyped-def]
    """Squared error of values [first, last) as one cluster."""
    mass = w[last] - w[first]
    total = s[last] - s[first]
    return max(0.0, (q[last] - q[first]) - total * total / mass)


@njit(nogil=True, cache=True)
def _begins(w, s, q, k):  # type: ignore[no-untyped-def]
    """Where each of the k clusters begins, from the sums of weights, weighted values and weighted squares."""
    n = w.size - 1
    cost = np.empty(n + 1)  # of the first i values in the clusters so far
    cost[0] = 0.0
    for i in range(1, n + 1):
        cost[i] = _cost(w, s, q, 0, i)
    start = np.zeros((k, n + 1), np.int32)
    stack = np.zeros((64, 4), np.int64)
    for c in range(1, k):
        after = np.full(n + 1, np.inf)
        stack[0] = (c + 1, n, c, n - 1)  # ends [first, last]; beginnings [low, high]
        height = 1
        while height:
            height -= 1
            first, last, low, high = stack[height]
            if first > last:
                continue
            end = (first + last) // 2
            best, at = np.inf, low
            for begin in range(low, min(high, end - 1) + 1):
                found = cost[begin] + _cost(w, s, q, begin, end)
                if found < best:
                    best, at = found, begin
            after[end], start[c, end] = best, at
            stack[height] = (first, end - 1, low, at)
            stack[height + 1] = (end + 1, last, at, high)
            height += 2
        cost = after
    begins = np.zeros(k, np.int64)
    end = n
    for c in range(k - 1, 0, -1):
        begins[c] = start[c, end]
        end = begins[c]
    return begins
