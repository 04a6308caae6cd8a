"""Floor: everything stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.method import Paper
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, kw_only=True)
class Everything(KVSelector):
    """Keeps the whole cache: what the others are compared with.

    Does nothing at all, and says so with a BudgetError where the budget is smaller than the cache.

    Shapes: keys, values [B, H, T, D].
    Cost: none; holds T * H * 2 * D numbers a layer.
    Knobs: none.
    Differs from the paper: no paper; this is a floor.
    Example:
        >>> import torch
        >>> from holdall.kv import Entries, Everything
        >>> x = Entries(keys=torch.ones(1, 2, 7, 4), values=torch.ones(1, 2, 7, 4))
        >>> Everything().select(x, "100%").count
        7

    Paper: 000, no paper
    Test: tests/kv/test_floors.py
    """

    name: ClassVar[str] = "none"
    paper: ClassVar[Paper] = Paper(0, "The whole cache", "no paper")

    def score(self, x: Entries) -> Tensor:
        return torch.zeros(x.shape)

    def least(self, x: Entries) -> int:
        return x.count

    def why(self) -> str:
        return "it drops nothing"
