"""SnapKV: what the end of the prompt looks at is what the answer will need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.errors import BadInput
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.parts.attention import mass

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_POOLINGS = ("avg", "max")
_GROUPS = ("mean", "max")


@dataclass(frozen=True, kw_only=True)
class SnapKV(KVSelector):
    """Keeps the parts of a long prompt that its last lines ask about.

    At the end of the prompt, each key/value head gives every earlier entry the attention that the last `window`
    queries pay to it, smooths that along the sequence so that the neighbours of a hit come too, and keeps the
    best; the window itself always stays. Good when the question stands at the end of the prompt. Poor when the
    question comes later (what it will ask about may be gone, and nothing brings it back), when the question stands
    before the document, and when a chat template's closing words are longer than the window.

    Shapes: keys, values [B, H, T, D]; queries [B, G*H, W, D]; scores [B, H, T]; each head keeps its own C entries.
    Cost: one product [W, T] for each query head and a sort of T, once a prompt; nothing while generating. Holds
    C * H * (2 * D numbers + 4 bytes of position) a layer.
    Knobs:
        window: last tokens of the prompt, which vote and stay (paper: 16 to 64; 32 in its experiments)
        kernel: tokens over which a vote is smoothed, odd; 1 is none (paper: 5, and 7 on LongBench)
        pooling: how it is smoothed, "avg" or "max" (paper: both; 7 with max on LongBench)
        group: how the query heads that share a key/value head agree, "mean" or "max" (paper: does not say)
    Differs from the paper: the votes of the query heads that share a key/value head are joined before pooling, so
    that grouped-query models keep H heads and not G*H; padding never votes and is dropped first; a prompt that comes
    in chunks or turns votes with the queries of its latest part alone, if that is shorter than the window; the
    capacity is a budget in bytes, 1,024 entries when none is given; kept entries stay in the order of the text.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, SnapKV
        >>> torch.manual_seed(0) and None
        >>> keys, values, queries = torch.randn(3, 1, 2, 100, 8).unbind(0)
        >>> x = Entries(keys=keys, values=values, queries=queries[:, :, -8:])
        >>> small = SnapKV(window=8).select(x, "25%")
        >>> small.count, small.nbytes <= x.nbytes // 4, small.where()[0, 0, -8:].tolist()
        (23, True, [92, 93, 94, 95, 96, 97, 98, 99])

    Paper: 077, Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, NeurIPS 2024
    Test: tests/kv/test_snapkv.py
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[Paper] = Paper(
        77,
        "SnapKV: LLM Knows What You are Looking for Before Generation",
        "Li, Huang, Yang, Venkitesh, Locatelli, Ye, Cai, Lewis, Chen; NeurIPS 2024",
        "https://arxiv.org/abs/2404.14469",
    )
    capacity: ClassVar[int | None] = 1024

    window: int = knob(32, "last tokens of the prompt, which vote and stay", unit="tokens", other=16)
    kernel: int = knob(5, "tokens over which a vote is smoothed; odd, 1 is none", unit="tokens", other=1)
    pooling: str = knob("avg", 'how votes are smoothed: "avg" or "max"', other="max")
    group: str = knob("mean", 'how query heads that share keys agree: "mean" or "max"', other="max")

    def __post_init__(self) -> None:
        if self.window < 1:
            raise BadInput("window", self.window, "at least 1 token")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise BadInput("kernel", self.kernel, "an odd number of tokens")
        if self.pooling not in _POOLINGS:
            raise BadInput("pooling", self.pooling, " or ".join(_POOLINGS))
        if self.group not in _GROUPS:
            raise BadInput("group", self.group, " or ".join(_GROUPS))

    def asks(self, tokens: int) -> tuple[int, float]:
        return self.window, 0.0

    def least(self, x: Entries) -> int:
        return min(self.window + 1, x.count)

    def why(self) -> str:
        return f"{self.window}-token window"

    def score(self, x: Entries) -> Tensor:
        if x.queries is None:
            raise BadInput("entries", "no queries", f"the last {self.window} queries of the prompt")
        shown = x.shown()  # [B, H, T]
        newer = shown.flip(-1).cumsum(-1).flip(-1)  # [B, H, T] how many of the shown are here or later
        window = shown & (newer <= self.window)
        votes = self.votes(x).masked_fill(window | ~shown, 0.0)
        return self._pool(votes).masked_fill(~shown, -torch.inf).masked_fill(window, torch.inf)

    def votes(self, x: Entries) -> Tensor:
        """The attention that the window's queries pay to each entry, [B, H, T], heads of a group joined."""
        assert x.queries is not None
        queries, at = x.queries[:, :, -self.window :], x.query_columns()[:, -self.window :]
        heads = mass(queries, at, x.keys, x.where(), x.valid, x.scale)  # [B, H, G, T]
        return heads.mean(2) if self.group == "mean" else heads.amax(2)

    def _pool(self, votes: Tensor) -> Tensor:
        pool = torch.nn.functional.avg_pool1d if self.pooling == "avg" else torch.nn.functional.max_pool1d
        return pool(votes, self.kernel, stride=1, padding=self.kernel // 2)
