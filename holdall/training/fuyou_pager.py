"""Parameters of blocks that are not always in memory: read before they are needed, given back when they were used."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.optional import lazy
from holdall.training.fuyou_groups import Group
from holdall.training.fuyou_states import States, fill

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="training")


class Pager:
    """blocks: the groups of blocks that can leave memory, by number. ahead: blocks that are read before they are
    asked for. What is in `staying` does not leave. Who reads a parameter that is away finds NaN."""

    def __init__(self, states: States, blocks: dict[int, Group], ahead: int):
        self._states, self._blocks, self._ahead = states, blocks, ahead
        self.staying: set[int] = set(blocks)
        self._away: set[int] = set()
        self._homes: dict[
            int, list[Any]
        ] = {}  # of what is away: the same tensors again, as graphs may know them
        self._nothing = torch.tensor(float("nan"))  # what is read of a parameter that is away
        self._coming: dict[int, tuple[np.ndarray, list[Future[int]]]] = {}
        self.told = {"blocks_fetched": 0, "blocks_fetched_early": 0}

    def stays(self, block: int | None) -> bool:
        return block not in self._blocks or block in self.staying

    def need(self, block: int, way: int) -> None:
        """Its parameters into memory, and reads of the next ones begun; way: 1 forwards, -1 backwards."""
        if block in self._away:
            early = block in self._coming
            whole, reads = self._coming.pop(block) if early else self._begun(block)
            for read in reads:
                read.result()
            self._fill(block, whole)
            self.told["blocks_fetched"] += 1
            self.told["blocks_fetched_early"] += early
        near = [block + way * i for i in range(1, self._ahead + 1)]
        for old in [b for b in self._coming if b not in near]:
            self._dropped(old)
        for other in near:
            if other in self._away and other not in self._coming:
                self._coming[other] = self._begun(other)

    def release(self, block: int) -> None:
        if not self.stays(block) and block not in self._away:
            params = self._blocks[block].params
            self._homes[block] = [_home(p) for p in params]
            for p, home in zip(params, self._homes[block], strict=True):
                home.untyped_storage().resize_(0)
                p.data = self._nothing.to(p.dtype).expand(p.shape)
            self._away.add(block)

    def all_here(self) -> None:
        self.forget()
        for block in sorted(self._away):
            whole, reads = self._begun(block)
            for read in reads:
                read.result()
            self._fill(block, whole)

    def forget(self) -> None:
        """Drop what was read early: another version is about to count."""
        for block in list(self._coming):
            self._dropped(block)

    def here(self, block: int | None) -> bool:
        return block not in self._away

    def _begun(self, block: int) -> tuple[np.ndarray, list[Future[int]]]:
        group = self._blocks[block]
        whole = self._states.arena.buffer(4 * group.count).view(np.float32)
        return whole, self._states.parameters(group, whole)

    def _fill(self, block: int, whole: np.ndarray) -> None:
        group = self._blocks[block]
        for p, home in zip(group.params, self._homes.pop(block), strict=True):
            home.untyped_storage().resize_(p.numel() * p.element_size())
            p.data = home
        self._away.discard(block)
        fill(group, whole)

    def _dropped(self, block: int) -> None:
        _, reads = self._coming.pop(block)
        for read in reads:
            if not read.cancel():
                read.exception()  # it is of no interest any more, but its memory is


def _home(p: Any) -> Any:
    """Its memory, or where that is another library's (a file's, numpy's) memory of torch."""
    return p.data if p.untyped_storage().resizable() else torch.empty_like(p.data)
