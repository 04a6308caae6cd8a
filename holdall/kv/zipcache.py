"""ZipCache: salient tokens in more bits than the others, told by a tenth of the prompt's queries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.kv import tiering
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.kv.rungs import Pair, Rung, channel_order, factors, ladder, packed, rung_bytes
from holdall.kv.snapkv import SnapKV
from holdall.kv.tiers import Tier, Tiered
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.parts.attention import looks, mass
from holdall.parts.quant import BITS

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_KEPT: Rung = ((4, 4, 4, 4), 4)  # what a token is worth, where another method drops some


@dataclass(frozen=True, kw_only=True)
class ZipCache(KVSelector):
    """Keeps every token, in few bits: the salient ones in more, the others in fewer.

    Keys get a grid for each channel, values one for each token, after their channels were scaled alike. A token is
    salient by the attention that it gets from a tenth of the prompt's queries, over how many see it. Good where later
    questions may ask for anything, down to an eighth of the 16-bit bytes. Below that, and where the question is known
    when the prompt ends, `ZipCache(inner=SnapKV())` needs less.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, W, D]; scores [B, H, T].
    Cost: attention of a tenth of the queries, and some passes over keys and values, once a prompt. Holds D * bits / 4
    bytes a token and head, 4 / H for its grid, 8 * D for `group` tokens' grids, 2 bits of map.
    Knobs:
        high, low, ratio: bits of salient tokens and others; the share of salient, with no budget (paper: 4, 2, 0.6)
        ladder: a budget chooses two neighbours of eight widths, which channels of keys have by what they and the
            queries do; without, high and low, and only the share of the salient moves (paper: without)
        probes: last queries of the prompt that probe, and as many by lot, as a share (paper: 0.05)
        normalise: divide a token's attention by the probes that see it (paper: yes; without it is what H2O does)
        group: tokens that share a channel's grid, four times as many below 3 bits; 0 is all of a tier (paper: all)
        fit: rounds of least squares for grids of values, and of keys below 3 bits; 0 spans all (paper: 0)
        centred: values less their channel's mean, by its deviation; else by the root of its largest (paper: else)
        sinks, recent, heavy: first, latest and most salient tokens, held in full (paper: 0)
        gap: generated tokens that stand in full before they are packed (paper: 100)
        inner: a method that drops (or merges) tokens first, so that the others get 4 bits (paper: none)
    Differs from the paper: where the knobs say so; `ZipCache(ladder=False, group=0, fit=0, centred=False, sinks=0,
    recent=0, heavy=0)` is the paper's. A budget solves the share of the salient, and the widths. Tokens of the answer
    are judged by the query of the moment, over what stands in full, and come on top of a budget until they are packed.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, ZipCache
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 2, 400, 64).bfloat16().unbind(0)
        >>> small = ZipCache().select(Entries(keys=keys, values=values, queries=queries), "25%")
        >>> small.count, [t.count for t in small.tiers], small.nbytes <= 0.25 * 400 * 2 * 2 * 64 * 2
        (400, [242, 138], True)

    Paper: 061, He et al., ZipCache, NeurIPS 2024
    Test: tests/kv/test_zipcache.py
    """

    name: ClassVar[str] = "zipcache"
    paper: ClassVar[Paper] = Paper(
        61,
        "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification",
        "He, Zhang, Wu, Liu, Zhou, Zhuang; NeurIPS 2024",
        "https://arxiv.org/abs/2405.14256",
    )
    follows: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    high: int = knob(4, "bits of salient tokens", unit="bits", other=8, at={"budget": None})
    low: int = knob(2, "bits of the others", unit="bits", other=3, at={"budget": None})
    ratio: float = knob(0.6, "share of salient tokens, without a budget", other=0.3, at={"budget": None})
    ladder: bool = knob(True, "a budget chooses among eight widths, and for each channel", other=False)
    probes: float = knob(0.05, "last queries that probe, and as many by lot", unit="share", other=0.3)
    normalise: bool = knob(True, "divide attention by the probes that see a token", other=False)
    group: int = knob(128, "tokens that share a channel's grid; 0 is all", unit="tokens", paper=0, other=64)
    fit: int = knob(2, "rounds of least squares for a grid; 0 spans all", unit="rounds", paper=0, other=0)
    centred: bool = knob(True, "values are centred by channel", paper=False, other=False)
    sinks: int = knob(4, "first tokens held in full", unit="tokens", paper=0, other=1)
    recent: int = knob(8, "latest tokens held in full", unit="tokens", paper=0, other=2)
    heavy: int = knob(8, "most salient tokens held in full", unit="tokens", paper=0, other=4)
    gap: int = knob(100, "generated tokens in full before they are packed", other=50, changes="nothing")
    inner: KVSelector | None = knob(None, "what drops tokens first", other=SnapKV())  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.low not in BITS or self.high not in BITS or self.low >= self.high:
            raise BadInput("bits", f"low {self.low}, high {self.high}", f"low below high, both of {BITS}")
        if not 0 <= self.ratio <= 1 or not 0 < self.probes <= 1:
            raise BadInput("ratio, probes", (self.ratio, self.probes), "shares up to 1, and some probes")
        if min(self.group, self.fit, self.sinks, self.recent, self.heavy, self.gap - 1) < 0:
            raise BadInput("knobs", str(self), "no negative numbers, and a gap of 1 or more")

    def asks(self, tokens: int) -> tuple[int, float]:
        last, share = (0, 0.0) if self.inner is None else self.inner.asks(tokens)
        return max(last, ceil(self.probes * tokens)), max(share, self.probes)

    def why(self) -> str:
        return f"every token at its fewest bits, {self.sinks + self.recent + self.heavy} tokens in full"

    def score(self, x: Entries) -> Tensor:
        """Saliency: the attention that a token gets from the probes that see it, [B, H, T]."""
        if x.queries is None:
            raise BadInput("entries", "no queries", "queries of the prompt, to probe with")
        at, where = x.query_columns(), x.where()
        found = mass(x.queries, at, x.keys, where, x.valid, x.scale, x.bias).sum(2)
        found = found / looks(at, where).clamp(min=1) if self.normalise else found
        return found.masked_fill(~x.shown(), -torch.inf)

    def pairs(self) -> list[Pair]:
        """Widths of (the others, the salient) that a budget may choose from, the smallest first."""
        return ladder() if self.ladder else [self._own()]

    def _own(self) -> Pair:
        return ((self.low,) * 4, self.low), ((self.high,) * 4, self.high)

    def size(self, x: Entries, salient: int, pair: Pair, tokens: int | None = None) -> int:
        """All bytes of `x`, or of some tokens of it: codes, grids, what stands in full, the map and the bias."""
        (b, h, _), t = x.shape, x.count if tokens is None else tokens
        full = min(t, self.sinks + self.recent + self.heavy)
        held = full * x.elements * x.keys.element_size() + b * h * -(-(x.tokens - x.first) // 4)
        held += 2 * b * h * t * (x.bias is not None or (self.inner is not None and self.inner.biased))
        counts = ((t - full - salient, pair[0]), (salient, pair[1]))
        return held + sum(rung_bytes(x, n, rung, self.group, self.centred) for n, rung in counts)

    def smallest(self, x: Entries) -> int:
        least = (x.count, x.nbytes) if self.inner is None else (self.inner.least(x), self.inner.smallest(x))
        return min(x.nbytes, self.size(x, 0, self.pairs()[0], least[0]), least[1])

    def plan(self, x: Entries, limit: int | None) -> tuple[Pair, int]:
        """The widths, and the number of salient tokens that fit."""
        free = max(0, x.count - self.sinks - self.recent - self.heavy)
        if limit is None:
            return self._own(), round(self.ratio * free)
        for pair in reversed(self.pairs()):
            found = tiering.most(free, lambda n, p=pair: self.size(x, n, p), limit)  # type: ignore[misc]
            if found is not None:
                return pair, found
        raise BudgetError(limit, self.smallest(x), "bytes", who=self.full_name(), why=self.why())

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        budget = Budget.parse(budget)
        limit = None if budget is None else budget.limit(x.original, x.tokens * x.elements)
        if (limit is not None and limit >= x.nbytes) or not x.count:
            return x.copy()
        x = x.asked(*self.asks(x.tokens))
        if isinstance(x, Tiered):
            return self._grown(x, limit)
        if self.inner is not None:
            room = partial(self.size, x, 0, (_KEPT, _KEPT))
            x = tiering.thinned(x, self.inner, room, limit)
            if x.nbytes <= (limit or 0):
                return x
        pair, salient = self.plan(x, limit)
        tier = tiering.ranks(self.score(x), x.shown(), self.sinks, self.recent, self.heavy, salient)
        return tiering.split(x, tier, partial(self._made, x, pair))

    def _made(self, x: Entries, pair: Pair, tier: int, some: Entries, behind: Tier | None) -> Tier:
        rung = pair[2 - tier]
        order = channel_order(some, x.queries, x.query_positions, rung) if behind is None else None
        s, z = factors(some, self.centred) if behind is None else (None, None)
        return packed(some, rung, self.group, self.fit, order, s, z, behind)

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        """Packs the tokens generated so far, once they are `gap`; salient are as many of them as of the prompt."""
        if not isinstance(x, Tiered):
            return x if budget is None or x.nbytes <= (budget.bytes or 0) else self.select(x, budget)
        if x.buffered < self.gap:
            return x
        share = x.tiers[0].count / max(1, x.count - x.full)
        return self._moved(x, self.score(tiering.only_full(x)), share)

    def _moved(self, x: Tiered, score: Tensor, share: float) -> Tiered:
        """What came since the last time is packed; score [B, H, F] is of what stands in full."""
        free = tiering.movable(x, self.sinks + self.heavy, self.recent)
        top = tiering.best(score.masked_fill(~free, -torch.inf), round(share * int(free[0, 0].sum())))
        moves = torch.where(free, torch.where(top, 1, 2), 0)
        return tiering.extend(x, moves, partial(self._made, x, self._own()))

    def _grown(self, x: Tiered, limit: int | None) -> Entries:
        """A later turn: what came since is packed, with as many salient tokens as fit; else all is packed anew."""
        plain = x.plain()
        score = self.score(plain).gather(2, tiering.places(x.tier_of(), 0))
        for share in (1.0, 0.75, 0.5, 0.25, 0.0):
            y = self._moved(x, score, share)
            if limit is None or y.nbytes <= limit:
                return y
        return self.select(plain, limit)
