"""The keys and values of all slots in virtual memory, mapped and unmapped a block at a time.

A block is one page group in each tensor: what a slot needs next, in all layers, for keys and values.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from holdall.errors import BadInput
from holdall.kv.virtual import Region, memory_file, resident
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="kv")

_ITEMS = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What one token takes in a model: `dim` numbers for keys and as many for values, in each head of each layer."""

    layers: int
    heads: int
    dim: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.dim) < 1 or self.dtype not in _ITEMS:
            raise BadInput("geometry", repr(self), f"sizes of at least 1, and one of {', '.join(_ITEMS)}")

    @classmethod
    def of(cls, config: Any, dtype: str = "float32") -> Self:
        """From a transformers config."""
        told = config.get_text_config()
        heads = getattr(told, "num_key_value_heads", None) or told.num_attention_heads
        dim = getattr(told, "head_dim", None) or told.hidden_size // told.num_attention_heads
        return cls(layers=told.num_hidden_layers, heads=heads, dim=dim, dtype=dtype)

    @property
    def row(self) -> int:
        """Bytes of a token's keys in one layer."""
        return self.heads * self.dim * _ITEMS[self.dtype]

    @property
    def token(self) -> int:
        """Bytes of a token in all layers."""
        return 2 * self.layers * self.row


@dataclass(eq=False)
class Prefix:
    """The beginning of a context, in a memory file: its whole blocks are shown in many slots, the rest is copied."""

    file: int
    tokens: int
    blocks: int  # in the file
    whole: int  # of them, those that are full
    users: int = 0
    open: bool = True  # until nobody will ask for it any more


class Pages:
    """Tensors [B, S, H, D] of keys and of values for each layer, and the blocks behind them.

    sliced: all layers of a slot stand in one tensor [B, S, L, H, D] (one for keys, one for values), so that a block
    is 2 page groups and not 2 L; each layer's tensor is then a view with strides.
    """

    def __init__(self, geometry: Geometry, slots: int, length: int, page: int, sliced: bool):
        self.geometry, self.page, self.length = geometry, page, length
        layers = geometry.layers if sliced else 1
        self.row = geometry.row * layers  # bytes of a token in one region
        self.most = -(-self.row * length // page)  # blocks of a slot
        self.stride = self.most * page  # bytes of a slot in one region
        count = 2 if sliced else 2 * geometry.layers
        self.regions = [Region(slots * self.stride, page) for _ in range(count)]
        self.block = count * page
        dtype = getattr(torch, geometry.dtype)
        flat = [r.tensor(dtype) for r in self.regions]
        item, width = _ITEMS[geometry.dtype], geometry.heads * geometry.dim
        shape = (slots, length, geometry.heads, geometry.dim)
        strides = (self.stride // item, self.row // item, geometry.dim, 1)

        def layer(half: int, i: int) -> torch.Tensor:
            of = flat[half] if sliced else flat[2 * i + half]
            return of.as_strided(shape, strides, i * width if sliced else 0)

        self.keys = [layer(0, i) for i in range(geometry.layers)]
        self.values = [layer(1, i) for i in range(geometry.layers)]

    def need(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens * self.row // self.page)

    def grow(self, slot: int, first: int, last: int) -> None:
        """Map the blocks [first, last) of a slot; all of them, or none where the kernel has no more."""
        self._everywhere(slot, first, last, Region.map, Region.unmap)

    def shrink(self, slot: int, first: int, last: int) -> None:
        """Give the blocks [first, last) of a slot back."""
        self._everywhere(slot, first, last, Region.unmap)

    def hide(self, slot: int, first: int, last: int) -> None:
        """The blocks [first, last) of a slot no longer show those of a prefix."""
        self._everywhere(slot, first, last, Region.hide)

    def show(self, slot: int, prefix: Prefix, keep: bool = False) -> None:
        """The prefix's whole blocks in place of a slot's first ones; where that fails, nothing (`keep`: a copy)."""
        at, size = slot * self.stride, prefix.whole * self.page
        for i, region in enumerate(self.regions if size else []):
            try:
                region.show(at, size, prefix.file, i * prefix.blocks * self.page)
            except OSError:
                for j, done in enumerate(self.regions[:i]):
                    done.hide(at, size)
                    if keep:
                        done.map(at, size)
                        os.preadv(prefix.file, [done.read(at, size)], j * prefix.blocks * self.page)
                raise

    def keep(self, slot: int, tokens: int) -> Prefix:
        """The first tokens of a slot, copied into a memory file."""
        blocks, nbytes = self.need(tokens), tokens * self.row
        prefix = Prefix(
            memory_file(len(self.regions) * blocks * self.page), tokens, blocks, nbytes // self.page
        )
        try:
            for i, region in enumerate(self.regions):
                _write(prefix.file, region.read(slot * self.stride, nbytes), i * blocks * self.page)
        except OSError:
            os.close(prefix.file)
            raise
        return prefix

    def copy_rest(self, slot: int, prefix: Prefix) -> None:
        """What of a prefix stands in no whole block, into a slot's own memory."""
        start, end = prefix.whole * self.page, prefix.tokens * self.row
        for i, region in enumerate(self.regions):
            into = region.read(slot * self.stride + start, end - start)
            os.preadv(prefix.file, [into], i * prefix.blocks * self.page + start)

    def own(self, slot: int, prefix: Prefix, first: int, last: int) -> None:
        """The blocks [first, last) of a slot, which show a prefix, as copies of its own; all of them or none."""
        at, size = slot * self.stride + first * self.page, (last - first) * self.page
        for i, region in enumerate(self.regions):
            held = bytes(region.read(at, size))
            try:
                region.hide(at, size)
                region.map(at, size)
            except OSError:
                for j, changed in enumerate(self.regions[: i + 1]):
                    changed.show(at, size, prefix.file, (j * prefix.blocks + first) * self.page)
                raise
            region.read(at, size)[:] = held

    def resident(self, prefixes: list[Prefix]) -> int:
        """Bytes that the kernel has behind all this now, measured."""
        return resident(self.regions, [p.file for p in prefixes])

    def close(self) -> None:
        for region in self.regions:
            region.close()
        self.keys, self.values = [], []

    def _everywhere(
        self,
        slot: int,
        first: int,
        last: int,
        act: Callable[[Region, int, int], None],
        undo: Callable[[Region, int, int], None] | None = None,
    ) -> None:
        if last <= first:
            return
        at, size = slot * self.stride + first * self.page, (last - first) * self.page
        for i, region in enumerate(self.regions):
            try:
                act(region, at, size)
            except OSError:
                for done in self.regions[: i + 1] if undo else []:
                    undo(done, at, size)  # type: ignore[misc]
                raise


def _write(file: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
