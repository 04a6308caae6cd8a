"""Floor: entries drawn by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.method import Paper, knob
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_LAYERS = 1_000_003  # a prime between the layers' seeds


@dataclass(frozen=True, kw_only=True)
class Random(KVSelector):
    """Keeps entries drawn by lot: any method worth its name does better.

    Each layer and head draws its own; the rows of a batch share the draw, so that a row does not depend on who
    stands beside it. Padding is dropped first.

    Shapes: keys, values [B, H, T, D]; scores [B, H, T].
    Cost: one random number an entry.
    Knobs:
        seed: of the draw
    Differs from the paper: no paper; this is a floor.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, Random
        >>> x = Entries(keys=torch.ones(1, 2, 64, 4), values=torch.ones(1, 2, 64, 4))
        >>> Random(seed=1).select(x, "50%").count
        28

    Paper: 000, no paper
    Test: tests/kv/test_floors.py
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[Paper] = Paper(0, "Entries drawn by lot", "no paper")

    seed: int = knob(0, "of the draw", other=1, at={"budget": "50%"})

    def score(self, x: Entries) -> Tensor:
        lot = torch.Generator().manual_seed(self.seed * _LAYERS + x.layer)
        drawn = torch.rand(x.shape[1:], generator=lot).to(x.keys.device)  # [H, T]
        return drawn.expand(x.shape).masked_fill(~x.shown(), -torch.inf)
