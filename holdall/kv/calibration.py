"""What a method sees of a calibration text: the layers of a model that has read it, nothing dropped yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.kv.base import KVSelector
    from holdall.kv.entries import Entries
else:
    torch = lazy("torch", extra="kv")


def read_layers(
    method: KVSelector, model: Any, texts: Sequence[Sequence[int]], chunk: int = 512
) -> Iterator[list[Entries]]:
    """For each text, token ids, the layers as `method` is shown them when the whole text has been read."""
    from holdall.dropins.transformers import Cache

    if not texts or not all(len(ids) for ids in texts):
        raise BadInput("calibration texts", f"{len(texts)} texts", "at least one, and none of them empty")
    for ids in texts:
        cache = Cache(method)
        with cache.prefilling(judge=False), torch.inference_mode():
            for at in range(0, len(ids), chunk):
                part = torch.tensor([list(ids[at : at + chunk])])
                model(part, past_key_values=cache, logits_to_keep=1)
        yield [layer.state.judged().within_reach() for layer in cache.layers]
