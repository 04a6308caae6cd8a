"""PrefixKV: every layer keeps the same share of what is looked at, so that layers get different budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdall.budget import Budget, apportion
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.kv.base import KVSelector
from holdall.kv.border import Bordered, without
from holdall.kv.calibration import read_layers
from holdall.kv.entries import Entries
from holdall.kv.prefixes import Curve, exact, search
from holdall.kv.snapkv import SnapKV
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.parts.attention import looks, mass

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_OTHER = SnapKV()


@dataclass(frozen=True, kw_only=True)
class PrefixKV(KVSelector):
    """Gives each layer as much as it needs to keep the same share of what is looked at; any method then chooses.

    A layer's best o entries hold a share of all its score; one share for all layers, found by bisection so that the
    whole meets the budget, says how many entries each keeps. With `inner` another method chooses (and merges) within a
    layer; without, it is the paper's own: attention averaged over heads, which then all have the same entries. Good
    where layers differ. Poor where they are alike, and, with the own choice, for what only one head looks at.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, N, D]; scores [B, H, T].
    Cost: each layer is judged twice, to share out and to choose; the whole context stands until all are, with the
    queries for it. Calibrated, each is judged once and cut before the next is read. Holds what `inner` holds.
    Knobs:
        inner: the method that chooses within a layer; none is the paper's own
        ratios: share of each layer that goes, from `calibrated`; () searches for each prompt
        level: share of the layers, the first, that get an equal part: they look at everything a little (paper: 0)
        start: first tokens that stay, off the curve (paper: 1 to 4)
        window: last queries that judge, with the own choice
        probes: share of the earlier queries that judge too, by lot (paper: all, 1.0)
        normal: divide sums by how many queries can see an entry: they favour early tokens (paper: no)
        distance: with the own choice, one goes for each token generated, this far from the end of what was kept of the
            prompt, once the budget is met (paper: -25)
    Differs from the paper: only the last queries judge by default (sums over all made SmolLM2 forget its latest lines);
    `level`; sizes are bytes; with `inner` the curve is of its scores, sorted by head, and its own rule holds later.
    Example:
        >>> import torch
        >>> from holdall.kv import EMS, Entries, PrefixKV
        >>> lot = torch.Generator().manual_seed(0)
        >>> keys, queries = torch.randn(2, 2, 1, 2, 100, 8, generator=lot)  # two layers
        >>> layers = [Entries(keys=k, values=k, queries=q * s) for k, q, s in zip(keys, queries, (1, 9))]
        >>> method, total = PrefixKV(inner=EMS(window=8)), 16_000
        >>> shares = method.share(layers, total)
        >>> [method.select(x, n).count for x, n in zip(layers, shares)], sum(shares) <= total
        ([66, 36], True)

    Paper: 078, Wang et al., PrefixKV, NeurIPS 2025
    Test: tests/kv/test_prefixkv.py
    """

    name: ClassVar[str] = "prefixkv"
    paper: ClassVar[Paper] = Paper(
        78,
        "PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient Generation",
        "Wang, Chen, Li, Tan, Zhang, Cai, Lin, Han, Ding; NeurIPS 2025",
        "https://arxiv.org/abs/2412.03409",
    )

    inner: KVSelector | None = knob(None, "what chooses within a layer; none: its own", other=_OTHER)  # noqa: RUF009
    ratios: tuple[float, ...] = knob((), "share of each layer that goes", other=(0.9,) * 5 + (0.6,))
    level: float = knob(0.1, "first layers that get an equal part", unit="share", paper=0.0, other=1.0,
                        at={"ratios": (0.9,) * 5 + (0.6,)})  # fmt: skip
    start: int = knob(4, "first tokens that stay", unit="tokens", other=64)
    window: int = knob(32, "last queries that judge", unit="tokens", other=8)
    probes: float = knob(0.0, "share of the earlier queries, by lot", unit="share", paper=1.0, other=1.0)
    normal: bool = knob(False, "divide by how many queries can see it", other=True, at={"probes": 1.0})
    distance: int = knob(-25, "where one goes for each generated, from the prompt's end", other=-1)

    def __post_init__(self) -> None:
        if self.start < 0 or self.window < 1:
            raise BadInput("start, window", (self.start, self.window), "0 or more, and 1 or more tokens")
        if not 0 <= self.probes <= 1 or self.distance > -1:
            raise BadInput("probes, distance", (self.probes, self.distance), "from 0 to 1, and -1 or less")
        if not 0 <= self.level <= 1 or any(not 0 <= r < 1 for r in self.ratios):
            raise BadInput("level, ratios", (self.level, self.ratios), "from 0 to 1, and from 0 to below 1")
        if isinstance(self.inner, PrefixKV):
            raise BadInput("inner", self.inner.full_name(), "a method that leaves the layers' budgets alone")

    @property
    def biased(self) -> bool:  # type: ignore[override]
        return self.inner is not None and self.inner.biased

    @property
    def follows(self) -> bool:  # type: ignore[override]
        return self.inner is None or self.inner.follows

    @property
    def tiered(self) -> bool:  # type: ignore[override]
        return self.inner is not None and self.inner.tiered

    @property
    def capacity(self) -> int | None:  # type: ignore[override]
        return None if self.inner is None else self.inner.capacity

    def asks(self, tokens: int) -> tuple[int, float]:
        return (self.window, self.probes) if self.inner is None else self.inner.asks(tokens)

    def least(self, x: Entries) -> int:
        return min(self.start + 2, x.count) if self.inner is None else self.inner.least(x)

    def why(self) -> str:
        return f"{self.start} first tokens and two more" if self.inner is None else self.inner.why()

    def each(self, x: Entries) -> int:
        return x.each if self.inner is None else self.inner.each(x)

    def smallest(self, x: Entries) -> int:
        return super().smallest(x) if self.inner is None else self.inner.smallest(x)

    def score(self, x: Entries) -> Tensor:
        if self.inner is not None:
            return self.inner.score(x)
        if x.queries is None:
            raise BadInput("entries", "no queries", "the queries of the prompt")
        at, where, shown = x.query_columns(), x.where(), x.shown()
        got = mass(x.queries, at, x.keys, where, x.valid, x.scale, x.bias)
        if self.normal:
            got = got / looks(at, where)[:, :, None].clamp(min=1)
        got = got.mean((1, 2))[:, None].expand(x.shape)  # heads keep the same, and so have the same
        older, newer = shown.cumsum(-1), shown.flip(-1).cumsum(-1).flip(-1)
        stays = shown & ((older <= self.start) | (newer <= 1))
        return got.masked_fill(~shown, -torch.inf).masked_fill(stays, torch.inf)

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        told = Budget.parse(budget)
        if self.ratios and told is not None and told.bytes is None:
            limit = told.limit(x.original, x.tokens * x.elements)
            told = Budget(bytes=max(1, int(limit * (self.portion(x.layer) or 1))))
        return super().select(x, told) if self.inner is None else self.inner.select(x, told)

    def merge(self, x: Entries, kept: Tensor) -> Entries:
        return Bordered.of(x.take(kept), self.distance)

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        if self.inner is not None:
            return self.inner.settle(x, budget)
        if budget is None or budget.bytes is None or x.nbytes <= budget.bytes:
            return x
        return without(x, max(0, x.count - max(1, budget.bytes // x.each)), self.distance)

    def portion(self, layer: int) -> float | None:
        if not self.ratios:
            return None
        if layer >= len(self.ratios):
            raise BadInput("layer", layer, f"one of the {len(self.ratios)} that were calibrated")
        rest = self.ratios[int(self.level * len(self.ratios)) :]
        equal = layer < len(self.ratios) - len(rest)
        return 1.0 if equal else (1 - self.ratios[layer]) / (1 - sum(rest) / len(rest))

    def share(self, layers: list[Entries], total: int) -> list[int]:
        if self.ratios:
            weights = [(self.portion(x.layer) or 1) * x.original for x in layers]
            return apportion(total, weights, [self.smallest(x) for x in layers])
        whole, first = sum(x.original for x in layers), int(self.level * len(layers))
        wanted = [total * x.original // max(1, whole) for x in layers[:first]]
        curves, left = [self.curve(x) for x in layers[first:]], total - sum(wanted)
        _, found = search(curves, left)
        wanted += [c.each * kept for c, kept in zip(curves, exact(curves, found, left), strict=True)]
        return apportion(total, wanted, [self.smallest(x) for x in layers])

    def curve(self, x: Entries) -> Curve:
        """The share of a head's score that its best entries hold, heads averaged."""
        score = self.score(x.asked(*self.asks(x.tokens)))
        fixed = int((score == torch.inf).sum(-1).max()) if x.count else 0
        worth = score.double().masked_fill(~score.isfinite(), 0.0).clamp(min=0)
        worth = worth.sort(dim=-1, descending=True).values
        share = (worth.cumsum(-1) / worth.sum(-1, keepdim=True).clamp(min=1e-300)).flatten(0, 1).mean(0)
        return Curve(share[: x.count - fixed].cpu().numpy(), fixed, max(fixed, self.least(x)), self.each(x))

    def calibrated(self, model: Any, texts: Sequence[Sequence[int]], budget: Spend) -> Self:
        """The same with the mean share of each layer that goes at this budget on these texts (token ids)."""
        told, drops = Budget.parse(budget), []
        if told is None:
            raise BadInput("budget", None, 'one to calibrate for, such as "20%"')
        for layers in read_layers(self, model, texts):
            limits = [told.limit(x.original, x.tokens * x.elements) for x in layers]
            total = sum(limits) if told.bytes is None else told.bytes
            shares = self.but(ratios=()).share(layers, total)
            drops.append([max(0.0, 1 - n / x.original) for n, x in zip(shares, layers, strict=True)])
        return self.but(ratios=tuple(sum(of) / len(of) for of in zip(*drops, strict=True)))
