"""What a rank holds of a tensor: all of it, a box (a DTensor's shard), or a range of it flattened (ZeRO's, FSDP's)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from holdall.checkpoints import boxes
from holdall.checkpoints.boxes import Box
from holdall.checkpoints.layouts import Held
from holdall.errors import BadInput
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


class Piece:
    """A rank's part of a tensor of `shape`: elements [start, start + n) of the box at `offset` with `lengths`.

        Piece(shard, (4096, 1024), offset=(2048, 0))          # rows 2048 to 4095, in the shard's own shape
        Piece(flat, (4096, 1024), start=700)                  # elements 700 to 700 + n of the flattened tensor
        Piece(flat, (4096, 1024), (2048, 0), (2048, 1024), 5) # a range of a shard, as ZeRO over tensor parallelism

    Put it where the tensor would be in a state; filled in place by `load(like=...)`.
    """

    def __init__(
        self,
        data: Any,
        shape: Sequence[int],
        offset: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        start: int | None = None,
    ):
        self.data, self.shape = data.detach(), tuple(shape)
        if lengths is None:
            lengths = self.shape if offset is None and start is not None else tuple(data.shape)
        self.base = Box(tuple(offset) if offset is not None else (0,) * len(self.shape), tuple(lengths))
        self.start, self.stop = start or 0, (start or 0) + data.numel()
        inside = len(self.base.lengths) == len(self.base.offset) == len(self.shape) and all(
            o >= 0 and o + n <= s for o, n, s in zip(*self.base, self.shape, strict=True)
        )
        if not inside or self.stop > self.base.elements or self.start < 0:
            got = f"elements {self.start} to {self.stop} of {self.base}, shape {self.shape}"
            raise BadInput("piece", got, "a part of the tensor")

    @classmethod
    def of(cls, held: Held, full: Any) -> Piece:
        """The part of a full tensor that a rank of a layout holds."""
        part = held.cut(full).clone()
        return cls(part, full.shape, held.base.offset, held.base.lengths, held.start)

    def boxes(self) -> list[Box]:
        return [b.moved(self.base.offset) for b in boxes.of_range(self.base.lengths, self.start, self.stop)]

    def view(self, box: Box) -> Any:
        """The elements of a box that lies in this part, without a copy where the data lies in order."""
        if self.data.numel() == self.base.elements and tuple(self.data.shape) == self.base.lengths:
            return self.data[box.slices(self.base)]
        flat = self.data.reshape(-1)
        first, _, strides = boxes.span(box, self.base)
        return flat.as_strided(box.lengths, strides, flat.storage_offset() + first - self.start)

    def __repr__(self) -> str:
        return f"Piece({self.start} to {self.stop} of {self.base}, shape {self.shape})"


def piece(leaf: Any, name: str = "tensor") -> Piece:
    """Any tensor of a state as a part; a plain one is all of itself."""
    if isinstance(leaf, Piece):
        return leaf
    chunks = getattr(leaf, "__create_chunk_list__", None)
    if chunks is None:
        return Piece(leaf, leaf.shape)
    if any(p.is_partial() for p in leaf.placements):
        raise BadInput(
            name, f"a DTensor with placements {leaf.placements}", "sums that were reduced before saving"
        )
    local, found = leaf.to_local(), chunks()
    if len(found) != 1 or math.prod(found[0].sizes) != local.numel():
        got = f"a DTensor in {len(found)} chunks on this rank"
        raise BadInput(name, got, "one box of the tensor on each rank")
    return Piece(local, leaf.shape, found[0].offsets, found[0].sizes)


def is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Piece | torch.Tensor)
