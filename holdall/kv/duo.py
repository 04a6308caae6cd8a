"""Heads that look back keep everything, the others what they need: floor and partner of methods that judge alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdall.budget import Budget, apportion
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.kv.base import KVSelector
from holdall.kv.by_head import ByHead, Part, of_heads, two_groups
from holdall.kv.entries import Entries
from holdall.kv.h2o import H2O
from holdall.kv.lookback import heads_that_look_back
from holdall.kv.tiers import Tiered
from holdall.kv.zipcache import ZipCache
from holdall.method import Paper, knob
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_NEAR = ZipCache(inner=H2O(probes=0.1))
_OTHER = (0.1,) * 16 + (0.9, 0.1)
_RANKED = {"heads": (0.9, 0.8, 0.7, *(0.1,) * 12, 0.5, 0.4, 0.1), "budget": "20%"}
_AT = {"heads": _OTHER, "budget": "25%"}


@dataclass(frozen=True, kw_only=True)
class Duo(KVSelector):
    """Gives the few heads that find things in a text all its tokens, in four bits, and the other heads little.

    A model looks things up with some of its heads, the same in every text; `prepared(model)` finds them by having it
    read drawn tokens twice. Good where questions come later and the budget is small: a twelfth of the bytes tells what
    other methods need a fifth for. Not prepared, all heads are held by `far`.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, N, D]; scores [B, H, T].
    Cost: once a model, a pass over 769 tokens; then what `far` and `near` cost, each for its heads.
    Knobs:
        heads: how much each head looks back, layer by layer, from `prepared`; () holds all by `far`
        far, near: methods for the heads that look back, and for the others
        full: what a head that looks back gets, as a share of its 16-bit bytes; from there on all heads are held alike
        part: of a budget that goes to them; so it says how many they are (paper: the share of heads, .25 to .5)
    Differs from the paper: heads are found by one pass over drawn tokens, not trained; the others keep what was looked
    at most beside sinks and latest tokens; both are packed; a budget in bytes says how many heads hold all.
    Example:
        >>> import torch
        >>> from holdall.kv import Duo, Entries
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 6, 400, 64).bfloat16().unbind(0)
        >>> x = Entries(keys=keys, values=values, queries=queries)  # of six heads one looks back
        >>> small = Duo(heads=(0.01, 0.02, 0.01, 0.01, 0.7, 0.01)).select(x, "17%")
        >>> [(heads, some.count) for heads, some in small.groups], small.nbytes <= 0.17 * x.nbytes
        ([((4,), 400), ((0, 1, 2, 3, 5), 123)], True)

    Paper: 000, after Xiao et al., DuoAttention, ICLR 2025
    Test: tests/kv/test_duo.py
    """

    name: ClassVar[str] = "duo"
    paper: ClassVar[Paper] = Paper(
        0,
        "Heads that look back, and heads that do not",
        "after Xiao et al., DuoAttention, ICLR 2025",
        "https://arxiv.org/abs/2410.10819",
    )
    tiered: ClassVar[bool] = True

    heads: tuple[float, ...] = knob((), "how much each head looks back, layer by layer", other=_OTHER)
    far: KVSelector = knob(ZipCache(), "for the heads that look back", other=ZipCache(sinks=1))  # noqa: RUF009
    near: KVSelector = knob(_NEAR, "for the others", other=H2O(), at=_AT)  # noqa: RUF009
    full: float = knob(0.4, "what a head that looks back gets", unit="share", other=0.5, at=_AT)
    part: float = knob(0.5, "of a budget, for the heads that look back", unit="share", other=0.8, at=_RANKED)

    def __post_init__(self) -> None:
        if not 0 < self.full <= 1 or not 0 < self.part < 1:
            raise BadInput("full, part", (self.full, self.part), "shares above 0, and a part below 1")
        for inner in (self.far, self.near):
            if not isinstance(inner, KVSelector) or inner.portion(0) != 1.0 or isinstance(inner, Duo):
                raise BadInput("far, near", repr(inner), "methods that leave the layers' budgets alone")

    @property
    def follows(self) -> bool:  # type: ignore[override]
        return self.far.follows or self.near.follows

    def prepared(self, model: Any) -> Self:
        return self if self.heads else self.but(heads=heads_that_look_back(model))

    def asks(self, tokens: int) -> tuple[int, float]:
        far, near = self.far.asks(tokens), self.near.asks(tokens)
        return max(far[0], near[0]), max(far[1], near[1])

    def score(self, x: Entries) -> Tensor:
        return (self.near if self.heads else self.far).score(x)

    def why(self) -> str:
        return (self.near if self.heads else self.far).why()

    def smallest(self, x: Entries) -> int:
        return (self.near if self.heads else self.far).smallest(x)

    def _far(self, x: Entries, share: float) -> tuple[int, ...]:
        """The heads of a layer that hold everything where a budget is such a share."""
        return self._first(x, int(len(self.heads) * self.part * share / self.full))

    def _first(self, x: Entries, count: int) -> tuple[int, ...]:
        """The heads of a layer that are among so many that look back furthest."""
        first, h = x.layer * x.shape[1], x.shape[1]
        if first + h > len(self.heads):
            raise BadInput("heads", f"{len(self.heads)} of them", f"all heads up to those of layer {x.layer}")
        order = sorted(range(len(self.heads)), key=lambda i: -self.heads[i])
        return tuple(sorted(i - first for i in order[:count] if first <= i < first + h))

    def spread(self, x: Entries, limit: int) -> int:
        share = limit / max(1, x.original)
        if not self.heads or share >= self.full:
            return limit
        far, h = len(self._far(x, share)), x.shape[1]
        rest = share * (1 - self.part) / (1 - self.part * share / self.full)
        return int((far * self.full + (h - far) * rest) / h * x.original)

    def share(self, layers: list[Entries], total: int) -> list[int]:
        alike = total / max(1, sum(x.original for x in layers))
        found = [self.spread(x, int(alike * x.original)) for x in layers]
        return apportion(total, found, [self.smallest(x) for x in layers]) if sum(found) else found

    def _told(self, x: Entries, limit: int) -> int:
        """What `spread` made this limit of, or a little less."""
        low, high = 0, x.original
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.spread(x, middle) <= limit else (low, middle - 1)
        return low

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        told = Budget.parse(budget)
        limit = None if told is None else told.limit(x.original, x.tokens * x.elements)
        share = 0.0 if limit is None else self._told(x, limit) / max(1, x.original)
        if not self.heads or not x.count or (share >= self.full and not isinstance(x, ByHead)):
            return self.far.select(x, told)
        far = self._first(x, round(self.part * len(self.heads))) if limit is None else self._far(x, share)
        if far and not isinstance(x, ByHead) and limit is not None:
            own = int(self.full * x.original / x.shape[1]) * len(far)
            far = far if self.far.smallest(of_heads(x.plain(), far)) <= own else ()  # a short text
        parts = self._each(x, two_groups(x, far, ("far", "near")), limit)
        return ByHead.of(x, [(n, h, self._inner(n).select(y, b)) for (n, h, y), b in parts])

    def _inner(self, name: str) -> KVSelector:
        return self.far if name == "far" else self.near

    def _each(self, x: Entries, parts: list[Part], limit: int | None) -> list[tuple[Part, Budget | None]]:
        """Every part with what it may take of a layer's bytes."""
        if limit is None:
            return [(part, None) for part in parts]
        own = int(self.full * x.original / x.shape[1])
        found = [own * len(heads) if name == "far" else 0 for name, heads, _ in parts]
        others = [0 if name == "far" else len(heads) for name, heads, _ in parts]
        if any(others):
            rest = max(0, limit - sum(found))
            found = [n + rest * o // sum(others) for n, o in zip(found, others, strict=True)]
        return [(part, Budget(bytes=max(1, n))) for part, n in zip(parts, found, strict=True)]

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        if not isinstance(x, ByHead):
            if not self.heads or isinstance(x, Tiered):
                return self.far.settle(x, budget)
            fits = budget is None or x.nbytes <= (budget.bytes or 0)
            return x if fits else self.select(x, budget)
        limit = None if budget is None else budget.limit(x.original, x.tokens * x.elements)
        kept = [(n, h, self._inner(n).settle(y, b)) for (n, h, y), b in self._each(x, x.parts(), limit)]
        return ByHead.of(x, kept)
