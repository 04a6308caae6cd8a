"""What is known about a number of a plane when it is coded: coarser planes, its own neighbours, rows of earlier times,
planes that share an axis, and a few numbers that were sent first (the hyperprior).

Planes go coarse before fine, those of two places before those of a place and time. Within a plane of places, the first
half of the features before the second, and of each the squares of one colour of a chessboard before the other; within a
plane of time the same row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from holdall.splats.hexplane import PAIRS, TIMED
from holdall.splats.light4gs_gauss import EIGHTHS, UNIT
from holdall.splats.light4gs_net import floor

Plane = tuple[int, int]  # scale, pair

ORDER = tuple(i for i in range(len(PAIRS)) if i not in TIMED) + TIMED
KINDS = ("hyper", "coarse", "intra", "inter")
FEATURES = (
    "coarse", "coarse", "intra", "intra", "intra", "intra", "inter", "inter", "inter", "hyper", "hyper", "mark",
    "mark", "mark",
)  # fmt: skip
COARSE, HYPER = 4, 2  # points of a plane to one of the hyperprior along an axis, and its numbers there
_UP = 16  # parts of a point, between coarse ones
_LOUDEST = 1 << 13
STEP_BITS = 24  # of a step's fraction


def step_of(code: Any) -> Any:
    """A plane's step in parts of 2**STEP_BITS, of its code: eighths of octaves from 2**-12."""
    table = torch.tensor(EIGHTHS, dtype=torch.float64) / 16
    code = torch.as_tensor(code).long()
    return (table[code % 8] * 2.0 ** (code // 8)).floor()


def code_of(step: Tensor) -> Tensor:
    """The nearest code [...] of steps as numbers."""
    return ((step.double().clamp_min(1e-9).log2() + 12) * 8).round().clamp(0, 127).long()


@cache
def between(few: int, many: int) -> Tensor:
    """[many, few]: sixteenths of each coarse point in each fine one, the corners on each other."""
    found = torch.zeros(many, few, dtype=torch.float64)
    for i in range(many):
        at = i * (few - 1) * _UP // max(many - 1, 1)
        left, part = divmod(at, _UP)
        found[i, left] += _UP - part
        found[i, min(left + 1, few - 1)] += part
    return found


def moments(shape: tuple[int, int, int], timed: bool) -> Tensor:
    """[h, rows, columns]: after how many others each number of a plane is coded."""
    h, rows, columns = shape
    group = (torch.arange(h) >= (h + 1) // 2).long()[:, None, None]
    row, column = torch.arange(rows)[None, :, None], torch.arange(columns)[None, None, :]
    half = (column if timed else row + column) % 2
    return group * 2 + half + (row * 4 if timed else 0)


@cache
def _marks(shape: tuple[int, int, int], timed: bool) -> tuple[Tensor, Tensor]:
    """(second group, second half) as 0 and 1."""
    when = moments(shape, timed) % 4
    return (when // 2).float(), (when % 2).float().expand(shape)


class Contexts:
    """known: planes that are coded already, in their own steps; steps: of each plane [h], as `step_of`; z: of each
    plane what the hyperprior sent [HYPER, ...]. exact: whole numbers in float64. without: kinds that are left out."""

    def __init__(
        self,
        known: Mapping[Plane, Tensor],
        steps: Mapping[Plane, Tensor],
        z: Mapping[Plane, Tensor],
        exact: bool,
        without: frozenset[str] = frozenset(),
    ):
        self.known, self.steps, self.z, self.exact, self.without = known, steps, z, exact, without
        self._given: dict[Plane, tuple[Tensor, ...]] = {}

    def of(self, plane: Plane, own: Tensor, rows: slice = slice(None)) -> Tensor:
        """[K, h, rows, columns] in sixteenths. Of `own`, no number is looked at that is coded later.
        rows: only of these, and right for those that have two earlier ones among them."""
        if plane not in self._given:
            self._given = {plane: self._before(plane, own)}
        wide, axes, z, group, half = (a[..., rows, :] for a in self._given[plane])
        own = own[:, rows]
        timed, first = plane[1] in TIMED, own[: (own.shape[0] + 1) // 2]
        none = torch.zeros_like(own)
        sides = _shifted(own, 2, 1) + _shifted(own, 2, -1)
        across = none if timed else _shifted(own, 1, 1) + _shifted(own, 1, -1)
        past = [_shifted(own, 1, k) * UNIT if timed else none for k in (1, 2)]
        found = [
            wide,
            wide.abs(),
            sides * half * (UNIT // 2),
            across * half * (UNIT // 2),
            self._mean(first.abs().sum(0, keepdim=True) * UNIT, len(first)).expand_as(own) * group,
            axes,
            past[0],
            past[1],
            self._mean(past[0].abs().sum(0, keepdim=True), len(own)).expand_as(own),
            z[0].expand_as(own),
            z[1].expand_as(own),
            half * UNIT,
            group * UNIT,
            torch.full_like(own, UNIT * min(plane[0], 1)),
        ]
        kept = [none if kind in self.without else f for f, kind in zip(found, FEATURES, strict=True)]
        return torch.stack(kept)

    def _before(self, plane: Plane, own: Tensor) -> tuple[Tensor, ...]:
        """What is known before the plane's first number: it is worked out once."""
        group, half = (
            m.to(own) for m in _marks((own.shape[0], own.shape[1], own.shape[2]), plane[1] in TIMED)
        )
        axes = [self._loud(plane, axis, own) for axis in PAIRS[plane[1]]]
        return self._coarse(plane, own), axes[0] + axes[1], self._sent(plane, own), group, half

    def _mean(self, total: Tensor, count: int) -> Tensor:
        """A division of whole numbers, which all machines round alike."""
        return floor(total / count, self.exact)

    def _coarse(self, plane: Plane, own: Tensor) -> Tensor:
        """The plane of the scale before, between its points, in this one's steps."""
        scale, pair = plane
        if not scale:
            return torch.zeros_like(own)
        below = self.known[scale - 1, pair]
        value = below.clamp(-_LOUDEST, _LOUDEST) * self.steps[scale - 1, pair].to(own)[:, None, None]
        rows, columns = (between(a, b).to(own) for a, b in zip(below.shape[1:], own.shape[1:], strict=True))
        up = rows @ value @ columns.T  # 256 times
        return floor(up * (UNIT / _UP**2) / self.steps[plane].to(own)[:, None, None], self.exact)

    def _loud(self, plane: Plane, axis: int, own: Tensor) -> Tensor:
        """How large numbers are along an axis in planes of this scale that are coded and share it."""
        scale, pair = plane
        mine = ORDER.index(pair)
        others = [i for i in ORDER[:mine] if axis in PAIRS[i]]
        if not others:
            return torch.zeros_like(own)
        total: Any = 0.0
        for i in others:
            over = 1 if PAIRS[i][0] == axis else 2
            sums = self.known[scale, i].abs().sum(over) * UNIT
            total = total + self._mean(sums, self.known[scale, i].shape[over] * len(others))
        shown = total
        return (
            shown[:, None, :].expand_as(own) if PAIRS[pair][0] == axis else shown[:, :, None].expand_as(own)
        )

    def _sent(self, plane: Plane, own: Tensor) -> Tensor:
        z = self.z.get(plane)
        if z is None:
            return own.new_zeros(HYPER, 1, *own.shape[1:])
        big = z.to(own).repeat_interleave(COARSE, 1).repeat_interleave(COARSE, 2)
        return big[:, None, : own.shape[1], : own.shape[2]] * UNIT


def _shifted(x: Tensor, dim: int, by: int) -> Tensor:
    """What stands `by` before each number, 0 beyond the edge."""
    found = torch.zeros_like(x)
    n = x.shape[dim]
    if abs(by) < n:
        if by > 0:
            found.narrow(dim, by, n - by).copy_(x.narrow(dim, 0, n - by))
        else:
            found.narrow(dim, 0, n + by).copy_(x.narrow(dim, -by, n + by))
    return found
