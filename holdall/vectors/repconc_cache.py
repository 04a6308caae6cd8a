"""Batches of thousands in the memory of a few: embeddings, their gradients, then the encoder chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdall.errors import BadInput


def size(items: Any) -> int:
    """How many queries or documents these are."""
    return len(next(iter(items.values()))) if isinstance(items, Mapping) else len(items)


def some(items: Any, rows: Tensor) -> Any:
    """These rows of a tensor, of each tensor of a dict, or of a list."""
    if isinstance(items, Mapping):
        return {name: part[rows] for name, part in items.items()}
    return items[rows] if isinstance(items, Tensor) else [items[i] for i in rows.tolist()]


def encoded(encoder: nn.Module, batch: Any) -> Tensor:
    found = encoder(**batch) if isinstance(batch, Mapping) else encoder(batch)
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise BadInput(
            "encoder", f"{type(found).__name__}", "a module that gives a vector for each of a batch"
        )
    return found.float()


class Chunk:
    """Some rows through an encoder, twice: once without gradients, and once with those that arrived. What is random in
    the encoder (dropout) is the same both times."""

    def __init__(self, encoder: nn.Module, items: Any, rows: Tensor):
        self.encoder, self.items, self.rows = encoder, items, rows
        self.chance = torch.get_rng_state()
        with torch.no_grad():
            self.found = encoded(encoder, some(items, rows))

    def again(self, gradient: Tensor) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.chance)
            encoded(self.encoder, some(self.items, self.rows)).backward(gradient)


class Cached:
    """Embeddings of rows, a leaf with gradients; `back` hands these on to the encoder. chunk: rows held at once."""

    def __init__(self, encoder: nn.Module, items: Any, rows: Tensor, chunk: int):
        self.chunks = [Chunk(encoder, items, part) for part in rows.split(chunk)]
        self.found = torch.cat([c.found for c in self.chunks]).requires_grad_()

    def back(self) -> None:
        if self.found.grad is None:
            return
        start = 0
        for part in self.chunks:
            part.again(self.found.grad[start : start + len(part.rows)])
            start += len(part.rows)


def embedded(encoder: nn.Module, items: Any, chunk: int = 512) -> Tensor:
    """All of them, without gradients, as at inference."""
    was = encoder.training
    encoder.eval()
    with torch.no_grad():
        parts = [encoded(encoder, some(items, rows)) for rows in batches(size(items), chunk)]
    encoder.train(was)
    return torch.cat(parts)


def batches(count: int, each: int, draw: torch.Generator | None = None) -> Iterator[Tensor]:
    order = torch.arange(count) if draw is None else torch.randperm(count, generator=draw)
    yield from order.split(each)
