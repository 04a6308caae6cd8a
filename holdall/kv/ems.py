"""EMS: evict, then merge, then select: what matters stays, what resembles it is folded in, the rest goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kv.base import KVSelector
from holdall.kv.centres import candidates, folded
from holdall.kv.entries import Entries
from holdall.kv.judged import Judged
from holdall.method import Paper, knob
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = lazy("torch", extra="kv")
    functional = lazy("torch.nn.functional", extra="kv")

_CHOICES = {
    "combine": ("max", "sum"), "pooling": ("avg", "max"), "weights": ("score", "cosine"),
    "counts": ("none", "tokens", "mass"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EMS(KVSelector):
    """Keeps what the text looked at and what its end looks at, folds what resembles that into it, drops the rest.

    Each head scores its tokens twice: by the attention of all queries ("global"), over how many could see them, and by
    that of the last `window` queries, smoothed ("local"). The best stay as centres. The next best, as many as hold a
    share of the score, are merged into the centre whose key resembles theirs most, if it does; the tail is dropped
    unmerged, so that it moves no centre. While it generates it goes on judging, every `slack` tokens. Good when the
    question stands at the end, and for going on with a text. Poor when the question comes later, as all that drops.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, N, D]; scores, mass, votes [B, H, T]; each head its own C.
    Cost: products [N, T] for each query head (N: window and probes: all) and [T, C] for each head, once a prompt; a
    product [G, C] for each generated token. Holds 4 + 4 bytes (mass, votes; 0 without slack) and 2 (counts) an entry.
    Knobs:
        window: last tokens of the prompt, which vote and stay (paper: not known)
        recent: share of what is kept that is the latest tokens, where that is more than the window (paper: none)
        kernel: tokens over which votes are smoothed, odd; 1 is none (paper: not known)
        pooling: how, "avg" or "max" (paper: not known)
        probes: share of the earlier queries that the global sums are made of, by lot (paper: all, 1.0); a tenth is
            quicker, and tells the text's continuation worse
        normal: divide global sums by how many queries can see the entry (paper: not known)
        combine: how global and local agree: "max" of both or their "sum" (paper: "combines")
        balance: weight of the global score beside the local one, from 0 to 1 (paper: not known)
        held: share of the score that centres and candidates hold together; fewer candidates in heads that look at
            little (paper: not known)
        multiple: most candidates, as a multiple of the centres (paper: not known)
        tau: cosine of keys from which a candidate is merged; above 1 none is (paper: not known)
        weights: what entries weigh in a mean: their "score", or "cosine": exp(cosine), e for the centre
        values_only: keys stay as they are, which rotated keys of far positions may want (paper: both are merged)
        counts: what a centre stands for: "none" (paper), "tokens": the logarithm of their number is added to its
            scores, or "mass": of how much attention it takes over
        slack: tokens generated until it judges again; 0 is never (paper: not known)
    Differs from the paper: its full text could not be read, so constants are measured ones; the `recent` stay besides
    the window, without which H2O told what follows better; the votes of generated tokens fade over `window` of them
    instead of being counted anew; the budget is in bytes and never exceeded, so judging again leaves room for the next
    `slack` tokens; `counts` is ours, and without it merging lost to dropping here.
    Example:
        >>> import torch
        >>> from holdall.kv import EMS, Entries
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 2, 100, 8).unbind(0)
        >>> x = Entries(keys=keys, values=values, queries=queries)
        >>> small = EMS(window=8, tau=0.5).select(x, "30%")
        >>> small.count, small.nbytes <= 0.3 * x.nbytes, round(float(small.bias.max().exp()))
        (24, True, 6)

    Paper: 088, Li et al., EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression, 2024
    Test: tests/kv/test_ems.py
    """

    name: ClassVar[str] = "ems"
    paper: ClassVar[Paper] = Paper(
        88,
        "EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local Importance",
        "Li, Li, Meng, Ma, Geng, Xia, Wang; 2024",
        "https://arxiv.org/abs/2412.08521",
    )
    capacity: ClassVar[int | None] = 256

    window: int = knob(32, "last tokens of the prompt, which vote and stay", unit="tokens", other=16)
    recent: float = knob(
        0.3, "share of what is kept that is the latest", paper=0.0, other=0.6, at={"budget": "50%"}
    )
    kernel: int = knob(5, "tokens over which a vote is smoothed; odd, 1 is none", unit="tokens", other=1)
    pooling: str = knob("max", 'how votes are smoothed: "avg" or "max"', other="avg")
    probes: float = knob(1.0, "share of earlier queries, by lot, for global sums", unit="share", other=0.1)
    normal: bool = knob(False, "global sums by how many queries can see the entry", other=True)
    combine: str = knob("sum", 'how global and local agree: "max" or "sum"', other="max")
    balance: float = knob(0.5, "weight of the global score beside the local one", other=0.9)
    held: float = knob(0.95, "share of the score that centres and candidates hold", unit="share", other=0.5)
    multiple: float = knob(2.0, "most candidates, as a multiple of the centres", other=0.05)
    tau: float = knob(0.6, "cosine of keys from which a candidate is merged; above 1 none is", other=0.95)
    weights: str = knob("score", 'what a merged entry weighs: "score" or "cosine"', other="cosine")
    values_only: bool = knob(True, "merge values, leave keys as they are", paper=False, other=False)
    counts: str = knob("tokens", "what a centre stands for: none, tokens or mass", paper="none", other="mass")
    slack: int = knob(32, "tokens generated until it judges again; 0 is never", unit="tokens", other=0)

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("kernel", 1), ("slack", 0)):
            if getattr(self, name) < least:
                raise BadInput(name, getattr(self, name), f"at least {least}")
        if self.kernel % 2 == 0:
            raise BadInput("kernel", self.kernel, "an odd number of tokens")
        for name in ("probes", "balance", "held", "recent"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(name, getattr(self, name), "from 0 to 1")
        if self.multiple < 0:
            raise BadInput("multiple", self.multiple, "0 or more")
        for name, listed in _CHOICES.items():
            if getattr(self, name) not in listed:
                raise BadInput(name, getattr(self, name), " or ".join(listed))

    @property
    def biased(self) -> bool:  # type: ignore[override]
        return self.counts != "none"

    @property
    def follows(self) -> bool:  # type: ignore[override]
        return self.slack > 0

    def asks(self, tokens: int) -> tuple[int, float]:
        return self.window, self.probes

    def least(self, x: Entries) -> int:
        return min(self.window + 1, x.count)

    def why(self) -> str:
        return f"{self.window}-token window"

    def each(self, x: Entries) -> int:
        votes = 4 * x.shape[0] * x.shape[1] * self.follows
        return super().each(x) + votes

    def weighed(self, x: Entries) -> Judged:
        """With the attention that each entry got, from all queries (mass) and from the latest (votes)."""
        return Judged.of(x).heard(self.window, self.probes)

    def score(self, x: Entries) -> Tensor:
        x = self.weighed(x)
        shown = x.shown()
        newer = shown.flip(-1).cumsum(-1).flip(-1)  # [B, H, T] how many of the shown are here or later
        window = shown & (newer <= self.window)
        return self.worth(x, window).masked_fill(~shown, -torch.inf).masked_fill(window, torch.inf)

    def ranked(self, x: Entries, room: int) -> Tensor:
        shown = x.shown()
        newer = shown.flip(-1).cumsum(-1).flip(-1)
        return self.score(x).masked_fill(shown & (newer <= int(self.recent * room)), torch.inf)

    def worth(self, x: Judged, window: Tensor) -> Tensor:
        """The global-local score, finite everywhere, [B, H, T]."""
        if x.mass is None or x.votes is None:
            raise BadInput("entries", "no queries", f"the last {self.window} queries of the prompt")
        out = window | ~x.shown()
        all_time = x.mass / (x.tokens - x.where()).clamp(min=1) if self.normal else x.mass
        pool = functional.avg_pool1d if self.pooling == "avg" else functional.max_pool1d
        votes = pool(x.votes.masked_fill(out, 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        wide, near = (_scaled(t.masked_fill(out, 0.0)) for t in (all_time, votes))
        if self.combine == "max":
            return torch.maximum(self.balance * wide, near)
        return self.balance * wide + (1 - self.balance) * near

    def merge(self, x: Entries, kept: Tensor) -> Entries:
        x = self.weighed(x)
        score = self.ranked(x, kept.shape[2])
        most = int(self.multiple * kept.shape[2])
        at, wanted = candidates(score, kept, most, self.held)
        weigh = None if self.weights == "score" else "cosine"
        y = folded(x, score, kept, at, wanted, self.tau, weigh, self.values_only, self.counts)
        return y if self.follows else y.but(mass=None, votes=None)

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        limit = None if budget is None else budget.bytes
        if x.mass is None and limit is not None and x.nbytes <= limit:
            return x  # nothing was dropped yet
        x = self.weighed(x)
        if limit is None:
            return x if x.count <= (self.capacity or x.count) + self.slack else self.select(x)
        if x.nbytes <= limit:
            return x
        return self.select(x, Budget(bytes=max(self.smallest(x), limit - self.slack * self.each(x))))


def _scaled(score: Tensor) -> Tensor:
    """With a mean of 1 in each head."""
    return score / score.mean(-1, keepdim=True).clamp(min=1e-30)
