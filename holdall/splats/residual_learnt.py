"""Books of residuals that learn by gradients, with the scene: what is drawn is what they say, so pictures teach them.

books = LearntBooks(x, stages=4, codes=64)      # x [N, D], a tensor
taken = books(x)                                # what x is taken for; gradients reach x and the entries
books.step()                                    # after the way back
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdall.splats.residual import Books


class LearntBooks:
    """tables [stages, codes, D], a leaf."""

    def __init__(self, x: Tensor, stages: int, codes: int, seed: int = 0, rate: float = 1e-4):
        made = Books.learnt(x.detach().numpy(), stages, codes, seed)
        self.tables = torch.from_numpy(made.tables).requires_grad_(True)
        self.missed = torch.zeros(())  # of the last call: how far off it was, squared
        self._teach = torch.optim.Adam([self.tables], lr=rate)

    def __call__(self, x: Tensor) -> Tensor:
        codes = torch.from_numpy(self.books().encode(x.detach().numpy()).astype("int64"))
        taken = sum((table[c] for table, c in zip(self.tables, codes.T, strict=True)), torch.zeros(()))
        self.missed = (taken - x.detach()).square().mean()
        return taken + (x - x.detach())

    def step(self) -> None:
        self._teach.step()
        self._teach.zero_grad()

    def books(self) -> Books:
        return Books(self.tables.detach().numpy())
