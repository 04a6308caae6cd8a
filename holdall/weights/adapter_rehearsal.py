"""A small task for adapters: a transformer of image patches that knows the digits 0 to 4 shall learn 5 to 9."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from holdall.weights.training import digits, learn

_FIRST = 5  # classes that it knows


class Attention(torch.nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(width, width) for _ in range(3))
        self.out = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class Block(torch.nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = torch.nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchNet(torch.nn.Module):
    """Images [B, 1, 8, 8] as 16 patches, blocks, mean, head."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 2, classes: int = _FIRST):
        super().__init__()
        self.patches = torch.nn.Linear(4, width)
        self.places = torch.nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3)  # [B, 16, 4]
        x = self.patches(patches) + self.places
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(self.norm(x.mean(1)))
        return out


def classes(known: bool, batch: int = 64) -> tuple[list[Any], list[Any]]:
    """Training and held-out batches of the digits that are known, or of the others, whose labels begin at 0."""
    parts = []
    for batches in digits(batch):
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        mine = (targets < _FIRST) == known
        labels = targets[mine] - (0 if known else _FIRST)
        parts.append(list(zip(images[mine].split(batch), labels.split(batch), strict=True)))
    return parts[0], parts[1]


def pretrained(seed: int = 0, epochs: int = 20, **shape: int) -> PatchNet:
    """It knows the first half of the digits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = PatchNet(**shape)
        learn(module, classes(True)[0], torch.optim.AdamW(module.parameters(), lr=3e-3), epochs)
    return module.eval()


@cache
def _known() -> PatchNet:
    return pretrained(epochs=8)


def rehearsal() -> tuple[torch.nn.Module, list[Any], list[Any]]:
    """(a copy of it, training batches of the other half, held-out ones)."""
    return copy.deepcopy(_known()), *classes(False)
