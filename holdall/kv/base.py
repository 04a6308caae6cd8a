"""The contract of the room: a method scores the entries of one layer; the base keeps the best within a budget.

What the next methods need has its place: a merger writes `merge(x, kept)` and folds what is dropped into what
stays; a method with tiers returns an `Entries` subclass whose `keys` and `values` unpack on demand and whose
`nbytes`, `append` and `each` speak of what it packed; a sharing of the budget over layers is a `share` of its own;
a method that judges by more queries than the last few asks for them with `lookback`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.budget import Budget, apportion
from holdall.errors import BudgetError
from holdall.kinds import Selector, Spend

if TYPE_CHECKING:
    from torch import Tensor

    from holdall.kv.entries import Entries


@dataclass(frozen=True, kw_only=True)
class KVSelector(Selector):
    """Keeps, in each head of each row, the entries of a KV cache that later tokens will look at."""

    room: ClassVar[str] = "kv"
    capacity: ClassVar[int | None] = None  # entries kept when no budget is given; None: all of them

    @abstractmethod
    def score(self, x: Entries) -> Tensor:
        """[B, H, T] float32, higher = keep; +inf = always, -inf = never while there is another."""

    def least(self, x: Entries) -> int:
        """The fewest entries a head that the method can work with."""
        return min(1, x.count)

    def lookback(self) -> int:
        """How many of the last queries `score` looks at; the cache remembers no more than these."""
        return 0

    def why(self) -> str:
        """What the least is made of, for the error."""
        return ""

    def share(self, layers: list[Entries], total: int) -> list[int]:
        """Bytes for each layer out of `total`, where the budget is given in bytes for the whole cache."""
        return apportion(total, [x.original for x in layers], [self.smallest(x) for x in layers])

    def smallest(self, x: Entries) -> int:
        """The fewest bytes that the method can bring `x` down to."""
        least = self.least(x)
        return x.nbytes if least >= x.count else least * x.each

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        """A smaller `x`, in the same order, that shares no memory with the large one.

        The budget is of the bytes of all tokens that went by (`x.original`), so that a second turn is measured
        by the whole conversation and not by what the first had left of it.
        """
        room = self.room_for(x, Budget.parse(budget))
        if room >= x.count:
            return x.copy()
        order = self.score(x).sort(dim=-1, descending=True, stable=True).indices  # [B, H, T]
        kept = order[..., :room].sort(dim=-1).values  # [B, H, C]
        return self.merge(x, kept)

    def room_for(self, x: Entries, budget: Budget | None) -> int:
        """How many entries a head may keep; BudgetError where that is less than the method needs."""
        if budget is None:
            return x.count if self.capacity is None else max(self.capacity, self.least(x))
        limit = budget.limit(x.original, x.tokens * x.elements)
        if limit >= x.nbytes:
            return x.count
        if limit < max(x.each, self.smallest(x)):
            raise BudgetError(limit, self.smallest(x), "bytes", who=self.full_name(), why=self.why())
        return limit // x.each
