"""Gradients through a packed matrix: it is frozen, but what stands before it may learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from holdall.weights.packed_linear import Held

_NEAR = 1 << 18  # weights that are unpacked at a time: 1 MB
_LEAST = 64  # but not fewer rows than a product pays for


class Product(torch.autograd.Function):
    """x W^T [T, O] for float32 x [T, I]; on the way back W is unpacked some rows at a time, never whole."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, held: Held) -> torch.Tensor:
        ctx.held = held
        return held.multiply(x.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,), held = grads, ctx.held
        rows, columns = held.shape
        step = max(_LEAST, _NEAR // columns)
        out = torch.zeros(len(grad), columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            out.addmm_(grad[:, start:stop], torch.from_numpy(held.rows(np.arange(start, stop))))
        return out, None


def multiplied(held: Held, x: torch.Tensor) -> torch.Tensor:
    """x W^T for x [T, I], with gradients where somebody asks for them."""
    x = x.float().contiguous()
    if x.requires_grad and torch.is_grad_enabled():
        found: torch.Tensor = Product.apply(x, held)
        return found
    return held.multiply(x.detach())
