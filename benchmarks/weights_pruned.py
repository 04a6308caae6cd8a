"""Peers of parameter sharing: masks that are drawn or scored before training, rewound lottery tickets, and their bytes.

A pruned tensor stores its values in float32 and where they are. Where is charged at what an ideal coder needs, n H(k/n)
bits: no file format does better, so real ones would store fewer values. Masks drawn at random cost nothing (a seed).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from holdall.weights.sharing import shareable

Masks = dict[str, torch.Tensor]


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    return shareable(module, False)


def kept_within(bytes_: float, n: int, places_free: bool = False) -> int:
    """How many of n weights can be stored with their places."""

    def size(k: int) -> float:
        share = k / n
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
        return 4 * k + (0 if places_free else n * entropy / 8)

    low, high = 1, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= bytes_ else (low, middle - 1)
    return low


def top(scores: dict[str, torch.Tensor], k: int) -> Masks:
    """The k best of all tensors together."""
    flat = torch.cat([s.reshape(-1) for s in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(k).indices] = True
    parts = chosen.split([s.numel() for s in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)}


def at_random(module: nn.Module, data: Any, k: int) -> Masks:
    return top({n: torch.rand(p.shape) for n, p in weights_of(module).items()}, k)


def by_size(module: nn.Module, data: Any, k: int) -> Masks:
    return top({n: p.detach().abs() for n, p in weights_of(module).items()}, k)


def snip(module: nn.Module, data: Any, k: int) -> Masks:
    """|gradient * weight| over the training data."""
    own, found = copy.deepcopy(module).train(), {}
    for x, y in data:
        nn.functional.cross_entropy(own(x), y, reduction="sum").backward()
    for n, p in weights_of(own).items():
        found[n] = (p.grad * p.detach()).abs()
    return top(found, k)


def grasp(module: nn.Module, data: Any, k: int) -> Masks:
    """Weights whose loss would cost most gradient flow: theta * (H g) largest."""
    own = copy.deepcopy(module).train()
    params = list(weights_of(own).values())
    x, y = (torch.cat(v) for v in zip(*data[:8], strict=True))
    loss = nn.functional.cross_entropy(own(x) / 200, y)  # the paper's temperature
    first = torch.autograd.grad(loss, params, create_graph=True)
    flow = sum((g * g.detach()).sum() for g in first)
    second = torch.autograd.grad(flow, params)
    found = {n: p.detach() * h for (n, p), h in zip(weights_of(own).items(), second, strict=True)}
    return top(found, k)


def synflow(module: nn.Module, data: Any, k: int, rounds: int = 100) -> Masks:
    """|w dR/dw| of a network of absolute values on ones, without data, pruned a little at a time."""
    own = copy.deepcopy(module).double().eval()
    for p in own.parameters():
        p.data.abs_()
    params, ones = weights_of(own), torch.ones_like(data[0][0][:1]).double()
    n = sum(p.numel() for p in params.values())
    for i in range(1, rounds + 1):
        grads = torch.autograd.grad(own(ones).sum(), list(params.values()))
        scores = {m: (g * p.detach()).abs() for (m, p), g in zip(params.items(), grads, strict=True)}
        masks = top(scores, max(k, round(n * (k / n) ** (i / rounds))))
        for m, p in params.items():
            p.data *= masks[m]
    return masks


AT_START: dict[str, Callable[[nn.Module, Any, int], Masks]] = {
    "random": at_random, "magnitude": by_size, "SNIP": snip, "SynFlow": synflow, "GraSP": grasp,
}  # fmt: skip


def masked(module: nn.Module, masks: Masks) -> nn.Module:
    """A copy that has, and learns, only what the masks keep."""
    made = copy.deepcopy(module)
    for n, p in weights_of(made).items():
        p.data *= masks[n]
        p.register_hook(lambda g, mask=masks[n]: g * mask)
    return made


def lottery(
    module: nn.Module,
    train: Callable[[nn.Module, int | None], None],
    goals: Iterable[int],
    judge: Callable[[nn.Module], float],
) -> dict[int, float]:
    """Accuracy at each goal (weights kept): train, drop a fifth by size, rewind to after the first epoch, train again.

    train(module, epochs) trains in place; None is the whole training.
    """
    early = copy.deepcopy(module)
    train(early, 1)
    current, left, found = copy.deepcopy(module), sum(p.numel() for p in weights_of(module).values()), {}
    train(current, None)
    for goal in sorted(goals, reverse=True):
        while left > goal:
            left = max(goal, int(left * 0.8))
            masks = by_size(current, None, left)
            current = masked(early, masks)
            train(current, None)
        found[goal] = judge(current)
    return found
