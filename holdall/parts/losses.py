"""What a module's output is compared with, where the user names no loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")


def default_loss(module: Any, batch: Any) -> Any:
    """Cross-entropy for whole-number targets, squared error for others; a dict is answered with a `.loss`."""
    if isinstance(batch, dict):
        return module(**batch).loss
    inputs, targets = batch
    given = module(inputs)
    if targets.is_floating_point():
        return torch.nn.functional.mse_loss(given, targets)
    return torch.nn.functional.cross_entropy(given.flatten(0, -2), targets.flatten())
