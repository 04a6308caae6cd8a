"""The code books as a torch module: balanced or nearest codes of a batch, and gradients straight through them."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor, nn

from holdall.parts.transport import capped, shares
from holdall.vectors.repconc_tables import Tables

_BLOCK = 4096  # vectors whose distances to all entries are held at once


class Quantiser(nn.Module):
    """Product codes: entries [M, K, D / M] that learn, behind a rotation [D, D] that does not."""

    rotation: Tensor

    def __init__(self, tables: Tables):
        super().__init__()
        groups, _, _, wide = tables.entries.shape
        self.entries = nn.Parameter(torch.tensor(tables.entries[:, 0]))
        turn = np.eye(groups * wide, dtype=np.float32) if tables.rotation is None else tables.rotation
        self.register_buffer("rotation", torch.tensor(turn))

    def rotated(self, x: Tensor) -> Tensor:
        return x @ self.rotation.T

    def away(self, turned: Tensor) -> Tensor:
        """Squared distances [M, B, K] of rotated vectors [B, D] to all entries, without gradients."""
        parts, _, wide = self.entries.shape
        cut = turned.detach().reshape(-1, parts, wide).transpose(0, 1)
        books = self.entries.detach()
        squares = cut.square().sum(-1, keepdim=True) + books.square().sum(-1)[:, None]
        return torch.baddbmm(squares, cut, books.mT, alpha=-2)

    def nearest(self, turned: Tensor) -> Tensor:
        """int64 [B, M]: what searching uses."""
        blocks = [self.away(block).argmin(-1).T for block in turned.split(_BLOCK)]
        return torch.cat(blocks) if blocks else torch.zeros((0, len(self.entries)), dtype=torch.long)

    def values(self, codes: Tensor) -> Tensor:
        """[..., D] of codes [..., M]; gradients go to the entries."""
        parts = torch.arange(codes.shape[-1], device=codes.device)
        return self.entries[parts, codes].flatten(-2)

    def through(self, turned: Tensor, codes: Tensor) -> Tensor:
        """The values of codes [B, M]; the gradient goes to the entries, and the same to the rotated vectors."""
        return self.values(codes) + turned - turned.detach()

    def tables(self) -> Tables:
        entries = self.entries.detach().cpu().numpy()[:, None].astype(np.float32)
        return Tables(np.ascontiguousarray(entries), self.rotation.cpu().numpy())


class Balancer:
    """Balanced codes of a batch; where it is small, past batches are balanced along with it.

    smoothing, rounds: of `transport.shares`. room: how many times its share of a batch a code may take. least: vectors
    for each code, below which a batch is filled up with earlier ones.
    """

    def __init__(self, smoothing: float, rounds: int, room: float, least: int):
        self.smoothing, self.rounds, self.room, self.least = smoothing, rounds, room, least
        self._past: deque[Tensor] = deque()

    def __call__(self, quantiser: Quantiser, turned: Tensor) -> Tensor:
        """int64 [B, M]."""
        entries = quantiser.entries.shape[1]
        together = torch.cat([turned.detach(), *self._past])
        costs = quantiser.away(together)
        found = shares(costs, self.smoothing, self.rounds, slack=0.01)
        most = int(self.room * len(together) / entries)
        most = max(most, -(-len(together) // entries))
        codes = capped(found, most).T[: len(turned)]
        self._keep(turned.detach(), self.least * entries - len(turned))
        return codes

    def _keep(self, turned: Tensor, wanted: int) -> None:
        self._past.appendleft(turned)
        while len(self._past) > 1 and sum(map(len, list(self._past)[:-1])) >= wanted:
            self._past.pop()
        if wanted <= 0:
            self._past.clear()
