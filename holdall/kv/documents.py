"""Documents: what `kv.ape` encodes, which is texts and the model that is to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xxhash

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from holdall.kv.contexts_file import Piece
    from holdall.packed import Packed
else:
    torch = lazy("torch", extra="kv")

_CHUNK = 512  # tokens of a document that pass through the model at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Documents:
    """Token ids of each document by name, and how to get the model when there is something to read.

    model: names these very weights; contexts of one are never used with another. load: gives the transformers
    model. header: ids that the chat template puts before what a user says. ids: text to ids, special marks read.
    stored: contexts that are there already; what they have of the same model and prefix is not encoded again.
    """

    texts: Mapping[str, Sequence[int]]
    model: str
    load: Callable[[], Any]
    header: Sequence[int] = ()
    ids: Callable[[str], Sequence[int]] | None = None
    stored: Packed | None = None

    @classmethod
    def of(
        cls, net: Any, tokenizer: Any, texts: Mapping[str, str], model: str, stored: Packed | None = None
    ) -> Self:
        """From a running transformers model (or a function that gives it) and a `Tokenizer`."""
        from holdall.kv.needles import frame

        told = {name: tokenizer.encode(text) for name, text in texts.items()}
        return cls(
            texts=told, model=model, load=net if not hasattr(net, "config") else lambda: net,
            header=frame(tokenizer)[0], ids=lambda text: tokenizer.encode(text, special=True), stored=stored,
        )  # fmt: skip

    @cached_property
    def net(self) -> Any:
        return self.load()

    def prefix(self, wanted: str) -> list[int]:
        """Ids of what all documents stand behind: "chat", "none", or a text."""
        if wanted == "none":
            return []
        if wanted == "chat" and self.header:
            return list(self.header)
        if self.ids is None:
            raise BadInput("prefix", wanted, '"chat" or "none": there is no tokenizer to read a text with')
        return list(self.ids("\n\n" if wanted == "chat" else wanted))  # a model without a template

    def read(self, ids: Sequence[int], past: Any = None) -> Any:
        """A cache that has read `ids` behind `past`, which stays as it is."""
        from holdall.dropins.transformers import Cache

        cache = Cache() if past is None else past.copy()
        window, tokens = window_of(self.net), cache.get_seq_length() + len(ids)
        if window is not None and tokens > window:
            wanted = f"at most {window}, the model's window (cut the document into several)"
            raise BadInput("document", f"{tokens} tokens with the prefix", wanted)
        with torch.inference_mode():
            for at in range(0, len(ids), _CHUNK):
                self.net(torch.tensor([ids[at : at + _CHUNK]]), past_key_values=cache, logits_to_keep=1)
        return cache

    def encoded(self, prefix: Sequence[int], texts: Iterable[Sequence[int]]) -> Iterator[Piece]:
        """The prefix, and then each text as it reads behind it, at the positions that follow it."""
        base = self.read(prefix) if prefix else None
        yield (prefix, *(stacked(base, 0) if base is not None else stacked(self.read([0]), 1)))
        for ids in texts:
            yield (ids, *stacked(self.read(ids, base), len(prefix)))


def window_of(net: Any) -> int | None:
    """How many positions the model knows, where its configuration tells."""
    config = net.config.get_text_config()
    told = getattr(config, "max_position_embeddings", None)
    return told if isinstance(told, int) and told > 0 else None


def stacked(cache: Any, start: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the tokens from `start` on, of all layers: [L, H, T, D], [L, H, T, E]."""
    layers = [layer.state.entries for layer in cache.layers]
    if len({(x.keys.shape, x.values.shape) for x in layers}) > 1:
        raise BadInput("model", "layers whose keys have other shapes", "a model whose layers are alike")
    keys, values = (
        torch.stack([t[0, :, start:] for t in ts])
        for ts in zip(*((x.keys, x.values) for x in layers), strict=True)
    )
    return keys, values


def digest(ids: Sequence[int]) -> str:
    return xxhash.xxh3_128_hexdigest(np.asarray(ids, np.int32).tobytes())
