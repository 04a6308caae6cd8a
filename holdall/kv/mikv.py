"""MiKV: what eviction would drop is kept in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.kv.balance import Balance, balance, behind_of, tokenwise, tokenwise_bytes
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.kv.judged import span, summed_attention
from holdall.kv.snapkv import SnapKV
from holdall.kv.tiering import best, edges, extend, most, movable, places, split, where_in_full
from holdall.kv.tiers import Tier, Tiered
from holdall.method import Paper, knob
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_LOW, _HIGH = (2, 3, 4), (8, 16)


@dataclass(frozen=True, kw_only=True)
class MiKV(KVSelector):
    """Keeps the important tokens as they are and all others in two to four bits: nothing is forgotten.

    The attention that a token got so far says how important it is, as for `kv.h2o`; but what that drops is packed
    here, with a grid for each token and head, after its keys' channels were balanced by those of the queries. A new
    token comes in in full, and where there are too many the least important is packed. Good where later questions may
    ask for anything. Poor below a quarter of the 16-bit bytes, where `kv.zipcache` holds on.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, W, D]; scores [B, H, T].
    Cost: the scores of `probes` of the prompt once more; some tokens packed and a tier sorted every ten tokens.
    Holds D * bits / 4 + 8 bytes a packed token and head, 4 * D + 4 an important one, 2 bits a token of map.
    Knobs:
        low, high: bits of what is not important, fewer where a budget asks (paper: 2, 3, 4), and is: 16 or 8 (both)
        ratio: share of the tokens that are important, where there is no budget (paper: 0.2 to 0.5)
        sub: channels that share a grid; 0 is the whole head (paper: the head, or 32 to 64)
        balance, centred: keys are balanced by the queries (paper: yes); what is packed is less its channel's mean (no)
        normalise: whether a sum of attention is divided by the queries that saw the token (paper: no)
        probes: share of the prompt's queries, by lot, that sums are estimated from and keys balanced by (paper: all)
        sinks, recent: first and latest tokens that always stay in full (paper: the latest)
        fit: rounds of least squares for each grid; 0 spans from least to largest (paper: 0)
        gap: tokens by which a budget may be passed before tokens are packed (paper: 0)
        oracle: another method of the room that says what is important in a prompt (paper: any)
    Differs from the paper: where the knobs say so. A budget solves the ratio. Query heads that share keys add up and
    balance together. With high=8 what was once important stays in 8 bits. A later turn that asks for less packs anew.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, MiKV
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 2, 400, 64).bfloat16().unbind(0)
        >>> small = MiKV().select(Entries(keys=keys, values=values, queries=queries), "30%")
        >>> small.count, small.full, small.nbytes <= 0.3 * 400 * 2 * 2 * 64 * 2
        (400, 34, True)

    Paper: 103, Yang et al., No Token Left Behind, 2024
    Test: tests/kv/test_mikv.py
    """

    name: ClassVar[str] = "mikv"
    paper: ClassVar[Paper] = Paper(
        103,
        "No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization",
        "Yang, Kim, Bae, Kwon, Park, Yang, Kwon, Lee; 2024",
        "https://arxiv.org/abs/2402.18096",
    )
    follows: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    low: int = knob(3, "bits of what is not important", unit="bits", other=4, at={"budget": "40%"})
    high: int = knob(16, "bits of what is important: 16 (as it came) or 8", unit="bits", other=8)
    ratio: float = knob(0.2, "share of important tokens, without a budget", other=0.4, at={"budget": None})
    sub: int = knob(0, "channels that share a grid; 0 is the whole head", unit="channels", other=32)
    balance: bool = knob(True, "keys are balanced by the queries", other=False)
    centred: bool = knob(True, "what is packed is less the mean of its channel", paper=False, other=False)
    normalise: bool = knob(False, "divide attention by the queries that saw a token", other=True)
    probes: float = knob(0.1, "queries that judge, by lot", unit="share", paper=1.0, other=1.0)
    sinks: int = knob(4, "first tokens that stay in full", unit="tokens", other=1)
    recent: int = knob(16, "latest tokens that stay in full", unit="tokens", other=4)
    fit: int = knob(3, "rounds of least squares for a grid; 0 spans all", unit="rounds", paper=0, other=0)
    gap: int = knob(8, "tokens too many before some are packed", paper=0, other=0, changes="nothing")
    oracle: KVSelector | None = knob(None, "what says which tokens are important", other=SnapKV())  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.low not in _LOW or self.high not in _HIGH:
            raise BadInput("bits", f"low {self.low}, high {self.high}", f"low of {_LOW}, high of {_HIGH}")
        least = min(self.sub, self.sinks, self.recent, self.fit, self.gap)
        if not 0 <= self.ratio <= 1 or not 0 < self.probes <= 1 or least < 0:
            raise BadInput("knobs", str(self), "a ratio from 0 to 1, some probes, and no negative numbers")

    def asks(self, tokens: int) -> tuple[int, float]:
        last, share = (0, 0.0) if self.oracle is None else self.oracle.asks(tokens)
        return max(last, self.recent), max(share, self.probes)

    def why(self) -> str:
        return f"every token at {_LOW[0]} bits, {self.sinks} sinks and {self.recent} recent ones in full"

    def heat(self, x: Entries) -> Tensor:
        """The attention that each entry got, all told, [B, H, T] float32."""
        if x.queries is None:
            raise BadInput("entries", "no queries", "all queries of the prompt")
        return summed_attention(x)

    def score(self, x: Entries) -> Tensor:
        """How important each entry is, [B, H, T]."""
        return self._judged(x, self.heat(x)) if self.oracle is None else self.oracle.score(x)

    def _judged(self, x: Entries, heat: Tensor) -> Tensor:
        found = heat / span(x.query_columns(), x.where()).clamp(min=1) if self.normalise else heat
        return found.masked_fill(~x.shown(), -torch.inf)

    def smallest(self, x: Entries) -> int:
        return min(x.nbytes, self.size(x, 0, _LOW[0]))

    def size(self, x: Entries, important: int, low: int) -> int:
        """All bytes of `x` with so many important tokens: packed, in full, the map and what judging goes on with."""
        (b, h, t), d, e = x.shape, x.keys.shape[3], x.values.shape[3]
        edge = min(x.count, self.sinks + self.recent)
        full = edge + (important if self.high == 16 else 0)
        head = tokenwise_bytes(x, t - edge - important, low, self.sub) + 4 * (d + e) * (1 + self.centred)
        head += tokenwise_bytes(x, important, 8, self.sub) if self.high == 8 else 0
        head += full * ((d + e) * x.keys.element_size() + 4) + -(-(x.tokens - x.first) // 4)
        return b * h * head + (0 if x.bias is None else x.bias.numel() * x.bias.element_size())

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        budget = Budget.parse(budget)
        limit = None if budget is None else budget.limit(x.original, x.tokens * x.elements)
        if (limit is not None and limit >= x.nbytes) or not x.count:
            return x.copy()
        if isinstance(x, Tiered):
            return self._grown(x, limit)
        x = x.asked(*self.asks(x.tokens))
        heat = self.heat(x)
        low, important = self.plan(x, limit)
        score = self._judged(x, heat) if self.oracle is None else self.oracle.score(x)
        edge = edges(x.shown(), self.sinks, self.recent)
        top = best(score.masked_fill(edge, -torch.inf), important)
        tier = torch.where(edge, 0, torch.where(top & ~edge, 0 if self.high == 16 else 1, 2))
        how = balance(x, self.balance, self.centred)
        return split(x, tier, partial(self._made, how, low)).but(heat=heat.gather(2, places(tier, 0)))

    def plan(self, x: Entries, limit: int | None) -> tuple[int, int]:
        """The low tier's bits, and how many tokens besides the first and latest are important."""
        free = max(0, x.count - self.sinks - self.recent)
        if limit is None:
            return self.low, round(self.ratio * free)
        for low in range(self.low, _LOW[0] - 1, -1):
            found = most(free, lambda n, b=low: self.size(x, n, b), limit)  # type: ignore[misc]
            if found is not None:
                return low, found
        raise BudgetError(limit, self.smallest(x), who=self.full_name(), why=self.why())

    def _made(self, how: Balance, low: int, tier: int, some: Entries, behind: Tier | None) -> Tier:
        """Pack `some` with the balance of the prompt, or of the tier that they join."""
        used = how if behind is None else behind_of(behind)
        return tokenwise(some, 8 if tier == 1 else low, used, self.sub, self.fit)

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        """One more token has come: add its attention up, and pack the least important where there are too many."""
        limit = None if budget is None else budget.bytes
        if not isinstance(x, Tiered):
            return self.select(x, budget) if limit is not None and x.nbytes > limit else x
        assert x.queries is not None and x.heat is not None
        x = x.but(heat=x.heat + (x.shares(x.queries, x.scale).sum(2) if x.got is None else x.got))
        spare = self.gap * x.elements * x.keys.element_size()
        return self._packed(x, limit) if limit is not None and x.nbytes > limit + spare else x

    def _packed(self, x: Tiered, limit: int) -> Tiered:
        """Within the limit, or as near as what is not the first or latest allows."""
        free = movable(x, self.sinks, self.recent)
        assert x.heat is not None
        room, low = int(free[0, 0].sum()), x.tiers[1].values[0].bits
        each = x.elements * x.keys.element_size() + 4 * x.shape[0] * x.shape[1]
        saved = each - tokenwise_bytes(x, 8, low, self.sub) * x.shape[0] * x.shape[1] // 8
        count = min(room, -(-max(0, x.nbytes - limit) // max(1, saved)) + 1)
        heat = x.heat / (x.tokens - where_in_full(x)) if self.normalise else x.heat
        moves = torch.where(best((-heat).masked_fill(~free, -torch.inf), count) & free, 2, 0)
        if self.high == 8:  # all that is not new goes, the better part into eight bits
            share = round(room * x.tiers[0].count / max(1, x.count - x.full))
            moves = torch.where(free, torch.where(best(heat.masked_fill(~free, -torch.inf), share), 1, 2), 0)
        return extend(x, moves, partial(self._made, behind_of(x.tiers[1]), low))

    def _grown(self, x: Tiered, limit: int | None) -> Entries:
        """A later turn: what came since is added up, and packed where that is enough; else all is packed anew."""
        plain = x.plain().asked(*self.asks(x.tokens))
        if x.heat is not None and x.queries is not None:
            x = x.but(heat=x.heat + self.heat(plain).gather(2, places(x.tier_of(), 0)))
            y = x if limit is None else self._packed(x, limit)
            if limit is None or y.nbytes <= limit:
                return y
        return self.select(plain, limit)
