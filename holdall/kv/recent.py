"""Floor: the first few entries and the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.errors import BadInput
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.method import Paper, knob
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, kw_only=True)
class Recent(KVSelector):
    """Keeps the first few entries and the latest: the model talks on, and forgets the middle.

    The first entries soak up attention that no other wants ("sinks"); without them a model falls apart. All heads
    keep the same. Good for chat that only needs its last lines; blind to everything between.

    Shapes: keys, values [B, H, T, D]; scores [B, H, T].
    Cost: none.
    Knobs:
        sinks: first tokens that stay (StreamingLLM: 4)
    Differs from the paper: keys keep the rotation of their true position, where StreamingLLM renumbers positions
    inside the cache to go on without end; this is a floor, cut once at the end of the prompt.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, Recent
        >>> x = Entries(keys=torch.ones(1, 1, 64, 8), values=torch.ones(1, 1, 64, 8))
        >>> Recent().select(x, 8 * x.each).where()[0, 0].tolist()
        [0, 1, 2, 3, 60, 61, 62, 63]

    Paper: 000, after Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024
    Test: tests/kv/test_floors.py
    """

    name: ClassVar[str] = "recent"
    paper: ClassVar[Paper] = Paper(
        0, "Sinks and recent entries", "after Xiao et al., ICLR 2024", "https://arxiv.org/abs/2309.17453"
    )

    sinks: int = knob(4, "first tokens that stay", unit="tokens", other=0, at={"budget": "50%"})

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise BadInput("sinks", self.sinks, "0 or more tokens")

    def least(self, x: Entries) -> int:
        return min(self.sinks + 1, x.count)

    def why(self) -> str:
        return f"{self.sinks} sinks and one more"

    def score(self, x: Entries) -> Tensor:
        shown = x.shown()
        first = shown & (shown.cumsum(-1) <= self.sinks)
        age = x.where().float()  # float32 counts exactly to 16 million
        return age.masked_fill(~shown, -torch.inf).masked_fill(first, torch.inf)
