"""How much every layer keeps so that all keep the same share of what counts: curves, and the search for that share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE, INTERVAL = 5, 1e-6  # entries off the budget, and width, at which the search ends


@dataclass(frozen=True)
class Curve:
    """One layer: what share of its score the best o entries hold, `share[o - 1]`, rising to 1.

    fixed: entries that stay whatever they score; they are not on the curve. least: entries that it cannot go below.
    each: bytes of an entry.
    """

    share: NDArray[np.float64]
    fixed: int = 0
    least: int = 0
    each: int = 1

    @property
    def count(self) -> int:
        return self.fixed + len(self.share)

    def kept(self, p: float) -> int:
        """The fewest entries that hold the share p, the fixed ones included."""
        best = min(len(self.share), int(np.searchsorted(self.share, p)) + 1) if p > 0 else 0
        return max(self.least, self.fixed + best)

    def retained(self, kept: int) -> float:
        """The share that so many entries hold."""
        best = min(kept - self.fixed, len(self.share))
        return float(self.share[best - 1]) if best > 0 else 0.0


def search(curves: Sequence[Curve], total: int) -> tuple[float, list[int]]:
    """(the share, entries of each layer) that come within the tolerance of `total` bytes, by bisection."""
    low, high = 0.0, 1.0
    near = TOLERANCE * max((c.each for c in curves), default=0)
    while high - low > INTERVAL:
        middle = (low + high) / 2
        size = _size(curves, middle)
        if abs(size - total) <= near:
            return middle, [c.kept(middle) for c in curves]
        low, high = (middle, high) if size < total else (low, middle)
    return low, [c.kept(low) for c in curves]


def exact(curves: Sequence[Curve], found: Sequence[int], total: int) -> list[int]:
    """`found`, with what each layer drops scaled so that as much stays as `total` bytes hold."""
    drops = [c.count - k for c, k in zip(curves, found, strict=True)]
    room = [c.count - c.least for c in curves]
    target = sum(c.each * c.count for c in curves) - total  # bytes that must go
    dropped = sum(c.each * d for c, d in zip(curves, drops, strict=True))
    factor = max(0.0, target / dropped) if dropped else 0.0
    wanted = [min(r, d * factor) for r, d in zip(room, drops, strict=True)]
    gone = [int(w) for w in wanted]
    left = target - sum(c.each * g for c, g in zip(curves, gone, strict=True))
    order = sorted(range(len(gone)), key=lambda i: (gone[i] - wanted[i], i))  # largest remainder first
    while left > 0 and any(gone[i] < room[i] for i in order):
        for i in order:
            if left > 0 and gone[i] < room[i]:
                gone[i] += 1
                left -= curves[i].each
    return [c.count - g for c, g in zip(curves, gone, strict=True)]


def naive_search(curves: Sequence[Curve], total: int, steps: int = 10_000) -> tuple[float, list[int]]:
    """`search` by trying every share of a grid: the one that comes nearest to `total`."""
    best = min((i / steps for i in range(1, steps)), key=lambda p: abs(_size(curves, p) - total))
    return best, [c.kept(best) for c in curves]


def _size(curves: Sequence[Curve], p: float) -> int:
    return sum(c.each * c.kept(p) for c in curves)
