"""Second moments of what goes into each matrix of any torch module, from batches that are run through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_MOST = 4096  # rows of inputs of one batch that a sum takes, evenly spread: neighbouring pixels say the same


def second_moments(module: torch.nn.Module, data: Iterable[Any]) -> dict[str, torch.Tensor]:
    """By weight name, [I, I]: mean of x x^T over what linears and convolutions are given, as rows of `weight` meet it.

    data: batches, tensors or what the module takes as named arguments. Convolutions in groups have their groups'
    moments in one sum, and borders that a subclass pads by itself are not seen.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(owner: Any, args: tuple[torch.Tensor, ...]) -> None:
            x = _rows(owner, args[0].detach().float())
            x = x[:: max(1, len(x) // _MOST)]
            sums[name] = sums.get(name, 0) + x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    handles = [
        owner.register_forward_pre_hook(watch(f"{path}.weight"))
        for path, owner in module.named_modules()
        if isinstance(owner, kinds)
    ]
    before = {part: part.training for part in module.modules()}
    module.eval()
    seen = 0
    try:
        with torch.no_grad():
            for batch in data:
                module(**batch) if isinstance(batch, dict) else module(batch)
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
        for part, training in before.items():
            part.training = training
    if not seen:
        raise BadInput("data", "no batches", "at least one")
    return {name: total / counts[name] for name, total in sums.items()}


def _rows(owner: Any, x: torch.Tensor) -> torch.Tensor:
    """[rows, I]"""
    if isinstance(owner, torch.nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if owner.kernel_size == (1, 1):
        seen = x.flatten(2)
    else:
        pad = owner.padding if isinstance(owner.padding, tuple) else (0, 0)
        seen = torch.nn.functional.unfold(x, owner.kernel_size, owner.dilation, pad, owner.stride)
    width = owner.weight[0].numel()
    return seen.reshape(len(x), -1, width, seen.shape[2]).transpose(2, 3).reshape(-1, width)
