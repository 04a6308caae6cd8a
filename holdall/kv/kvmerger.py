"""KVMerger: neighbours whose keys look alike become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdall.budget import Budget, apportion
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.kv.base import KVSelector
from holdall.kv.calibration import read_layers
from holdall.kv.entries import Entries
from holdall.kv.sets import merged, pivots
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.parts.attention import mass

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = lazy("torch", extra="kv")
    functional = lazy("torch.nn.functional", extra="kv")

_CHOICES = {"kernel": ("twice", "once", "even", "pivot"), "values": ("sum", "bias", "mean")}


@dataclass(frozen=True, kw_only=True)
class KVMerger(KVSelector):
    """Makes one entry of neighbours whose keys look alike, so that nothing is dropped outright.

    The latest tokens and the ones that got most attention stay as they are. What lies between is cut, in each head, in
    as many runs of consecutive tokens as there is room for, where keys of neighbours are least alike. Each run becomes
    one entry at the place of its most attended token: a mean of its keys and values, weighted by how near a key is to
    that token's. Good where the gist is enough. Poor for single facts: what was merged cannot be told apart.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, N, D]; scores [B, H, T]; each head C entries.
    Cost: products [N, T] for each query head (N: window and probes); 20 scans of T a head, in numba; sums over T;
    nothing while generating. Holds what other selectors hold, and 2 bytes an entry with values="bias".
    Knobs:
        recent: share of what is kept that is the latest tokens (paper: .34 at a half, .23 at 35 %)
        heavy: share of what is kept that is heavy hitters (paper: .24 at a half, .06 at 35 %); each parts a run in two
        window: last queries whose attention finds the heavy hitters
        probes: share of the earlier queries that judge too, by lot (paper: all, 1.0)
        eps: cosine of neighbouring keys from which they merge, where no budget is given (paper: 0.75)
        layers: the same for each layer, from `calibrated`; () searches it for each head and budget
        longest: most tokens of a set, and most that a value is multiplied by; more where the budget asks for it
        kernel: width of the Gaussian: "twice" estimated as published, "once"; "even" weights; "pivot": the rest goes
        values: a set's value: "sum" (size times mean, as published), "mean", or mean with "bias": log size added to
            the entry's scores
        skipped: layers that never merge, -1 the last. Where the budget is shared out they stay whole and others pay
            (the whole context then stands for a moment); alone, they drop what was looked at least
            (paper: the first two and the last)
    Differs from the paper: the threshold is searched in each head, to the very number of entries; the kernel's width,
    which the paper defines by itself, is estimated in two passes, and keys lie so far apart that little but the pivot
    counts; size times mean, as published, ruins what SmolLM2 says, so the mean is the default; the rest is ours.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, KVMerger
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 2, 100, 8).unbind(0)
        >>> small = KVMerger().select(Entries(keys=keys, values=values, queries=queries), "25%")
        >>> small.count, small.where()[0, 0, -4:].tolist()
        (23, [96, 97, 98, 99])

    Paper: 008, Wang et al., Model Tells You Where to Merge, 2024
    Test: tests/kv/test_kvmerger.py
    """

    name: ClassVar[str] = "kvmerger"
    paper: ClassVar[Paper] = Paper(
        8,
        "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks",
        "Wang, Jin, Yu, Zhang; 2024",
        "https://arxiv.org/abs/2407.08454",
    )

    recent: float = knob(0.5, "share of what is kept that is the latest", unit="share", paper=0.34, other=0.1)
    heavy: float = knob(0.24, "share of what is kept that is heavy hitters", unit="share", other=0.1)
    window: int = knob(32, "last queries that find the heavy hitters", unit="tokens", other=8)
    probes: float = knob(0.1, "share of the earlier queries, by lot", unit="share", paper=1.0, other=1.0)
    eps: float = knob(0.75, "cosine, without a budget", other=0.1, at={"budget": None, "recent": 0.1})
    layers: tuple[float, ...] = knob((), "the same of each layer, calibrated", other=(0.99,) * 6)
    longest: int = knob(16, "most tokens of a set, as the budget allows", unit="tokens", other=4)
    kernel: str = knob("twice", 'width of the kernel: "twice", "once"; "even", "pivot"', other="even")
    values: str = knob("mean", "a set's value: sum, mean, or that and a bias", paper="sum", other="bias")
    skipped: tuple[int, ...] = knob((), "layers that never merge", paper=(0, 1, -1), other=(5,))

    def __post_init__(self) -> None:
        if not (min(self.recent, self.heavy) >= 0 and self.recent + 2 * self.heavy < 1):
            wanted = "shares with recent + 2 * heavy below 1: each heavy hitter parts a set in two"
            raise BadInput("recent, heavy", (self.recent, self.heavy), wanted)
        if self.window < 1 or self.longest < 1:
            raise BadInput("window, longest", (self.window, self.longest), "at least 1 token each")
        if not 0 <= self.probes <= 1:
            raise BadInput("probes", self.probes, "from 0 to 1")
        for name, listed in _CHOICES.items():
            if getattr(self, name) not in listed:
                raise BadInput(name, getattr(self, name), " or ".join(listed))

    @property
    def biased(self) -> bool:  # type: ignore[override]
        return self.values == "bias"

    def asks(self, tokens: int) -> tuple[int, float]:
        return self.window, self.probes

    def least(self, x: Entries) -> int:
        return min(8, x.count)

    def why(self) -> str:
        return "the latest, heavy hitters and sets between them"

    def portion(self, layer: int) -> float | None:
        return None if self.skipped else 1.0

    def share(self, layers: list[Entries], total: int) -> list[int]:
        whole = {i % len(layers) for i in self.skipped if -len(layers) <= i < len(layers)}
        floors = [x.nbytes if i in whole else self.smallest(x) for i, x in enumerate(layers)]
        if sum(floors) > total:
            raise BudgetError(
                total, sum(floors), who=self.full_name(), why=f"layers {sorted(whole)} are not merged"
            )
        weights = [0 if i in whole else x.original for i, x in enumerate(layers)]
        return apportion(total, weights, floors)

    def room_for(self, x: Entries, budget: Budget | None) -> int:
        if budget is not None:
            return super().room_for(x, budget)
        if not x.count or x.layer in self.skipped:
            return x.count
        x = self.weighed(x.asked(*self.asks(x.tokens)))
        runs, _ = self._cut(x, 0)
        return int(runs.max()) + 1 + int((~x.shown()).sum(-1).max())

    def weighed(self, x: Entries) -> Entries:
        """With the attention that each entry got."""
        if x.queries is None:
            if x.mass is None:
                raise BadInput("entries", "no queries", f"the last {self.window} queries of the prompt")
            return x
        got = mass(x.queries, x.query_columns(), x.keys, x.where(), x.valid, x.scale, x.bias)
        return x.but(mass=got.mean(2), queries=None, query_positions=None)

    def score(self, x: Entries) -> Tensor:
        found = self.weighed(x).mass
        assert found is not None
        return found.masked_fill(~x.shown(), -torch.inf)

    def ranked(self, x: Entries, room: int) -> Tensor:
        score = self.score(x)
        if x.layer in self.skipped:
            return score.masked_fill(self._latest(x, room), torch.inf)
        pivot = self.pivots(x, room)
        own = pivot == torch.arange(x.count, device=pivot.device)
        return score.masked_fill(own & x.shown(), torch.inf)

    def pivots(self, x: Entries, room: int) -> Tensor:
        """For each token the most attended of its set, [B, H, T]; itself where it stands alone."""
        return pivots(self._cut(x, room)[0], self.score(x))

    def _latest(self, x: Entries, room: int) -> Tensor:
        shown = x.shown()
        newer = shown.flip(-1).cumsum(-1).flip(-1)  # [B, H, T] how many of the shown are here or later
        return shown & (newer <= max(1, int(self.recent * room)))

    def _cut(self, x: Entries, room: int) -> tuple[Tensor, Tensor]:
        """The runs that become sets, and thresholds; room 0: as eps makes them."""
        from holdall.kv.runs import cut  # loads numba

        b, h, t = x.shape
        of = room or t
        alone, shown = self._latest(x, of), x.shown()
        order = self.score(x).masked_fill(alone, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        alone = alone.scatter(2, order[..., : int(self.heavy * of)], True)
        unit = functional.normalize(x.keys.float().masked_fill(~shown[..., None], 0), dim=-1)
        alike = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1)  # [B, H, T-1]
        eps = self.eps if not room else self.layers[x.layer] if x.layer < len(self.layers) else torch.nan
        near, alone_, shown_ = (a.reshape(b * h, -1).cpu().numpy() for a in (alike, alone, shown))
        runs, found = cut(near, alone_, shown_, room, self.longest, eps)
        return torch.from_numpy(runs).view(b, h, t).to(x.keys.device), torch.from_numpy(found).view(b, h)

    def merge(self, x: Entries, kept: Tensor) -> Entries:
        if x.layer in self.skipped:
            return x.take(kept).but(mass=None)
        pivot = self.pivots(x, kept.shape[2])
        return merged(x.but(mass=None), kept, pivot, self.kernel, self.values, self.longest)

    def calibrated(self, model: Any, texts: Sequence[Sequence[int]], budget: Spend) -> Self:
        """The same with the mean threshold of each layer that meets the budget on these texts (token ids)."""
        found = []
        for layers in read_layers(self, model, texts):
            rooms = [self.room_for(x, Budget.parse(budget)) for x in layers]
            asked = [self.weighed(x.asked(*self.asks(x.tokens))) for x in layers]
            found.append([float(self._cut(x, n)[1].mean()) for x, n in zip(asked, rooms, strict=True)])
        return self.but(layers=tuple(sum(of) / len(of) for of in zip(*found, strict=True)))
