"""One layer of `holdall.dropins.transformers.Cache`, as transformers wants to see it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from holdall.errors import BadInput
from holdall.kv.layer import LayerState


class Layer(CacheLayerMixin):
    """What transformers wants to see of a layer. Its length is of all tokens that went by: positions stay true."""

    is_croppable = False

    def __init__(self, layer: int, state: LayerState | None = None):
        self.state = state or LayerState(layer)

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        return self.state.entries is not None

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        return None if self.state.entries is None else self.state.entries.keys

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return None if self.state.entries is None else self.state.entries.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is allocated ahead."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        entries = self.state.append(key_states, value_states)
        return entries.keys, entries.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks are made for every column that went by; the hook gathers what a head still has."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.state.entries is None else self.state.entries.tokens

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state = LayerState(self.state.layer)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; only as long as nothing was dropped, for a dropped entry does not come back."""
        x = self.state.entries
        if tokens_to_remove == 0 or x is None:
            return
        if tokens_to_remove > 0 or -tokens_to_remove >= x.tokens or not x.whole:
            raise BadInput(
                "crop", tokens_to_remove, "minus a number of tokens, of a cache that dropped nothing yet"
            )
        self.state.drop_last(-tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state.rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.state.rows(lambda t: torch.repeat_interleave(t, repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state.rows(lambda t: t[indices.to(t.device)])
