"""Parameters of one group and type as one vector, cut into buckets of which each worker owns an equal slice.

Stages 0 to 2 cut a vector every so many elements, whatever lies there, and hold it whole. Stage 3 cuts it between
modules first, holds its own slices, and fills buckets only while their modules run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from holdall.errors import BadInput
from holdall.parts import partition
from holdall.parts.partition import Piece, Span

FROZEN = -1  # the group of parameters that no optimizer has; only stage 3 has a reason to cut these


class Live:
    """Bytes of short-lived buffers, now and at most. A buffer that comes back is kept and lent again."""

    def __init__(self) -> None:
        self.now, self.peak = 0, 0
        self.largest: dict[tuple[torch.dtype, Any], int] = {}  # numbers of a buffer of each type
        self._free: dict[tuple[torch.dtype, Any], list[Tensor]] = {}

    def count(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)

    def lend(self, count: int, like: Tensor) -> Tensor:
        """Room for `count` numbers, in a block as large as any bucket needs: blocks are kept from step to step."""
        key = like.dtype, like.device
        spare = self._free.setdefault(key, [])
        if spare:
            return spare.pop()[:count]
        block = torch.empty(max(count, self.largest[key]), dtype=like.dtype, device=like.device)
        self.count(block.nbytes)
        return block[:count]

    def back(self, lent: Tensor) -> None:
        assert lent._base is not None
        self._free[lent.dtype, lent.device].append(lent._base)

    def clear(self) -> None:
        for blocks in self._free.values():
            self.count(-sum(b.nbytes for b in blocks))
            blocks.clear()


@dataclass(eq=False)
class Vector:
    """Parameters of one group, type and device, laid end to end. flat: all of them, where all are held."""

    group: int
    params: list[nn.Parameter]
    names: list[str]
    flat: Tensor | None = None

    def __post_init__(self) -> None:
        self.shapes = [tuple(p.shape) for p in self.params]
        self.sizes = [p.numel() for p in self.params]
        self.count = sum(self.sizes)
        self.like = torch.empty(0, dtype=self.params[0].dtype, device=self.params[0].device)

    @property
    def dtype(self) -> str:
        return str(self.like.dtype).removeprefix("torch.")


@dataclass(eq=False)
class Bucket:
    """A span of a vector. slice: what the optimizer updates here, in float32 where weights are shorter; shard: the
    same in the weights' type, the same memory where it is no other type."""

    vector: Vector
    span: Span
    owners: int
    run: int = 0  # buckets of one run belong to the same modules
    full: Tensor | None = None  # stage 3: all of it, no memory behind it unless its modules run
    shard: Tensor | None = None
    slice: nn.Parameter | None = None
    room: Tensor | None = (
        None  # stages 2 and 3: where its gradient is from the start, in one block with others
    )
    grad: Tensor | None = None  # of the slice, in the weights' type
    filling: Tensor | None = None
    filled: int = 0
    seen: set[int] = field(default_factory=set)
    pieces: list[Piece] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = partition.pieces(self.vector.sizes, self.span)
        self.count = self.span[1] - self.span[0]
        self.padded = partition.padded(self.count, self.owners)
        self.each = self.padded // self.owners
        self.place = {p.tensor: p for p in self.pieces}

    @property
    def trained(self) -> bool:
        return self.vector.group != FROZEN

    def parts(self) -> list[Tensor]:
        """The slices of all owners in what is held whole."""
        if self.full is not None:
            return list(self.full.split(self.each))
        assert self.vector.flat is not None
        return list(self.vector.flat[self.span[0] : self.span[0] + self.padded].split(self.each))

    def owned(self, rank: int, whole: bool) -> Span:
        """Which elements of the vector this worker's slice has, without padding."""
        if whole:
            return self.span
        a, b = partition.share(self.count, self.owners, rank)
        return self.span[0] + a, self.span[0] + b


def vectors_of(model: nn.Module, optimizer: Any, frozen: bool) -> list[Vector]:
    """Parameters by group, type and device, in the module's order, tied ones once."""
    group_of = {p: i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    found: dict[tuple[Any, ...], tuple[list[nn.Parameter], list[str]]] = {}
    for name, p in model.named_parameters():
        group = group_of.pop(p, FROZEN)
        if group == FROZEN and not frozen:
            continue
        if p.is_sparse or not p.is_floating_point():
            raise BadInput(f"parameter {name}", str(p.dtype), "dense numbers with a fraction")
        params, names = found.setdefault((group, p.dtype, p.device), ([], []))
        params.append(p)
        names.append(name)
    if group_of:
        raise BadInput(
            "optimizer", f"{len(group_of)} parameters that are not the model's", "only the model's"
        )
    if not any(key[0] != FROZEN for key in found):
        raise BadInput("optimizer", "no parameters of the model", "some to train")
    return [Vector(key[0], params, names) for key, (params, names) in found.items()]


def fixed(vectors: list[Vector], capacity: int, owners: int) -> list[Bucket]:
    """Buckets of one size, whatever parameters they cut."""
    return [
        Bucket(v, span, owners)
        for v in vectors
        for span in partition.buckets(v.count, max(capacity, owners), owners)
    ]


def by_module(model: nn.Module, vectors: list[Vector], capacity: int, owners: int) -> list[Bucket]:
    """Buckets of runs of modules, which end where modules do: as many neighbours as fit, a larger one alone."""
    units = list(_units(model, capacity, set()))
    place = {p: (v, i) for v in vectors for i, p in enumerate(v.params)}
    found = []
    for run, (first, last) in enumerate(partition.runs([sum(p.numel() for p in u) for u in units], capacity)):
        held: dict[int, tuple[Vector, list[int]]] = {}
        for p in (p for u in units[first:last] for p in u if p in place):
            vector, at = place[p]
            held.setdefault(id(vector), (vector, []))[1].append(at)
        for vector, inside in held.values():
            begins = partition.offsets(vector.sizes)
            assert all(b == a + 1 for a, b in pairwise(inside)), "modules and vectors go in one order"
            begin, count = begins[inside[0]], begins[inside[-1] + 1] - begins[inside[0]]
            found += [
                Bucket(vector, (begin + a, begin + b), owners, run)
                for a, b in partition.buckets(count, max(capacity, owners), owners)
            ]
    return found


def _units(module: nn.Module, capacity: int, seen: set[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters that are needed together: those of a module that fits, else its own and then its children's."""
    inside = [p for p in module.parameters() if p not in seen]
    if atomic(module) or sum(p.numel() for p in inside) <= capacity:
        seen.update(inside)
        if inside:
            yield inside
        return
    own = [p for p in module.parameters(recurse=False) if p not in seen]
    seen.update(own)
    if own:
        yield own
    for child in module.children():
        yield from _units(child, capacity, seen)


def atomic(module: nn.Module) -> bool:
    """Whether a module uses parameters of its children without calling them."""
    return isinstance(module, nn.MultiheadAttention)
