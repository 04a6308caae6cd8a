"""Where saved numbers are: as they were, in a part of them, or as a table of different rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import xxhash
from numba import njit

from holdall.errors import BadInput
from holdall.weights.dkm import _flat, unique
from holdall.weights.replays import Step, laid

if TYPE_CHECKING:
    from holdall.weights.saved_tensors import Saving

_MIDDLE = 1 << 15  # index lists are signed


class Source(Protocol):
    def flat(self) -> torch.Tensor:
        """The numbers as they lay in memory."""


class Piece:
    """Numbers, or this learner's part of them where several hold the same.

    free: somebody else holds them anyway.
    """

    def __init__(self, numbers: torch.Tensor, saving: Saving, *, share: bool = True, free: bool = False):
        self.group = saving.group if share and not free else None
        self.kept = numbers
        if self.group is not None:
            raw, parts, rank = numbers.contiguous().view(torch.uint8), self.group.size(), self.group.rank()
            self.each, self.count, self.dtype = -(-len(raw) // parts), len(raw), numbers.dtype
            self.kept = raw[rank * self.each : (rank + 1) * self.each].clone()
        self.version = self.kept._version
        saving.count(self, 0 if free else self.kept.nbytes)

    def flat(self) -> torch.Tensor:
        if self.kept._version != self.version:
            raise BadInput("saved weights", "changed between forward and backward", "as they were")
        if self.group is None:
            return self.kept
        mine = torch.zeros(self.each, dtype=torch.uint8)
        mine[: len(self.kept)] = self.kept
        parts = [torch.zeros_like(mine) for _ in range(self.group.size())]
        torch.distributed.all_gather(parts, mine, group=self.group)
        return torch.cat(parts)[: self.count].view(self.dtype)


class Index:
    """Which of the different values each weight has: 16 bits each, once for all maps of a weight."""

    def __init__(self, w: torch.Tensor, saving: Saving):
        pattern = w.detach().contiguous().view(torch.int16)
        agreed(pattern, saving.group)
        _, _, which = unique(pattern, w.dtype)
        places = np.zeros(1 << 16, np.int64)
        places[which] = np.arange(len(which))
        found, first = np.zeros(pattern.numel(), np.int16), np.zeros(len(which), np.int64)
        _find(_flat(pattern), places, found, first)
        self.count, self.first = len(found), torch.from_numpy(first)  # of each value, where it is met first
        self._whole: torch.Tensor | None = torch.from_numpy(found)
        self._piece = Piece(self._whole, saving)

    def release(self) -> None:
        """The forward pass is over."""
        self._whole = None

    def rows(self) -> torch.Tensor:
        if self._whole is None:
            self._whole = self._piece.flat()  # gathered once on the way back; it goes with the last map
        return self._whole.int() + _MIDDLE


def agreed(pattern: torch.Tensor, group: Any) -> None:
    """BadInput where learners do not hold the same: their parts would not be of one whole."""
    if group is None:
        return
    digest = xxhash.xxh3_64_intdigest(_flat(pattern).tobytes()) >> 1
    told = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    torch.distributed.all_gather(told, torch.tensor([digest]), group=group)
    if any(int(t) != digest for t in told):
        raise BadInput("weights of the learners", "not all the same", "the same in all that share them")


class Rows:
    """A map by its different rows."""

    def __init__(self, table: torch.Tensor, index: Index, saving: Saving):
        self.columns, self.index = table.shape[1], index
        self.table = Piece(table.reshape(-1), saving)

    def flat(self) -> torch.Tensor:
        table = self.table.flat().view(-1, self.columns)
        return table.index_select(0, self.index.rows()).reshape(-1)


class Kept:
    """What stands for a saved tensor: where its numbers are, how they lie, and what is to be done to them.

    begin: how they lay before the steps; layout: how the tensor lies.
    """

    def __init__(
        self, source: Source, layout: tuple[Any, Any], begin: Any = None, steps: tuple[Step, ...] = ()
    ):
        self.source, self.layout, self.begin, self.steps = source, layout, begin or layout, steps

    def tensor(self) -> torch.Tensor:
        found = self.source.flat().as_strided(*self.begin)
        for step in self.steps:
            found = step(found)
        return laid(found, self.layout)


@njit(nogil=True, cache=True)
def _find(pattern, places, found, first):  # type: ignore[no-untyped-def]
    for i in range(pattern.size - 1, -1, -1):
        place = places[pattern[i]]
        found[i] = place - 32768
        first[place] = i
