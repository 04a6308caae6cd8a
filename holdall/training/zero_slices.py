"""The slices of one worker: gradients come in bucket by bucket, each slice is updated, weights go out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from holdall.parts import partition
from holdall.training.zero_buckets import Live, by_module, fixed, vectors_of
from holdall.training.zero_optimizer import Inner
from holdall.training.zero_reduce import Reduce
from holdall.training.zero_rooms import Room
from holdall.training.zero_wire import Pending, Wire


class Slices:
    """What a worker holds of a model. `lay` says what it would hold; `hold` does it."""

    def __init__(self, model: nn.Module, optimizer: Any, stage: int, capacity: int, wire: Wire):
        self.stage, self.wire, self.live = stage, wire, Live()
        self.model, self.inner = model, Inner(optimizer)
        self.vectors = vectors_of(model, optimizer, frozen=stage == 3)
        self.buckets = (
            by_module(model, self.vectors, capacity, wire.size)
            if stage == 3
            else fixed(self.vectors, capacity, wire.size)
        )
        self.trained = [b for b in self.buckets if b.trained]
        for b in self.buckets:
            key = b.vector.like.dtype, b.vector.like.device
            self.live.largest[key] = max(self.live.largest.get(key, 0), b.padded)
        runs = groupby(self.buckets if stage == 3 else (), key=lambda b: (b.run, id(b.vector)))
        self.rooms = [Room(list(held), wire, self.live) for _, held in runs]
        self.reduce = Reduce(self.vectors, self.buckets, stage, wire, self.live)

    # what it holds

    def need(self, prefetch: int) -> dict[str, int]:
        """Bytes by class that a step will hold at most, activations aside."""
        wide, owned = self.stage == 0, self.wire.size if self.stage == 0 else 1
        item = {b: b.vector.like.element_size() for b in self.buckets}
        weights = sum(item[b] * (b.each if self.stage == 3 else b.padded) for b in self.buckets)
        slices = [(b, b.padded if wide else b.each) for b in self.trained]
        states = sum(n * (self.inner.each + (4 if item[b] < 4 else 0)) for b, n in slices)
        reduced = sum(item[b] * n for b, n in slices)
        grads = sum(item[b] * b.count for b in self.trained) if self.stage < 2 else reduced
        largest = max(item[b] * b.padded for b in self.trained)
        buffers = largest * (3 if self.wire.size > 1 else 2)
        buffers += max(item[b] * owned * b.each for b in self.trained)  # one gradient as it is reduced
        if self.stage >= 2:  # a gradient as autograd makes it, before it goes into its bucket
            buffers += max(p.nbytes for b in self.trained for p in b.vector.params)
        if self.stage == 3:
            buffers += sum(sorted(self.gathered().values())[-(2 + prefetch) :])
        return {"params": weights, "grads": grads, "states": int(states), "buffers": buffers}

    def gathered(self) -> dict[int, int]:
        """Bytes of each run of modules, when its parameters are there."""
        found: dict[int, int] = {}
        for b in self.buckets:
            found[b.run] = found.get(b.run, 0) + b.padded * b.vector.like.element_size()
        return found

    @torch.no_grad()
    def hold(self) -> None:
        """Take the module's parameters: into vectors, or into slices. All workers start from the first one's."""
        if self.stage < 3:
            self._flatten()
        for room in self.rooms:
            room.cut()
        for b in self.buckets:
            if self.stage < 3:
                parts = b.parts()
                begin, whole = b.span[0], b.vector.flat
                assert whole is not None
                self.wire.send_first(whole[begin : begin + b.padded])
                b.shard = whole[begin : begin + b.padded] if self.stage == 0 else parts[self.wire.rank]
            assert b.shard is not None
            if b.trained:
                b.slice = nn.Parameter(b.shard.float() if b.shard.element_size() < 4 else b.shard)
        if self.stage >= 2:
            for vector in self.vectors:
                mine = [b for b in self.trained if b.vector is vector]
                block = vector.like.new_zeros(sum(b.each for b in mine))  # one block: nothing to fragment
                for b, part in zip(mine, block.split([b.each for b in mine]) if mine else (), strict=True):
                    b.room = part

    def _flatten(self) -> None:
        for vector in self.vectors:
            spans = [b.padded for b in self.buckets if b.vector is vector]
            vector.flat = vector.like.new_zeros(sum(spans))
            for p, view in zip(vector.params, partition.views(vector.flat, vector.shapes), strict=True):
                p.data = view.copy_(p.data)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Of all gradients together, each number once: that of its owner."""
        held = [b.grad for b in self.trained if b.grad is not None]
        wide = [torch.promote_types(g.dtype, torch.float32) for g in held]
        squares = [
            torch.linalg.vector_norm(g, dtype=t).double() ** 2 for g, t in zip(held, wide, strict=True)
        ]
        total = torch.stack(squares).sum().reshape(1) if squares else torch.zeros(1, dtype=torch.float64)
        return (total if self.stage == 0 else self.wire.sum(total))[0].sqrt()

    def scale(self, factor: float) -> None:
        for b in self.trained:
            if b.grad is not None:
                b.grad.mul_(factor)

    @torch.no_grad()
    def update(self) -> None:
        """Each slice by its gradient; then whole weights on all workers, where these are held whole."""
        under_way: Pending | None = None
        for b in self.trained:
            if b.grad is None:
                continue
            assert b.slice is not None and b.shard is not None
            self.inner.step(b.slice, b.grad.to(b.slice.dtype), b.vector.group)
            b.grad = None
            if b.slice.dtype != b.shard.dtype:
                b.shard.copy_(b.slice)
            if self.stage in (1, 2):
                if under_way is not None:
                    under_way.wait()
                under_way = self.wire.gather(b.shard, b.parts())
        if under_way is not None:
            under_way.wait()

    def spread(self) -> None:
        """Stages 1 and 2: whole weights on all workers, from their owners."""
        for b in self.trained if self.stage in (1, 2) else ():
            assert b.shard is not None
            self.wire.gather(b.shard, b.parts()).wait()

    def forget(self) -> None:
        """Drop gradients and what is half reduced: a step that failed leaves nothing behind."""
        self.reduce.forget()
        self.drop(p for v in self.vectors for p in v.params)
        self.live.clear()

    @staticmethod
    def drop(params: Iterable[nn.Parameter]) -> None:
        for p in params:
            p.grad = None
