"""Contexts: keys and values of documents that were read one by one, and how they become one cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.kv.assembled import Assembled
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from holdall.dropins.transformers import Cache
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, eq=False)
class Context:
    """One document: ids [T], keys [L, H, T, D] after any rotation, and values [L, H, T, E]."""

    name: str
    digest: str
    ids: np.ndarray
    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False, kw_only=True)
class Contexts:
    """Documents that one model has read behind one prefix, ready to be put together in any order."""

    model: str
    prefix: Context
    documents: dict[str, Context]
    temperature: float = 1.0
    power: float = 1.0

    @property
    def start(self) -> int:
        """The column of a query's first token."""
        return len(self.prefix) + max(map(len, self.documents.values()), default=0)

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.documents.values()))

    def layers(self, names: Sequence[str] | None = None, dtype: torch.dtype | None = None) -> list[Assembled]:
        """The cache, layer by layer, of those documents in that order (None: all). dtype: the model's."""
        chosen = [self._named(n) for n in (self.documents if names is None else names)]
        prefix, first = self.prefix, len(self.prefix)
        seen = first + max(map(len, chosen), default=0)
        columns = [torch.arange(first, first + len(c), dtype=torch.int32) for c in chosen]
        dtype = prefix.keys.dtype if dtype is None else dtype
        made = []
        for i in range(len(prefix.keys)):
            keys, values = prefix.keys[i][None].to(dtype), prefix.values[i][None].to(dtype)
            where = torch.arange(first, dtype=torch.int32).expand(1, keys.shape[1], first).contiguous()
            made.append(Assembled(
                keys=keys, values=values, positions=where, seen=seen, layer=i,
                context_keys=_joined([c.keys[i] for c in chosen], keys).to(dtype),
                context_values=_joined([c.values[i] for c in chosen], values).to(dtype),
                context_positions=torch.cat([*columns, torch.zeros(0, dtype=torch.int32)]),
                temperature=self.temperature, power=self.power,
            ))  # fmt: skip
        return made

    def _named(self, name: str) -> Context:
        if name not in self.documents:
            raise BadInput(
                "document", name, f"one of {', '.join(self.documents) or 'none: the file is empty'}"
            )
        return self.documents[name]

    def cache(self, names: Sequence[str] | None = None, dtype: torch.dtype | None = None) -> Cache:
        """`layers` as a cache for a transformers model; give `generate` what `placed` returns."""
        return cache_of(self.layers(names, dtype))

    def placed(self, ids: Tensor, filler: int = 0) -> dict[str, Tensor]:
        """Inputs for `generate`: ids [B, T] behind as many tokens as the cache has columns, which are not read."""
        before = ids.new_full((ids.shape[0], self.start), filler)
        whole = torch.cat([before, ids], dim=1)
        return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """[1, H, C, D], of the contexts one after the other."""
    return torch.cat([*(p.to(like.dtype) for p in parts), like[0, :, :0]], dim=1)[None]


def cache_of(layers: Sequence[Assembled]) -> Cache:
    """A new cache over these layers, which stay as they are."""
    from holdall.dropins.kv_layer import Layer
    from holdall.dropins.transformers import Cache
    from holdall.kv.layer import LayerState

    cache = Cache()
    for i, x in enumerate(layers):
        state = LayerState(i)
        state.entries = x
        cache.layers.append(Layer(i, state))
    return cache
