"""Attention over slots: a transformers cache whose tokens go into mapped tensors and are attended to where they stand.

One pass is a piece of one slot's prompt and the next token of several others, one after the other as if they were one
text; each has its own position. Every slot is attended to alone, over exactly the tokens that it has: what it gets does
not depend on its neighbours, and nothing beyond a slot's end is ever read. The queries come through the room's hook
(`holdall.kv.hook`). Next tokens go through `slot_attention`, all slots in one call, where its kernels take the model's
shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from holdall.errors import BadInput
from holdall.kv.entries import Entries
from holdall.kv.hook import Step
from holdall.kv.slots import Slots
from holdall.parts.rows import by_rows

WORTH = 1_000_000  # numbers of keys that are worth another thread


class SlotCache(transformers.Cache):
    """For `past_key_values`; `step` says what the next pass is, and what to call the model with."""

    def __init__(self, slots: Slots, config: Any):
        super().__init__(layers=[])
        self.slots = slots
        self.reach = windows(config)
        self._piece = (0, 0, 0)  # a slot, and which of its tokens
        self._rows = self._ends = np.zeros(
            0, np.int64
        )  # slots of one token each, and how many they have then
        self._places = self._written = self._rows  # where these slots begin, and where their tokens go
        told = slots.geometry
        self._kernels = told.dim % 16 == 0 and told.dtype in ("float32", "bfloat16")
        self._flat: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def step(
        self, rows: Sequence[int], ends: Sequence[int], piece: tuple[int, int, int] = (0, 0, 0)
    ) -> dict[str, Any]:
        """The pass is the tokens [first, last) of the slot in `piece`, if there are any, and then one token for each
        of the slots `rows`, which have `ends` tokens afterwards."""
        self._piece, (_, first, last) = piece, piece
        self._rows, self._ends = np.array(rows, np.int64), np.array(ends, np.int64)
        slot, token, *_ = self.slots.keys[0].stride()
        self._places = self._rows * slot
        self._written = self._places + (self._ends - 1) * token
        positions = torch.cat([torch.arange(first, last), torch.from_numpy(self._ends - 1)])[None]
        # A mask of the model's own form, so that it makes none: what may be seen is known here.
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool).expand(1, 1, positions.shape[1], 1)
        return {"past_key_values": self, "position_ids": positions, "attention_mask": mask, "use_cache": True}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers calls: write into the slots, and give back stand-ins that lead to `attend`."""
        keys, values = self.slots.keys[layer_idx], self.slots.values[layer_idx]  # [B, S, H, D]
        row, first, last = self._piece
        new = [t[0].transpose(0, 1) for t in (key_states, value_states)]  # [N + R, H, D]
        for held, mine in zip((keys, values), new, strict=True):
            held[row, first:last] = mine[: last - first]
        if len(self._rows):
            k, v = (t[last - first :] for t in new)
            if self._kernels:
                from holdall.kv.slot_attention import write

                rows_k, rows_v = (_bits(t.reshape(len(t), -1)) for t in (k, v))
                places = self._written + int(keys.storage_offset())
                write(*self._tensors(layer_idx), rows_k, rows_v, places)
            else:
                at = torch.from_numpy(self._rows), torch.from_numpy(self._ends - 1)
                keys[at], values[at] = k, v
        return _Attention(self, layer_idx, key_states, value_states).given()

    def attend(self, layer: int, query: Tensor, scale: float | None) -> Tensor:
        """query [1, G*H, N + R, D] (or [1, H, G, D] of one token): what each gets from the tokens of its slot."""
        new = self._piece[2] - self._piece[1]
        mine, some = query.reshape(1, -1, new + len(self._rows), query.shape[-1]), []
        if new:
            some.append(self._read(layer, mine[:, :, :new], scale))
        if len(self._rows):
            attend = self._next if self._kernels else self._next_by_torch
            found = attend(layer, mine[0, :, new:].transpose(0, 1), scale)  # [R, G*H, D]
            some.append(found.transpose(0, 1)[None])
        return (some[0] if len(some) == 1 else torch.cat(some, 2)).reshape(query.shape)

    def _read(self, layer: int, query: Tensor, scale: float | None) -> Tensor:
        """A piece of a prompt over all that stands before it, and itself up to each."""
        (row, first, last), reach = self._piece, self.reach[layer]
        new, start = last - first, max(0, first - reach + 1)
        k, v = (t[layer][row, start:last].transpose(0, 1)[None] for t in (self.slots.keys, self.slots.values))
        seen = None if start == 0 and k.shape[2] == new <= reach else sees(new, k.shape[2], reach)
        return functional.scaled_dot_product_attention(
            query, k, v, seen, is_causal=seen is None, scale=scale, enable_gqa=True
        )

    def _next_by_torch(self, layer: int, query: Tensor, scale: float | None) -> Tensor:
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        n, _, d = query.shape
        grouped = query.reshape(n, keys.shape[2], -1, d)  # the heads that share keys are queries of one head
        out = torch.empty_like(grouped)
        for i, (row, end) in enumerate(zip(self._rows.tolist(), self._ends.tolist(), strict=True)):
            first = max(0, end - self.reach[layer])
            k, v = (t[row, first:end].transpose(0, 1)[None] for t in (keys, values))  # [1, H, T, D]
            out[i : i + 1] = functional.scaled_dot_product_attention(grouped[i : i + 1], k, v, scale=scale)
        return out.reshape(query.shape)

    def _next(self, layer: int, query: Tensor, scale: float | None) -> Tensor:
        from holdall.kv.slot_attention import attend

        keys, (n, _, d) = self.slots.keys[layer], query.shape
        h, firsts = keys.shape[2], np.maximum(0, self._ends - self.reach[layer])
        grouped = query.reshape(n * h, -1, d).float().contiguous()  # heads that share keys stand together
        out = torch.empty_like(grouped)
        places, steps = self._places + int(keys.storage_offset()), np.array(keys.stride()[1:3])
        by_rows(
            attend, n * h, int((self._ends - firsts).sum()) * h * d / WORTH,
            grouped.numpy(), *self._tensors(layer), places, steps, firsts, self._ends,
            1 / math.sqrt(d) if scale is None else scale, out.numpy(),
        )  # fmt: skip
        return out.to(query.dtype).reshape(query.shape)

    def _tensors(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """All that stands behind a layer's keys and values, flat."""
        if layer not in self._flat:
            k, v = (_bits(t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0))
                    for t in (self.slots.keys[layer], self.slots.values[layer]))  # fmt: skip
            self._flat[layer] = k, v
        return self._flat[layer]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max([self._piece[2], *self._ends.tolist()])


