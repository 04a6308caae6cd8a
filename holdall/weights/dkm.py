"""Differentiable k-means (DKM): weights as attention over a few centroids, and what comes back through it.

    repeat up to three times    A = softmax(-(w - c)^2 / tau), at least 1e-7;   c = (A^T w) / (A^T 1)
    w_hat = A c

`naive_dkm` is that line by line, with maps [N, K] for each round; autograd keeps them until the way back, unless they
are held as `saved_tensors` holds them. `dkm` gives the same from maps of the different values alone: weights of 16 bits
have at most 65,536, and their multiplicities are all that the centroids feel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit

from holdall.weights.dkm_kernels import LEAST, backward, forward
from holdall.weights.line_kmeans import nearest

ROUNDS, STOP = 3, 1e-4
_PATTERNS = 1 << 16


@dataclass(frozen=True)
class Heft:
    """How much each weight of a matrix [O, I] counts: rows[o] * columns[i] * units[o, i // group]; all above zero."""

    rows: np.ndarray  # float32 [O]
    columns: np.ndarray  # float32 [I]
    units: np.ndarray  # float32 [O, ceil(I / group)]
    group: int

    def dense(self) -> np.ndarray:
        wide = np.repeat(self.units, self.group, 1)[:, : len(self.columns)]
        found: np.ndarray = self.rows[:, None] * self.columns * wide
        return found

    def part(self, first: int, last: int) -> Heft:
        return Heft(self.rows[first:last], self.columns, self.units[first:last], self.group)


def naive_dkm(
    w: torch.Tensor,
    centroids: torch.Tensor,
    tau: float,
    rounds: int = ROUNDS,
    stop: float = STOP,
    hard: bool = False,
    heft: Heft | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(w_hat like w, the centroids [K] it is made of). Maps have the type of w; sums are float32 at least.

    hard: each weight is its nearest centroid, and learns as if it were not. heft: how much each counts for centroids.
    """
    many = None if heft is None else torch.from_numpy(heft.dense()).reshape(-1, 1).to(centroids.dtype)
    x, c, last = w.reshape(-1, 1), centroids, float("inf")
    for _ in range(rounds):
        distances = (x - c.to(x.dtype)).square()  # [N, K]
        attention = torch.softmax(-distances / tau, 1).clamp(min=LEAST)
        wide = attention.to(centroids.dtype)
        mass = wide if many is None else wide * many
        c = (mass.t() @ x.to(wide.dtype)).squeeze(1) / mass.sum(0)
        inertia = float((mass.detach() * distances.detach()).sum())
        if last - inertia <= stop * inertia:
            break
        last = inertia
    hat = (wide @ c[:, None]).squeeze(1)
    if hard:
        hat = hat + (_nearest(x.squeeze(1).to(c.dtype), c) - hat).detach()
    return hat.to(w.dtype).reshape(w.shape), c


def dkm(
    w: torch.Tensor,
    centroids: torch.Tensor,
    tau: float,
    rounds: int = ROUNDS,
    stop: float = STOP,
    hard: bool = False,
    heft: Heft | None = None,
    half: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `naive_dkm` gives for w rounded to `half`, N / U times cheaper; the centroids come without gradient.

    Of the forward pass only the 16-bit weights themselves are kept, which are their own list of indices.
    """
    hat, c = _Unique.apply(w, centroids, (float(tau), rounds, float(stop), hard), heft, half)
    return hat, c


class _Unique(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w: torch.Tensor, centroids: torch.Tensor, how: Any, heft: Heft | None, half: torch.dtype
    ) -> Any:
        tau, rounds, stop, hard = how
        pattern = w.detach().to(half, copy=True, memory_format=torch.contiguous_format).view(torch.int16)
        values, counts, which = unique(pattern, half, heft)
        x, many = values.double().numpy(), counts.double().numpy()
        hat = np.zeros(len(x))
        made = forward(x, many, centroids.detach().double().numpy(), tau, rounds, stop, hat)
        ctx.save_for_backward(pattern)
        ctx.small = (x, many, which, made, tau, heft)
        c = torch.from_numpy(made[-1].copy())
        if hard:
            hat = _nearest(torch.from_numpy(x), c).numpy()
        out = torch.empty(w.shape, dtype=_wide(w))
        _look(_flat(pattern), _spread(which, hat, out.dtype), out.reshape(-1).numpy())
        c = c.to(centroids.dtype)
        ctx.mark_non_differentiable(c)
        return out.to(w.dtype), c

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
        (pattern,) = ctx.saved_tensors
        x, many, which, made, tau, heft = ctx.small
        given = grad.detach().contiguous().to(_wide(grad))
        sums, slope, moved = np.zeros(_PATTERNS), np.zeros(len(x)), np.zeros(len(x))
        _gather(_flat(pattern), given.reshape(-1).numpy(), sums)
        backward(x, many, made, tau, sums[which], slope, moved)
        out = torch.empty(given.shape, dtype=given.dtype)
        slopes, moves = (_spread(which, p, given.dtype) for p in (slope, moved))
        flat, numbers = out.reshape(-1).numpy(), given.reshape(-1).numpy()
        if heft is None:
            _back(_flat(pattern), numbers, slopes, moves, flat)
        else:
            by = (heft.rows, heft.columns, heft.units, heft.group)
            _back_by(_flat(pattern), numbers, slopes, moves, flat, by)
        return out.to(grad.dtype), None, None, None, None


def _wide(t: torch.Tensor) -> torch.dtype:
    return t.dtype if t.dtype.itemsize > 2 else torch.float32


def _nearest(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    rising = c.detach().sort().values
    return rising[torch.from_numpy(nearest(rising.numpy(), x.detach().numpy()))]


def unique(
    pattern: torch.Tensor, half: torch.dtype, heft: Heft | None = None
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """(values float32 [U], how often or how heavy, bit patterns) of 16-bit weights, seen as int16; -0 is not 0."""
    counts = np.zeros(_PATTERNS)
    if heft is None:
        _count(_flat(pattern), counts)
    else:
        _count_by(_flat(pattern), counts, heft.rows, heft.columns, heft.units, heft.group)
    which = np.flatnonzero(counts)
    values = torch.from_numpy(which.astype(np.uint16).view(np.int16)).view(half).float()
    return values, torch.from_numpy(counts[which]), which


def repaired(centroids: torch.Tensor) -> torch.Tensor:
    """Rising centroids; where two are the same, one goes midway between its neighbours."""
    c = centroids.detach().sort().values.clone()
    width = float(c[-1] - c[0])
    for i in range(len(c) - 1) if width > 0 else ():
        if float(c[i + 1] - c[i]) > 1e-6 * width:
            continue
        if i + 2 < len(c):
            c[i + 1] = (c[i] + c[i + 2]) / 2
        else:
            c[i] = (c[i - 1] + c[i + 1]) / 2
    return c


def gap(centroids: torch.Tensor) -> float:
    """The mean distance between neighbours."""
    return max(1e-12, float(centroids.max() - centroids.min()) / max(1, len(centroids) - 1))


def _flat(pattern: torch.Tensor) -> np.ndarray:
    return pattern.reshape(-1).numpy().view(np.uint16)


def _spread(which: np.ndarray, small: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Numbers of the values that occur, by bit pattern."""
    table = np.zeros(_PATTERNS, np.float64 if dtype is torch.float64 else np.float32)
    table[which] = small
    return table


@njit(nogil=True, cache=True)
def _count(pattern, counts):  # type: ignore[no-untyped-def]
    for i in range(pattern.size):
        counts[pattern[i]] += 1


@njit(nogil=True, cache=True)
def _look(pattern, table, out):  # type: ignore[no-untyped-def]
    for i in range(pattern.size):
        out[i] = table[pattern[i]]


@njit(nogil=True, cache=True)
def _gather(pattern, given, sums):  # type: ignore[no-untyped-def]
    for i in range(pattern.size):
        sums[pattern[i]] += given[i]


@njit(nogil=True, cache=True)
def _back(pattern, given, slope, moved, out):  # type: ignore[no-untyped-def]
    for i in range(pattern.size):
        out[i] = given[i] * slope[pattern[i]] + moved[pattern[i]]


@njit(nogil=True, cache=True)
def _count_by(pattern, counts, rows, columns, units, group):  # type: ignore[no-untyped-def]
    for o in range(rows.size):
        for i in range(columns.size):
            counts[pattern[o * columns.size + i]] += rows[o] * columns[i] * units[o, i // group]


@njit(nogil=True, cache=True)
def _back_by(pattern, given, slope, moved, out, by):  # type: ignore[no-untyped-def]
    rows, columns, units, group = by
    for o in range(rows.size):
        for i in range(columns.size):
            at = o * columns.size + i
            heft = rows[o] * columns[i] * units[o, i // group]
            out[at] = given[at] * slope[pattern[at]] + heft * moved[pattern[at]]
