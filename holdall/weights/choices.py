"""Which setting each matrix gets, so that bytes are spent where they save the most loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise


@dataclass
class Choice:
    """What a matrix costs at each setting: bytes, and loss."""

    settings: list[float]
    sizes: list[int]
    losses: list[float]

    def hull(self) -> list[int]:
        """Settings on the lower convex hull, the smallest first."""
        order = sorted(range(len(self.sizes)), key=lambda i: (self.sizes[i], self.losses[i]))
        kept: list[int] = []
        for i in order:
            if kept and self.losses[i] >= self.losses[kept[-1]]:
                continue
            while len(kept) > 1 and self.gain(kept[-1], i) >= self.gain(kept[-2], kept[-1]):
                kept.pop()
            kept.append(i)
        return kept

    def nearest(self, size: float) -> Choice:
        """Only the setting whose size is nearest."""
        i = min(range(len(self.sizes)), key=lambda i: abs(self.sizes[i] - size))
        return Choice([self.settings[i]], [self.sizes[i]], [self.losses[i]])

    def gain(self, a: int, b: int) -> float:
        """Loss saved a byte, from setting a to b."""
        return (self.losses[a] - self.losses[b]) / max(1, self.sizes[b] - self.sizes[a])


def chosen(choices: Mapping[str, Choice], limit: int) -> dict[str, int]:
    """Of each matrix the setting, so that loss is least in `limit` bytes; the smallest where that does not fit."""
    hulls = {n: c.hull() for n, c in choices.items()}
    at = {n: hull[0] for n, hull in hulls.items()}
    size = sum(choices[n].sizes[i] for n, i in at.items())
    moves = sorted((-choices[n].gain(a, b), n, a, b) for n, hull in hulls.items() for a, b in pairwise(hull))
    for _, name, a, b in moves:
        more = choices[name].sizes[b] - choices[name].sizes[a]
        if at[name] == a and size + more <= limit:
            at[name], size = b, size + more
    return at
