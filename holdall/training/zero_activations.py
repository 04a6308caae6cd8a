"""ZeRO-R: inputs of checkpointed modules, of which each of several workers that hold the same keeps one part.

For model parallelism, where all workers of a group have the same activation between their blocks.

    arena = Arena(8 << 20, torch.float32)
    for block in blocks:
        x = partitioned(block, x, group, arena)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from holdall.errors import BudgetError
from holdall.parts import partition


class Arena:
    """One block for what lives long, from the start: short-lived tensors around it then leave no holes in between.

    Room is taken at the first place that fits, and merges with its neighbours when it is given back.
    """

    def __init__(self, count: int, dtype: torch.dtype, device: Any = "cpu"):
        self.block = torch.empty(count, dtype=dtype, device=device)
        self._taken: list[partition.Span] = []  # by place

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return sum(b - a for a, b in self._taken) * self.block.element_size()

    def take(self, count: int) -> Tensor:
        """Room for so many numbers; BudgetError where there is none in one piece."""
        at = 0
        for i, (start, stop) in enumerate([*self._taken, (self.block.numel(), 0)]):
            if at + count <= start:
                self._taken.insert(i, (at, at + count))
                return self.block[at : at + count]
            at = stop
        size = self.block.element_size()
        raise BudgetError(
            self.block.nbytes, self.used + count * size, who="an arena", why="activations in one piece"
        )

    def give(self, room: Tensor) -> None:
        begin = int(room.storage_offset())
        self._taken.remove((begin, begin + room.numel()))


def partitioned(
    module: nn.Module, x: Tensor, group: Any = None, arena: Arena | None = None, *, host: bool = False
) -> Tensor:
    """module(x), of which nothing is kept but this worker's part of x: the rest is computed again in backward.

    x: the same on all workers of the group, which have to do this together. arena: where the part goes. host: keep it
    in host memory, where x is on a device.
    """
    rank, size = (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)
    place = rank, size, group, arena, host
    given: Tensor = _Partitioned.apply(module, place, x, *(p for p in module.parameters() if p.requires_grad))
    return given


class _Partitioned(torch.autograd.Function):
    """Parameters are inputs, so that their gradients come at the end of this and no backward runs inside another."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, place: Any, x: Tensor, *params: Tensor) -> Tensor:
        rank, size, _, arena, host = place
        ctx.module, ctx.place, ctx.shape, ctx.params = module, place, x.shape, params
        ctx.random = torch.get_rng_state()
        ctx.device_random = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        start, stop = partition.share(x.numel(), size, rank)
        each = partition.padded(x.numel(), size) // size
        if arena is not None:
            kept = arena.take(each)
        else:
            kept = torch.empty(
                each, dtype=x.dtype, device="cpu" if host else x.device, pin_memory=host and x.is_cuda
            )
        kept[: stop - start].copy_(x.detach().reshape(-1)[start:stop])
        ctx.save_for_backward(kept)
        ctx.dtype, ctx.device = x.dtype, x.device
        with torch.no_grad():
            given: Tensor = module(x)
        return given

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        _, size, group, arena, _ = ctx.place
        part = kept.to(ctx.device, ctx.dtype)
        whole = part.new_empty(part.numel() * size)
        if size > 1:
            dist.all_gather(list(whole.split(part.numel())), part, group=group)
        else:
            whole.copy_(part)
        if arena is not None:
            arena.give(kept)
        x = whole[: ctx.shape.numel()].view(ctx.shape).requires_grad_(ctx.needs_input_grad[2])
        devices = [ctx.device] if ctx.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.set_rng_state(ctx.random)
            if ctx.device_random is not None:
                torch.cuda.set_rng_state(ctx.device_random, ctx.device)
            given = ctx.module(x)
        wanted = [*([x] if x.requires_grad else []), *ctx.params]
        found = list(torch.autograd.grad(given, wanted, grads[0], allow_unused=True))
        first = found.pop(0) if x.requires_grad else None
        return None, None, first, *found
