"""Layouts: who holds what of a model that is split by tensor, pipeline, data and ZeRO parallelism.

A rank's part of a tensor is a range of the row-major elements of one box: the box that tensor parallelism left it, and
the range that ZeRO left it of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdall.checkpoints import boxes
from holdall.checkpoints.boxes import Box
from holdall.errors import BadInput
from holdall.parts import partition

# Which axis of a weight tensor parallelism splits, by what its name ends in; others are on every rank of a group.
TRANSFORMER = (
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|c_fc|c_attn)\.(weight|bias)$", 0),
    (r"(o_proj|down_proj|c_proj)\.weight$", 1),
    (r"(embed_tokens|lm_head|wte)\.weight$", 0),
)
Shapes = Mapping[str, Sequence[int]]


class Held(NamedTuple):
    """A rank's part of a tensor: elements [start, stop) of `base`, a box of it, in row-major order."""

    name: str
    base: Box
    start: int
    stop: int

    def boxes(self) -> list[Box]:
        found = boxes.of_range(self.base.lengths, self.start, self.stop)
        return [b.moved(self.base.offset) for b in found]

    def cut(self, full: Any) -> Any:
        """The part of a full tensor: the box where that is all of it, else a vector."""
        part = full[self.base.slices()]
        whole = self.start == 0 and self.stop == self.base.elements
        return part if whole else part.reshape(-1)[self.start : self.stop]


@dataclass(frozen=True)
class Layout:
    """Ranks of neighbouring numbers share a tensor (tp), then data groups follow (dp), then stages (pp).

    zero: 0 (all states on every data rank), 1 and 2 (states of the optimizer flat and cut among data ranks), 3
    (parameters, too). split: (pattern of names, axis) that tensor parallelism cuts. tied: tensors that the first and
    the last stage both hold.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 0
    split: tuple[tuple[str, int], ...] = TRANSFORMER
    tied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.tp, self.pp, self.dp) < 1 or self.zero not in (0, 1, 2, 3):
            raise BadInput("layout", str(self), "tp, pp and dp of at least 1, zero from 0 to 3")

    @property
    def world(self) -> int:
        return self.tp * self.pp * self.dp

    def place(self, rank: int) -> tuple[int, int, int]:
        """(tensor, data, stage) of a rank."""
        return rank % self.tp, rank // self.tp % self.dp, rank // (self.tp * self.dp)

    def stages(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Which stages hold a tensor: layers in equal runs, what comes before them first, what comes after last."""
        names = list(names)
        layers = [_layer(n) for n in names]
        count = 1 + max((n for n in layers if n is not None), default=0)
        seen, found = False, {}
        for name, layer in zip(names, layers, strict=True):
            if name in self.tied:
                found[name] = tuple(sorted({0, self.pp - 1}))
            elif layer is not None:
                found[name], seen = (layer * self.pp // count,), True
            else:
                found[name] = (self.pp - 1 if seen else 0,)
        return found

    def axis(self, name: str, shape: Sequence[int]) -> int | None:
        for pattern, axis in self.split:
            if re.search(pattern, name) and axis < len(shape):
                return axis
        return None

    def held(self, rank: int, shapes: Shapes, kind: str = "model") -> list[Held]:
        """What the rank holds of tensors of the model, or of states of its optimizer (kind "optim")."""
        tensor, data, stage = self.place(rank)
        stages = self.stages(shapes)
        parts = []
        for name, shape in shapes.items():
            if stage in stages[name]:
                base = boxes.whole(shape)
                axis = self.axis(name, shape)
                if axis is not None and self.tp > 1:
                    low, high = (shape[axis] * t // self.tp for t in (tensor, tensor + 1))
                    offset, lengths = list(base.offset), list(base.lengths)
                    offset[axis], lengths[axis] = low, high - low
                    base = Box(tuple(offset), tuple(lengths))
                parts.append(Held(name, base, 0, base.elements))
        flat = self.zero == 3 or (self.zero > 0 and kind == "optim")
        return _flat(parts, self.dp, data) if flat else [p for p in parts if p.stop]


def _flat(parts: list[Held], owners: int, owner: int) -> list[Held]:
    """Of all parts end to end, the slice of one owner."""
    sizes = [p.stop for p in parts]
    span = partition.share(sum(sizes), owners, owner)
    return [
        Held(parts[p.tensor].name, parts[p.tensor].base, p.start, p.stop)
        for p in partition.pieces(sizes, span)
    ]


def _layer(name: str) -> int | None:
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None
