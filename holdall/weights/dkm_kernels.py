"""The rounds of differentiable k-means over the different values of a weight, and the way back through them.

Equal weights have one row of every map. What a weight's value does by itself (its row of the last map) and what it does
to the centroids, which all that have it share, are two gradients: `slope` and `moved`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LEAST = 1e-7


@njit(nogil=True, cache=True)
def _row(x, c, tau, p):  # type: ignore[no-untyped-def]
    """p = softmax(-(x - c)^2 / tau)."""
    low = np.inf
    for k in range(c.size):
        low = min(low, (x - c[k]) * (x - c[k]))
    total = 0.0
    for k in range(c.size):
        p[k] = np.exp((low - (x - c[k]) * (x - c[k])) / tau)
        total += p[k]
    for k in range(c.size):
        p[k] /= total


@njit(nogil=True, cache=True)
def forward(x, counts, c, tau, rounds, stop, hat):  # type: ignore[no-untyped-def]
    """(centroids after each round [done + 1, K], the first those that were given). hat [U] is filled."""
    made = np.zeros((rounds + 1, c.size))
    made[0] = c
    maps, last, done, number = np.zeros((x.size, c.size)), np.inf, 0, counts.sum()
    for _ in range(rounds):
        c = made[done]
        mass, sums, inertia = np.zeros(c.size), np.zeros(c.size), 0.0
        for u in range(x.size):
            _row(x[u], c, tau, maps[u])
            for k in range(c.size):
                a = max(maps[u, k], LEAST) * counts[u]
                mass[k] += a
                sums[k] += a * x[u]
                inertia += a * (x[u] - c[k]) * (x[u] - c[k])
        done += 1
        made[done] = sums / mass
        inertia /= number
        if last - inertia <= stop * inertia:
            break
        last = inertia
    for u in range(x.size):
        total = 0.0
        for k in range(c.size):
            total += max(maps[u, k], LEAST) * made[done, k]
        hat[u] = total
    return made[: done + 1]


@njit(nogil=True, cache=True)
def backward(x, counts, made, tau, given, slope, moved):  # type: ignore[no-untyped-def]
    """given [U]: sums of the gradients of w_hat over the weights that have each value.

    slope [U]: d w_hat / d w of a value with the centroids as they are. moved [U]: the gradient that reaches each weight
    through the centroids. Both are filled.
    """
    rounds, wide = made.shape[0] - 1, made.shape[1]
    p, da = np.zeros(wide), np.zeros(wide)
    dc = np.zeros(wide)  # of the centroids after the round
    for u in range(x.size):
        _row(x[u], made[rounds - 1], tau, p)
        for k in range(wide):
            dc[k] += given[u] * max(p[k], LEAST)
    for t in range(rounds, 0, -1):
        c, after = made[t - 1], made[t]
        mass, before = np.zeros(wide), np.zeros(wide)
        for u in range(x.size):
            _row(x[u], c, tau, p)
            for k in range(wide):
                mass[k] += max(p[k], LEAST) * counts[u]
        for u in range(x.size):
            _row(x[u], c, tau, p)
            for k in range(wide):
                share = dc[k] / mass[k]
                da[k] = share * (x[u] - after[k])
                moved[u] += share * max(p[k], LEAST)
            moved[u] += _through(x[u], c, tau, p, da, before, counts[u])
            if t == rounds:
                for k in range(wide):
                    da[k] = after[k]
                slope[u] = _through(x[u], c, tau, p, da, before, given[u])
        dc = before


@njit(nogil=True, cache=True)
def _through(x, c, tau, p, da, before, times):  # type: ignore[no-untyped-def]
    """The gradient of x by way of its row of a map, da being the map's; what reaches c, `times` over, is added."""
    mean = 0.0
    for k in range(c.size):
        if p[k] >= LEAST:
            mean += da[k] * p[k]
    total = 0.0
    for k in range(c.size):
        passed = da[k] if p[k] >= LEAST else 0.0
        by = p[k] * (passed - mean) * 2 * (x - c[k]) / tau
        total -= by
        before[k] += times * by
    return total
