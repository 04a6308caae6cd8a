"""What a worker holds, counted: live tensors by class, activations as they are kept, batches in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from holdall.errors import BudgetError
from holdall.training.zero_slices import Slices


def live(slices: Slices) -> dict[str, int]:
    """Bytes by class, by storages, each once. What stage 3 has gathered is a buffer."""
    seen = {b.full.untyped_storage()._cdata for b in slices.buckets if b.full is not None}

    def once(tensors: Iterable[Any]) -> int:
        size = 0
        for t in tensors:
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in seen:
                seen.add(t.untyped_storage()._cdata)
                size += t.untyped_storage().nbytes()
        return size

    params = list(slices.model.parameters())
    held = {"params": once(b.shard for b in slices.buckets)}
    held["params"] += once(p for p in params if p not in slices.reduce.of)
    held["grads"] = once(p.grad for p in params)
    held["grads"] += once(b.grad if b.room is None else b.room for b in slices.buckets)
    held["states"] = once(b.slice for b in slices.buckets)
    held["states"] += once(v for state in slices.inner.state.values() for v in state.values())
    return {**held, "buffers": slices.live.now}


def within(limit: int | None, need: Mapping[str, int], slices: Slices) -> AbstractContextManager[Any]:
    """Within a budget, activations are counted as autograd keeps them; too many end a step before its backward."""
    if limit is None:
        return nullcontext()
    ours = {p.untyped_storage()._cdata for p in slices.model.parameters()}
    ours |= {b.full.untyped_storage()._cdata for b in slices.buckets if b.full is not None}
    seen: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        place = t.untyped_storage()
        if place._cdata not in ours and place._cdata not in seen:
            seen[place._cdata] = place.nbytes()
            least = sum(need.values()) + sum(seen.values())
            if least > limit:
                why = (
                    "activations of this batch so far: a smaller one, micro-batches or checkpoints need less"
                )
                raise BudgetError(limit, least, who="training.zero", why=why)
        return t

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)


def parts(batch: Any, micro: int) -> Iterator[tuple[Any, float]]:
    """A batch in so many parts of about the same size, and each part's share of it."""
    if micro == 1:
        yield batch, 1.0
        return
    tensors = list(batch.values() if isinstance(batch, dict) else batch)
    rows = len(tensors[0])
    cut = [t.tensor_split(min(micro, rows)) for t in tensors]
    for pieces in zip(*cut, strict=True):
        part: Any = dict(zip(batch, pieces, strict=True)) if isinstance(batch, dict) else tuple(pieces)
        yield part, len(pieces[0]) / rows
