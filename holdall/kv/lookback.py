"""Which heads look back: a model reads lots that are drawn, and the same again, and each head is asked what it saw.

A head that finds things in a text looks, at a word that stood there before, at that word or at the one behind it. No
language is needed to see which heads do: the tokens are drawn by lot. It is a property of a model, found once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_DRAWN, _BETWEEN = 256, 256  # tokens that come twice, and others in between


def heads_that_look_back(model: Any, seed: int = 0) -> tuple[float, ...]:
    """For each key/value head, layer by layer, the attention that it pays to where its token stood before, 0 to 1.

    Counted are the token's earlier place and the next one, a mean over the second reading, of the query head of its
    group that does so most. model: a transformers module that generates. Costs one pass over 769 tokens, fewer where
    the model's window is smaller; no more than one layer of them is held.
    """
    from holdall.dropins.transformers import Cache

    config = model.config.get_text_config()
    window = getattr(config, "max_position_embeddings", None) or 3 * _DRAWN
    drawn = min(_DRAWN, (window - 1) // 3)
    if drawn < 2:
        raise BadInput("model", f"a window of {window} tokens", "one of 7 or more, to read something twice")
    between = min(_BETWEEN, drawn)
    lot = torch.Generator().manual_seed(seed)
    low = min(
        config.vocab_size - 1, config.vocab_size // 50
    )  # tokens with a meaning to the model stand first
    ids = torch.randint(low, config.vocab_size, (drawn + between,), generator=lot).tolist()
    watch = _Watch(drawn=drawn, apart=drawn + between)
    with torch.inference_mode():
        twice = torch.tensor([[low, *ids, *ids[:drawn]]], device=model.device)
        model(twice, past_key_values=Cache(watch), logits_to_keep=1)
    return tuple(watch.told)


@dataclass(frozen=True, kw_only=True)
class _Watch(KVSelector):
    """Notes what the heads of each layer looked at, and keeps nothing."""

    name: ClassVar[str] = "watch"

    drawn: int
    apart: int
    told: list[float] = field(default_factory=list)

    def asks(self, tokens: int) -> tuple[int, float]:
        return self.drawn, 0.0

    def score(self, x: Entries) -> Tensor:
        return torch.zeros(x.shape)

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        self.told.extend(_seen_again(x, self.drawn, self.apart).tolist())
        return x.take(torch.zeros(*x.shape[:2], 1, dtype=torch.long, device=x.keys.device))


def _seen_again(x: Entries, drawn: int, apart: int) -> Tensor:
    """[H]: the attention of the last `drawn` queries to what stands `apart` tokens before them, and one behind it."""
    x = x.asked(drawn, 0.0)
    assert x.queries is not None
    h, d = x.keys.shape[1], x.keys.shape[3]
    asked = x.queries[0].float().unflatten(0, (h, -1))  # [H, G, W, D]
    scores = asked @ x.keys[0, :, None].float().transpose(2, 3) * (d**-0.5 if x.scale is None else x.scale)
    apart_of = x.query_columns()[0][:, None] - x.where()[0, :1]  # [W, T], alike in all heads
    weights = scores.masked_fill(apart_of < 0, -torch.inf).softmax(-1)  # [H, G, W, T]
    there = (apart_of == apart) | (apart_of == apart - 1)
    return (weights * there).sum(-1).mean(-1).amax(-1)
