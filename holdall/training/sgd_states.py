"""SGD-SaI's ratios from sums that workers can share, and its update in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.errors import BadInput

_TILE = 1 << 16  # numbers that are widened at a time


def blocks_of(p: Tensor, blocks: int) -> int:
    """How many ratios a tensor has: vectors and smaller ones have one."""
    if p.dim() < 2 or blocks == 1 or not p.numel():
        return 1
    n = blocks or len(p)
    if len(p) % n:
        raise BadInput("blocks", blocks, f"a number that divides {len(p)}, the first axis of {list(p.shape)}")
    return n


def sums(g: Tensor, blocks: int = 1) -> Tensor:
    """float64 [blocks, 3]: how many numbers, their sum, and the sum of their squares; adds up over shards."""
    rows = g.reshape(blocks_of(g, blocks), -1)
    many = torch.full((len(rows),), rows.shape[1], dtype=torch.float64)
    found = torch.zeros(len(rows), 2, dtype=torch.float64)
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        from holdall.training import sgd_kernels

        count: Any = sgd_kernels.sums
        count(rows.detach().contiguous().numpy(), found.numpy())
    else:
        naive_sums(rows, found)
    if not found.isfinite().all():
        raise BadInput("first gradient", "NaN or infinity", "finite numbers: ratios stay for the whole run")
    return torch.cat([many[:, None], found], dim=1)


def naive_sums(rows: Tensor, out: Tensor) -> None:
    """The truth, in torch's words: out [blocks, 2], a tile at a time, as torch would widen the whole."""
    down, across = max(1, _TILE // max(rows.shape[1], 1)), min(_TILE, max(rows.shape[1], 1))
    for i in range(0, len(rows), down):
        for part in rows[i : i + down].split(across, dim=1):
            wide = part.double()
            out[i : i + down] += torch.stack([wide.sum(1), wide.square().sum(1)], dim=1).cpu()


def gsnr(counted: Tensor, eps: float = 1e-8, rule: str = "gsnr") -> Tensor:
    """float64 [blocks]: norm over deviation (n - 1), from `sums`; 0 where all gradients are zero.

    Without a deviation (one number, or the same everywhere) the root of the size, as for gradients about zero.
    """
    n, total, squares = counted.unbind(1)
    spread = (squares - total.square() / n.clamp(min=1)).clamp(min=0)
    flat = (n < 2) | (spread <= 1e-12 * squares)  # what float64 leaves of equal numbers
    found = squares.sqrt() / ((spread / (n - 1).clamp(min=1)).sqrt() + eps)
    found = torch.where(flat | (torch.tensor(rule == "size")), n.sqrt(), found)
    return torch.where(squares > 0, found, 0.0)


def naive_advance(
    p: Tensor, g: Tensor, m: Tensor, rates: Tensor, beta: float, keep: float, decay: float
) -> None:
    """The truth, in torch's words: in place, and no copy where there is one rate."""
    m.mul_(beta).add_(g, alpha=keep)
    p.mul_(decay)
    if len(rates) == 1:
        p.add_(m, alpha=-float(rates))
    else:
        each = rates.to(p.dtype).repeat_interleave(len(p) // len(rates))
        p.addcmul_(m, each.view(-1, *[1] * (p.dim() - 1)), value=-1)


def advance(p: Tensor, g: Tensor, m: Tensor, rates: Tensor, beta: float, keep: float, decay: float) -> None:
    """The same, in one pass where numbers lie in a row; those of 16 bits are widened by tiles and rounded once."""
    if p.device.type != "cpu" or p.dtype == torch.float64:
        naive_advance(p, g, m, rates, beta, keep, decay)
        return
    if not (p.is_contiguous() and m.is_contiguous()):
        whole, moved = p.contiguous(), m.contiguous()
        advance(whole, g, moved, rates, beta, keep, decay)
        p.copy_(whole)
        m.copy_(moved)
        return
    numbers = tuple(np.float32(x) for x in (beta, keep, decay))
    flat = [x.reshape(-1) for x in (p, g, m)]
    if p.dtype == g.dtype == m.dtype == torch.float32:
        _step(flat, rates, numbers)
        return
    each = p.numel() // len(rates)
    for b, rate in enumerate(rates.split(1)):
        for start in range(b * each, (b + 1) * each, _TILE):
            parts = [x[start : min(start + _TILE, (b + 1) * each)] for x in flat]
            wide = [x.float() for x in parts]
            _step(wide, rate, numbers)
            parts[0].copy_(wide[0])
            parts[2].copy_(wide[2])


def _step(parts: list[Tensor], rates: Tensor, numbers: tuple[np.float32, ...]) -> None:
    from holdall.training import sgd_kernels

    step: Any = sgd_kernels.step
    step(*(x.numpy() for x in parts), rates.numpy(), *numbers)
