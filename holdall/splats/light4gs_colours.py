"""How harmonics are coded: Gaussians along a curve through space, every eighth first and then those between, red before
green before blue, the base before the rest; a small net says where each is expected from what is known by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats.light4gs_gauss import UNIT, Getter, Putter
from holdall.splats.light4gs_net import Expecting, base_widths, cost, floor

LEVELS = 4  # of Gaussians: every eighth, then halves
INPUTS = 16
Facts = tuple[Tensor, Tensor]  # of each Gaussian: how opaque, how large; whole numbers of 0 to 255


def bands(count: int) -> list[int]:
    """Of each harmonic, its degree."""
    return [int(k**0.5) for k in range(count)]


def levels(n: int) -> Tensor:
    """[n]: when each Gaussian's turn is."""
    i = torch.arange(n)
    found = torch.full((n,), LEVELS - 1)
    for level in range(LEVELS - 2, -1, -1):
        found[i % (1 << (LEVELS - 1 - level)) == 0] = level
    return found


def moments(n: int, count: int) -> Tensor:
    """[n, count, 3]: after how many groups of others each number is coded."""
    colour = torch.arange(3)[None, None]
    rest = (torch.arange(count) > 0).long()[None, :, None]
    return rest * LEVELS * 3 + levels(n)[:, None, None] * 3 + colour


def contexts(own: Tensor, facts: Facts, exact: bool) -> Tensor:  # [n, K, 3] -> [INPUTS, n, K, 3]
    """Of `own`, no number is looked at that is coded later."""
    n, count, _ = own.shape
    level, i = levels(n), torch.arange(n)
    off = 1 << (LEVELS - 1 - level)
    before = torch.where(level > 0, i - off, i)
    after = torch.where(i + off < n, i + off, before)
    there = (level > 0).to(own)[:, None, None]
    sides = own[before] + own[after]
    near, apart = sides * (there * (UNIT // 2)), (own[before] - own[after]).abs() * (there * (UNIT // 2))
    green, blue = torch.tensor([0.0, 1, 1]).to(own), torch.tensor([0.0, 0, 1]).to(own)
    rest = torch.ones(count).to(own)
    rest[0] = 0
    rest = rest[None, :, None]
    base, miss = own[:, :1] * UNIT * rest, (own[:, :1] * UNIT - near[:, :1]).abs() * rest
    degree = torch.tensor(bands(count))
    flags = [(degree == k).to(own)[None, :, None].expand_as(own) * UNIT for k in (1, 2)]
    found = [
        near,
        near[:, :, :1] * green,
        near[:, :, 1:2] * blue,
        own[:, :, :1] * UNIT * green,
        own[:, :, 1:2] * UNIT * blue,
        apart,
        base,
        miss,
        floor(near.abs().sum(2, keepdim=True) / 3, exact).expand_as(own),
        (UNIT - there * UNIT).expand_as(own),
        (green * UNIT).expand_as(own),
        (blue * UNIT).expand_as(own),
        facts[0].to(own)[:, None, None].expand_as(own),
        facts[1].to(own)[:, None, None].expand_as(own),
        *flags,
    ]
    return torch.stack([f.expand_as(own) for f in found])


@dataclass
class ColourModel:
    """base [K, 3]: widths to begin from."""

    count: int
    hidden: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        self.nets = [
            Expecting(INPUTS, self.hidden, self.seed + 20 + i) for i in range(2 if self.count > 1 else 1)
        ]
        self.base = torch.zeros(self.count, 3, dtype=torch.float64)

    def params(self) -> list[Tensor]:
        return [p for net in self.nets for p in net.parts.values()]

    def begin(self, values: Any) -> None:
        self.base = torch.from_numpy(base_widths(values, 0)).double()

    def bits(self, values: Tensor, facts: Facts) -> Tensor:
        """What harmonics [n, K, 3], in steps, would take in all."""
        x, total = contexts(values, facts, False), torch.zeros(())
        for net, some in zip(self.nets, (slice(0, 1), slice(1, None)), strict=False):
            v = values[:, some]
            base = self.base[some].to(v).expand_as(v).reshape(-1)
            middles, widths = net(x[:, :, some].reshape(INPUTS, -1), base)
            total = total + cost(v.reshape(-1), middles, widths).sum()
        return total

    def fit(self, values: Tensor, facts: Facts, rounds: int, rate: float) -> None:
        self.begin(values)
        teach = torch.optim.Adam(self.params(), lr=rate)
        for i in range(rounds):
            for group in teach.param_groups:
                group["lr"] = rate * min(1.0, 2 * (1 - i / rounds) + 0.05)
            (self.bits(values, facts) / values.numel()).backward()
            teach.step()
            teach.zero_grad()

    def _expected(self, own: Tensor, facts: Facts, moment: int, which: Tensor) -> tuple[Any, Any]:
        x = contexts(own, facts, True)[:, which]
        base = self.base.expand_as(own)[which]
        return self.nets[moment >= LEVELS * 3].exact(x, base)

    @torch.no_grad()
    def write(self, values: Tensor, facts: Facts) -> Putter:
        put, own, when = Putter(), values.double().round(), moments(len(values), self.count)
        x = contexts(own, facts, True)
        for moment in range(int(when.max()) + 1):
            which = when == moment
            middles, widths = self.nets[moment >= LEVELS * 3].exact(
                x[:, which], self.base.expand_as(own)[which]
            )
            put.put(own[which].numpy().astype(np.int64), middles, widths)
        return put

    @torch.no_grad()
    def read(self, get: Getter, n: int, facts: Facts) -> Tensor:
        own, when = torch.zeros(n, self.count, 3, dtype=torch.float64), moments(n, self.count)
        for moment in range(int(when.max()) + 1):
            which = when == moment
            own[which] = torch.from_numpy(get.get(*self._expected(own, facts, moment, which))).double()
        return own
