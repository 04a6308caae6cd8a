"""Columns of numbers, each predicted from its neighbours and from what is known of its own Gaussian (numba).

A prediction is a weighted sum of facts; the weights are fitted when packing and stored. What is left is quantised,
with a step of its own for each number, and coded in the context of how far off the neighbours were. Sums are made in
the same order and with exactly rounded operations, so that packing and unpacking agree on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.coded_bits import CONTEXTS, finished, fresh, number, started

PLACES = 512  # of a column's contexts
BEFORE = 8  # columns before a column that help to predict it


@njit(cache=True, nogil=True)
def size_of(x: Any) -> Any:
    """0 for 0 or less, 1 and up in steps of a factor 1.41, at most 15, for what is about 0.25 and up."""
    if x < 0.25:
        return np.int64(0) if x <= 0 else np.int64(1)
    n, edge = 2, 0.35355339059327373
    while x >= edge and n < 15:
        edge *= 1.4142135623730951
        n += 1
    return np.int64(n)


@njit(cache=True, nogil=True)
def _sign(x: Any) -> Any:
    return np.int64(x > 0) - np.int64(x < 0)


@njit(cache=True, nogil=True)
def _known(values: Any, facts: Any, near: Any, parts: Any, i: Any, a: Any, out: Any) -> Any:
    """Facts to predict column a of Gaussian i from, in `out`; gives the spread of the neighbours' own numbers."""
    f, total, mean = facts.shape[1], 0.0, 0.0
    for k in range(f):
        out[k] = facts[i, k]
    for k in range(near.shape[1]):
        if near[i, k] >= 0:
            mean += parts[i, k] * values[near[i, k], a]
            total += parts[i, k]
    mean = mean / total if total > 0 else 0.0
    first = values[near[i, 0], a] if near[i, 0] >= 0 else 0.0
    spread = 0.0
    for k in range(near.shape[1]):
        if near[i, k] >= 0:
            spread += parts[i, k] * abs(values[near[i, k], a] - mean)
    out[f], out[f + 1] = mean, first
    for k in range(min(a, BEFORE)):
        out[f + 2 + k] = values[i, a - 1 - k]
    return spread / total if total > 0 else 0.0


@njit(cache=True, nogil=True)
def _contexts(out: Any, known: Any, f: Any, spread: Any, misses: Any, near: Any, i: Any, a: Any, side: Any, step: Any,
              guess: Any, rest: Any) -> None:  # fmt: skip
    """misses: of the numbers before. rest: of a guess that was rounded."""
    off, k = 0.0, 0
    while k < near.shape[1] and near[i, k] >= 0:
        off += abs(misses[near[i, k], a]) * (1 if k else 2)
        k += 1
    off = off / (k + 1) / step if k else 1.0
    mine, mine_sign = 0.0, 0
    if a > 0:
        mine, mine_sign = abs(misses[i, a - 1]) / step, _sign(misses[i, a - 1]) + 1
    more = abs(misses[i, a - 2]) / step if a > 1 else 0.0
    lean = (known[f + 1] - guess) / step
    out[0] = size_of(off) * 16 + size_of(spread / step)
    out[1] = size_of(off) * 32 + min(side[i, 0], 31)
    out[2] = (size_of(mine) * 3 + mine_sign) * 8 + size_of(more) // 2
    out[3] = (size_of(abs(lean)) * 3 + _sign(lean) + 1) * 8 + size_of(off) // 2
    out[4] = min(side[i, 0], 31) * 16 + min(side[i, 1], 15)
    out[5] = size_of(mine) * 16 + (np.int64(16 * rest) + 8 if rest else min(side[i, 2], 15))


