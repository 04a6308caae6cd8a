"""Several processes that train blocks of one scene: what they tell each other. One process is a crew, too.

A crew is whatever `torch.distributed` has been initialised with, gloo on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from holdall.errors import BadInput


class Crew:
    def __init__(self) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if there else (0, 1)

    def share(self, blocks: int) -> list[int]:
        """The blocks of this process."""
        if blocks % self.world:
            raise BadInput("processes", self.world, f"a number that divides {blocks} blocks")
        return list(range(self.rank, blocks, self.world))

    def mean(self, grads: Sequence[Tensor | None]) -> None:
        """Each gradient becomes the mean of all processes'."""
        found = [g for g in grads if g is not None]
        if self.world == 1 or not found:
            return
        flat = torch.cat([g.reshape(-1) for g in found])
        dist.all_reduce(flat)
        flat /= self.world
        _back(flat, found)

    @torch.no_grad()
    def same(self, tensors: Sequence[Tensor]) -> None:
        """As the first process has them."""
        if self.world > 1:
            flat = torch.cat([t.detach().reshape(-1) for t in tensors])
            dist.broadcast(flat, 0)
            _back(flat, [t.detach() for t in tensors])

    def rows(self, table: Tensor, mine: Sequence[int]) -> Tensor:
        """The table with each process's own rows."""
        if self.world == 1:
            return table
        found = torch.zeros_like(table)
        found[list(mine)] = table[list(mine)]
        dist.all_reduce(found)
        return found

    def from_owner(
        self, block: int, tensors: dict[str, Tensor] | None, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """float32 tensors of a block, which its owner has and all get."""
        if self.world == 1:
            assert tensors is not None
            return tensors
        owner, found = block % self.world, {}
        for name in names:
            shape = torch.zeros(4, dtype=torch.long)
            if tensors is not None:
                shape[: tensors[name].dim()] = torch.tensor(tensors[name].shape)
                shape[3] = tensors[name].dim()
            dist.broadcast(shape, owner)
            size = shape[: int(shape[3])].tolist()
            found[name] = tensors[name].contiguous() if tensors is not None else torch.zeros(size)
            dist.broadcast(found[name], owner)
        return found


def _back(flat: Tensor, into: Sequence[Tensor]) -> None:
    at = 0
    for t in into:
        t.copy_(flat[at : at + t.numel()].view_as(t))
        at += t.numel()
