"""Moments in E4M3 with the range of each group expanded: torch's words for it, and the way to the fused kernel.

The torch words are the truth that the kernel is compared with, and what runs where there is no CPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOP = 448.0  # largest of E4M3
REACH = math.log2(TOP * TOP / 2)  # octaves that codes span
_TINY = 2.0**-126  # what is smaller counts as zero
_TILE = 1 << 16  # numbers that are widened at a time, where parameters are no float32
_SHARE = 1 << 18  # numbers that are worth a thread


@dataclass(frozen=True)
class Moments:
    """Numbers in groups. codes float8 [N], tops float32 [groups]: the largest; powers uint8: 16 k - 1."""

    codes: Tensor
    tops: Tensor
    powers: Tensor

    @classmethod
    def zeros(cls, like: Tensor, size: int) -> Moments:
        n = -(-like.numel() // size)
        codes = torch.zeros(like.shape, dtype=torch.float8_e4m3fn, device=like.device)
        tops = torch.zeros(n, device=like.device)
        return cls(codes, tops, torch.full((n,), 15, dtype=torch.uint8, device=like.device))

    @classmethod
    def of(cls, state: Mapping[str, Any], name: str) -> Moments:
        return cls(state[name], state[f"{name}_top"], state[f"{name}_power"])

    def named(self, name: str) -> dict[str, Any]:
        """As an optimizer's state has them."""
        return {name: self.codes, f"{name}_top": self.tops, f"{name}_power": self.powers}

    def part(self, start: int, stop: int, size: int) -> Moments:
        """Views of the numbers from start, which begins a group, to stop."""
        groups = slice(start // size, -(-stop // size))
        return Moments(self.codes.view(-1)[start:stop], self.tops[groups], self.powers[groups])

    def keep(self, x: Tensor, size: int, expand: bool, seed: int = 0) -> None:
        made = encode(x, size, expand, seed, self.powers)
        self.codes.view(torch.uint8).copy_(made.codes.view(torch.uint8).view(self.codes.shape))
        self.tops.copy_(made.tops)
        self.powers.copy_(made.powers)


def encode(x: Tensor, size: int, expand: bool = True, seed: int = 0, old: Tensor | None = None) -> Moments:
    """Groups of `size` consecutive numbers as codes, calculated in x's own type (float32 at least).

    seed: of the chance with which codes are rounded up; 0: to the nearest. By chance an `old` exponent also stays as
    long as codes reach, and three quarters of their range are used.
    """
    wide = x.double() if x.dtype == torch.float64 else x.float()
    n = wide.numel()
    rows = torch.nn.functional.pad(wide.reshape(-1), (0, -n % size)).view(-1, size)
    sizes = rows.abs()
    sizes = torch.where(sizes < _TINY, 0, sizes)
    finite = sizes.isfinite()
    tops = torch.where(finite, sizes, 0).amax(1, keepdim=True)
    low = torch.where(finite & (sizes > 0), sizes, torch.inf).amin(1, keepdim=True)
    span = tops.double().log2() - low.double().log2()
    powers = (REACH / span * 16).floor().nan_to_num(16, posinf=256, neginf=16).clamp(1, 256)
    powers = powers if expand else torch.full_like(powers, 16)
    if seed and expand and old is not None:
        before = old.double()[:, None] + 1
        powers = torch.where((before <= powers) & (3 * powers <= 4 * before), before, powers)
    powers = torch.where(tops > 0, powers, 16)
    y = (sizes / torch.where(tops > 0, tops, 1)).pow((powers / 16).to(wide.dtype)) * TOP
    y = _by_chance(y, seed) if seed else y
    y = torch.where(sizes > 0, y.clamp(2.0**-9, TOP), 0)  # what is there stays there
    y = torch.where(finite, y.copysign(rows), torch.nan)
    codes = torch.where(sizes == 0, 0, y).float().to(torch.float8_e4m3fn)
    codes = codes.view(torch.uint8).view(-1)[:n].view(torch.float8_e4m3fn).view(x.shape)
    return Moments(codes, tops.view(-1).float(), (powers.view(-1) - 1).to(torch.uint8))


def _by_chance(y: Tensor, seed: int) -> Tensor:
    """y >= 0 on the grid of E4M3, up or down with the chances of what is cut off."""
    x = torch.arange(y.numel(), device=y.device) + seed
    for factor, down in ((0x9E3779B1, 15), (0x85EBCA77, 13)):
        x = (x * factor) & 0xFFFFFFFF
        x = x ^ (x >> down)
    chance = ((x & 0xFFFFF) / 2.0**20).to(y.dtype).view(y.shape)
    step = torch.exp2(torch.frexp(y.clamp(2.0**-6))[1].to(y.dtype) - 4)
    return torch.floor(y / step + chance) * step


def decode(m: Moments, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that codes stand for."""
    n = m.codes.numel()
    y = torch.nn.functional.pad(m.codes.view(-1).to(dtype), (0, -n % size)).view(-1, size)
    k = (m.powers.to(dtype) + 1)[:, None] / 16
    x = _shrunk(y, k) * m.tops[:, None].to(dtype)
    return x.view(-1)[:n].view(m.codes.shape)


@dataclass(frozen=True)
class Rule:
    """AdamW's numbers for one step. rate: lr / (1 - beta1^t), root: 1 / sqrt(1 - beta2^t), sign: -1 to maximize."""

    first: float
    beta: float
    second: float
    decay: float
    rate: float
    root: float
    eps: float
    sign: float
    seed: int = 0  # of the chance that rounds the second moment

    @classmethod
    def at(
        cls,
        step: float,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        decay: float,
        up: bool,
        steady: bool,
    ) -> Rule:
        one, two = betas
        rate, root = lr / (1 - one**step), 1 / math.sqrt(1 - two**step)
        seed = int(step) * 0x3779B1 % 0x3FFFFFFF + 1 if steady else 0
        return cls(1 - one, two, 1 - two, 1 - lr * decay, rate, root, eps, -1.0 if up else 1.0, seed)

    def numbers(self) -> np.ndarray:
        return np.array(list(vars(self).values())[:8], np.float32)


def naive_advance(p: Tensor, g: Tensor, m: Moments, v: Moments, rule: Rule, size: int, expand: bool) -> None:
    """One step of AdamW over whole tensors: the truth."""
    kind = torch.float64 if p.dtype == torch.float64 else torch.float32
    d = g.to(kind) * rule.sign
    one, two = (decode(x, size, kind).view(p.shape) for x in (m, v))
    one = one.lerp(d, rule.first)
    two = two * rule.beta + d * d * rule.second
    p.copy_(p.to(kind) * rule.decay - rule.rate * one / (two.sqrt() * rule.root + rule.eps))
    m.keep(one, size, expand)
    v.keep(two, size, expand, rule.seed)


def advance(p: Tensor, g: Tensor, m: Moments, v: Moments, rule: Rule, size: int, expand: bool) -> None:
    """The same, without a copy of anything but a tile."""
    if not p.is_contiguous():
        whole = p.contiguous()
        advance(whole, g, m, v, rule, size, expand)
        p.copy_(whole)
        return
    flat, slope = p.view(-1), g.contiguous().view(-1)
    if p.device.type == "cpu" and p.dtype == g.dtype == torch.float32:
        _fused(flat, slope, m, v, rule, size, expand)
        return
    for start, stop in _tiles(flat.numel(), size):
        part, of = flat[start:stop], slope[start:stop]
        one, two = m.part(start, stop, size), v.part(start, stop, size)
        here = replace(rule, seed=rule.seed and rule.seed + start)  # places count from the tensor's start
        if p.device.type != "cpu" or p.dtype == torch.float64:
            naive_advance(part, of, one, two, here, size, expand)
            continue
        wide = part.float()
        _fused(wide, of.float(), one, two, here, size, expand)
        part.copy_(wide)


def _tiles(n: int, size: int) -> Iterator[tuple[int, int]]:
    tile = max(_TILE // size, 1) * size
    return ((start, min(start + tile, n)) for start in range(0, n, tile))


def _fused(p: Tensor, g: Tensor, m: Moments, v: Moments, rule: Rule, size: int, expand: bool) -> None:
    from holdall.training import coat_kernels

    step: Any = coat_kernels.step
    arrays: list[Any] = [p.numpy(), g.numpy()]
    for x in (m, v):
        arrays += [x.codes.view(torch.uint8).view(-1).numpy(), x.tops.numpy(), x.powers.numpy()]
    groups = len(m.tops)
    jobs = min(torch.get_num_threads(), max(1, p.numel() // _SHARE))
    ends = [groups * i // jobs for i in range(jobs + 1)]
    numbers = rule.numbers()

    def part(ends: tuple[int, int]) -> None:
        step(*arrays, tables(), size, *ends, numbers, expand, rule.seed)

    if jobs == 1:
        part((0, groups))
    else:
        list(_threads(os.getpid()).map(part, pairwise(ends)))


@cache
def _threads(_: int) -> ThreadPoolExecutor:
    """Of this process: after a fork the parent's are not there."""
    return ThreadPoolExecutor(os.cpu_count())


@cache
def tables() -> np.ndarray:
    """float32 [256, 256]: what each code stands for at each k, where the largest is one."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    k = (torch.arange(256).double()[:, None] + 1) / 16
    return _shrunk(codes, k).float().numpy()


def _shrunk(y: Tensor, k: Tensor) -> Tensor:
    """sign(y) (|y| / 448)^(1 / k), which no code but zero's takes to zero."""
    x = (y.abs() / TOP).pow(1 / k)
    return torch.where(y == 0, 0, torch.where(x < _TINY, _TINY, x)).copysign(y)