@njit(cache=True, nogil=True)
def _walk(coder: Any, data: Any, counters: Any, weights: Any, values: Any, facts: Any, near: Any, parts: Any,
          steps: Any, side: Any, groups: Any, fits: Any, whole: Any, misses: Any, dead: Any) -> None:  # fmt: skip
    """Code `values` [N, A], which become what decoding gives; or fill them."""
    n, columns = values.shape
    known, where = np.zeros(facts.shape[1] + 2 + BEFORE), np.zeros(CONTEXTS, np.int64)
    f, decode = facts.shape[1], coder[4] == 1
    for i in range(n):
        for a in range(columns):
            step, true = steps[i, a], values[i, a]
            spread = _known(values, facts, near, parts, i, a, known)
            guess = 0.0
            for k in range(f + 2 + min(a, BEFORE)):
                guess += known[k] * fits[a, k]
            rest = guess - np.floor(guess + 0.5) if whole else 0.0
            guess -= rest
            _contexts(where, known, f, spread, misses, near, i, a, side, step, guess, rest)
            for k in range(CONTEXTS):
                where[k] += groups[a] * PLACES
            q = np.int64(0)
            if not decode:
                x = (true - guess) / step
                q = np.int64(np.floor(abs(x) + dead[a])) * _sign(x)
            q = number(coder, data, counters, weights, where, groups[a], q)
            misses[i, a] = q * step
            values[i, a] = guess + q * step


def written(values: np.ndarray, dead: np.ndarray, *known: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bytes, values as they decode, by how much the predictions were missed).

    known: facts, near, parts, steps, side, groups, fits, and whether all are whole numbers. dead: of each column,
    what is added before rounding down, 0.5 at most.
    """
    room = 64 + values.size * 4
    while True:
        coder, data = started(None, room)
        back, misses = values.copy(), np.zeros_like(values)
        groups = int(known[5].max()) + 1
        tables = fresh(groups * PLACES, groups)
        _walk(coder, data, *tables, back, *known, misses, dead)  # type: ignore[call-arg]
        if coder[2] <= room:
            return finished(coder, data), back, misses
        room = int(coder[2]) + 64


def read(raw: np.ndarray, *known: Any) -> np.ndarray:
    coder, data = started(raw)
    steps, groups = known[3], int(known[5].max()) + 1
    values = np.zeros(steps.shape)
    dead = np.full(steps.shape[1], 0.5)
    tables = fresh(groups * PLACES, groups)
    _walk(coder, data, *tables, values, *known, np.zeros_like(values), dead)  # type: ignore[call-arg]
    return values


def used(shape: tuple[int, ...], harmonic: int | None) -> np.ndarray:
    """Which weights there are: of view-dependent colours (from column `harmonic` on) only of the neighbours and of the
    coefficient before, so that the table stays small."""
    columns, wide = shape
    found = np.ones(shape, bool)
    for a in range(columns):
        found[a, wide - BEFORE + min(a, BEFORE) :] = False
    if harmonic is not None:
        found[harmonic:, 1 : wide - BEFORE - 2] = False
        found[harmonic:, wide - BEFORE + 3 :] = False
    return found


def fitted(values: np.ndarray, facts: np.ndarray, near: np.ndarray, parts: np.ndarray,
           weight: np.ndarray, used: np.ndarray) -> np.ndarray:  # fmt: skip
    """Weights [A, F + 2 + BEFORE] of the facts, as float16, by least squares; weight [N, A]: of each number."""
    n, columns = values.shape
    there = (near >= 0) * parts
    total = there.sum(1)
    mean = np.einsum("nk,nka->na", there, values[near]) / np.where(total > 0, total, 1)[:, None]
    first = np.where(near[:, :1] >= 0, values[near[:, 0]], 0)
    fits = np.zeros(used.shape)
    for a in range(columns):
        before = np.zeros((n, BEFORE))
        before[:, : min(a, BEFORE)] = values[:, max(0, a - BEFORE) : a][:, ::-1]
        x = np.concatenate([facts, mean[:, a : a + 1], first[:, a : a + 1], before], 1)[:, used[a]]
        w = weight[:, a : a + 1] / weight[:, a].max()
        square = x.T @ (x * w)
        square[np.diag_indices(len(square))] += 1e-6 * np.trace(square) / len(square) + 1e-12
        fits[a, used[a]] = np.linalg.solve(square, (x * w).T @ values[:, a])
    return np.clip(fits, -6e4, 6e4).astype(np.float16).astype(np.float32)
