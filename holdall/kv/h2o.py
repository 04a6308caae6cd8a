"""Floor: the entries that got most attention so far, and the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.kv.judged import summed_attention
from holdall.method import Paper, knob
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, kw_only=True)
class H2O(KVSelector):
    """Keeps the entries that were looked at most so far ("heavy hitters"), and the latest.

    Adds up the attention that every token of the prompt and of the answer pays, and drops the entry with the least sum
    whenever there is one too many. The classic of eviction, here as a floor: sums favour early tokens, which more
    queries have seen, and judging needs all queries of the prompt. Poor where what matters was looked at late or once.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, T, D]; mass, scores [B, H, T].
    Cost: the attention of the whole prompt once more, in blocks; a product [G, C] and a sort of C for each new token.
    Holds 4 bytes of mass an entry besides its position.
    Knobs:
        recent: share of what is kept that is the latest entries (paper: a half)
        probes: share of the prompt's queries, by lot, that sums are estimated from (paper: all)
    Differs from the paper: query heads that share a key/value head add up; the budget is in bytes, mass included.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, H2O
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 2, 100, 8).unbind(0)
        >>> small = H2O().select(Entries(keys=keys, values=values, queries=queries), "25%")
        >>> small.count, small.where()[0, 0, -5:].tolist()
        (22, [95, 96, 97, 98, 99])

    Paper: 000, after Zhang et al., H2O: Heavy-Hitter Oracle for Efficient Generative Inference, NeurIPS 2023
    Test: tests/kv/test_h2o.py
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[Paper] = Paper(
        0,
        "Heavy hitters and recent entries",
        "after Zhang et al., NeurIPS 2023",
        "https://arxiv.org/abs/2306.14048",
    )
    follows: ClassVar[bool] = True

    recent: float = knob(0.5, "share of what is kept that is the latest entries", unit="share", other=0.1)
    probes: float = knob(1.0, "queries of the prompt that judge, by lot", unit="share", other=0.1)

    def __post_init__(self) -> None:
        if not 0 <= self.recent < 1 or not 0 < self.probes <= 1:
            raise BadInput("recent, probes", (self.recent, self.probes), "a share below 1, and some queries")

    def asks(self, tokens: int) -> tuple[int, float]:
        return (tokens, 0.0) if self.probes == 1 else (1, self.probes)

    def least(self, x: Entries) -> int:
        return min(2, x.count)

    def why(self) -> str:
        return "one heavy entry and the latest"

    def weighed(self, x: Entries) -> Entries:
        held = torch.zeros(x.shape, device=x.keys.device) if x.mass is None else x.mass
        if x.queries is not None:
            held = held + summed_attention(x)
        return x.but(mass=held, queries=None, query_positions=None)

    def score(self, x: Entries) -> Tensor:
        """The attention that each entry got, [B, H, T]."""
        found = self.weighed(x).mass
        assert found is not None
        return found.masked_fill(~x.shown(), -torch.inf)

    def ranked(self, x: Entries, room: int) -> Tensor:
        latest = max(1, int(self.recent * room))
        shown = x.shown()
        newer = shown.flip(-1).cumsum(-1).flip(-1)  # [B, H, T] how many of the shown are here or later
        return self.score(x).masked_fill(shown & (newer <= latest), torch.inf)

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        x = self.weighed(x)
        return (
            x
            if budget is None or budget.bytes is None or x.nbytes <= budget.bytes
            else self.select(x, budget)
        )