class _Attention(Step):
    """The attention of one layer in one pass."""

    def __init__(self, cache: SlotCache, layer: int, keys: Tensor, values: Tensor):
        shape = (*keys.shape[:2], 1, keys.shape[3])
        nothing = torch.empty(shape, dtype=keys.dtype, device="meta")
        super().__init__(Entries(keys=nothing, values=nothing), keys.shape[2], _nothing)
        self.whole = False
        self._cache, self._layer = cache, layer

    def fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        return self._cache.attend(self._layer, query, scale)

    def product(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        raise BadInput("attention", "eager", 'attn_implementation="sdpa"')


def _bits(x: Tensor) -> np.ndarray:
    """As the kernels take it: float32, or the bits of bfloat16."""
    found: np.ndarray = (x if x.dtype == torch.float32 else x.view(torch.uint16)).detach().numpy()
    return found


def _nothing(query: Tensor, mask: Tensor | None, scale: float | None) -> None:
    """Nobody judges these entries."""


def sees(new: int, tokens: int, reach: int) -> Tensor:
    """Which of the last `tokens` the last `new` of them look at: themselves and what comes before, [new, tokens]."""
    all_before = torch.ones(new, tokens, dtype=torch.bool).tril(tokens - new)
    return all_before if reach >= tokens else all_before.triu(tokens - new - reach + 1)


def windows(config: Any) -> list[int]:
    """For each layer how many tokens a token looks at, itself included."""
    told, endless = config.get_text_config(), 1 << 62
    kinds = getattr(told, "layer_types", None) or ["full_attention"] * told.num_hidden_layers
    width = getattr(told, "sliding_window", None)
    known = {"full_attention": endless, "sliding_attention": width or endless}
    strange = sorted(set(kinds) - set(known))
    if strange:
        raise BadInput("model", f"layers of {strange}", "full or sliding attention in every layer")
    if getattr(told, "layer_types", None) is None and getattr(told, "use_sliding_window", width is not None):
        return [width or endless] * told.num_hidden_layers
    return [known[kind] for kind in kinds]
