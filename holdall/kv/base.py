"""The contract of the room: a method scores the entries of one layer; the base keeps the best within a budget.

A merger writes `merge`, with a `bias` where an entry stands for several tokens. A method with tiers writes `select`
and returns an `Entries` subclass whose `dense` and `attend` unpack on demand. One that shares the budget among
layers writes `portion` or `share`; one that goes on judging while it generates says `follows` and writes `settle`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

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
    biased: ClassVar[bool] = False  # whether kept entries have a bias, in 16 bits
    follows: ClassVar[bool] = False  # whether it judges generated tokens too; kept entries then have a mass
    tiered: ClassVar[bool] = False  # whether it goes on from packed tiers; else they are unpacked for it

    @abstractmethod
    def score(self, x: Entries) -> Tensor:
        """[B, H, T] float32, higher = keep; +inf = always, -inf = never while there is another."""

    def least(self, x: Entries) -> int:
        """The fewest entries a head that the method can work with."""
        return min(1, x.count)

    def ranked(self, x: Entries, room: int) -> Tensor:
        """`score`, where what must stay depends on how many entries of a head there is room for."""
        return self.score(x)

    def asks(self, tokens: int) -> tuple[int, float]:
        """How many of the last queries `score` sees of so many tokens so far; the share, by lot, of earlier ones."""
        return 0, 0.0

    def why(self) -> str:
        """What the least is made of, for the error."""
        return ""

    def portion(self, layer: int) -> float | None:
        """A layer's part of a budget that is a share; 1: as all others; None: `share` tells, of all layers at once."""
        return 1.0

    def spread(self, x: Entries, limit: int) -> int:
        """A layer's bytes of a budget that is a share, where `limit` is what each layer gets if all get alike."""
        portion = self.portion(x.layer)
        return limit if portion is None else int(limit * portion)

    def prepared(self, model: Any) -> Self:
        """The recipe with what it wants to know of a transformers module, found once; most want nothing."""
        return self

    def share(self, layers: list[Entries], total: int) -> list[int]:
        """Bytes for each layer out of `total`, where all layers are judged together."""
        return apportion(total, [x.original for x in layers], [self.smallest(x) for x in layers])

    def each(self, x: Entries) -> int:
        """Bytes of one kept entry of every head and row together, with all that this method keeps beside it."""
        b, h, _ = x.shape
        return x.each + b * h * (2 * self.biased + 4 * self.follows)

    def smallest(self, x: Entries) -> int:
        """The fewest bytes that the method can bring `x` down to."""
        return x.nbytes if (least := self.least(x)) >= x.count else least * self.each(x)

    def weighed(self, x: Entries) -> Entries:
        """`x` with the `mass` that `score` needs, where the method `follows`; the queries are then used up."""
        return x

    def settle(self, x: Entries, budget: Budget | None) -> Entries:
        """Where the method `follows`: `x` shows the queries of generated tokens; back under the layer's budget."""
        return x

    def select(self, x: Entries, budget: Spend = None) -> Entries:
        """A smaller `x`, in the same order, that shares no memory with the large one.

        The budget is of the bytes of all tokens that went by: a second turn is measured by the whole conversation.
        """
        room = self.room_for(x, Budget.parse(budget))
        if room >= x.count:
            return x.copy()
        x = self.weighed(x.asked(*self.asks(x.tokens)))
        order = self.ranked(x, room).sort(dim=-1, descending=True, stable=True).indices  # [B, H, T]
        return self.merge(x, order[..., :room].sort(dim=-1).values)

    def room_for(self, x: Entries, budget: Budget | None) -> int:
        """How many entries a head may keep."""
        if budget is None:
            return x.count if self.capacity is None else max(self.capacity, self.least(x))
        limit = budget.limit(x.original, x.tokens * x.elements)
        if limit >= x.nbytes:
            return x.count
        if limit < max(self.each(x), self.smallest(x)):
            raise BudgetError(limit, self.smallest(x), "bytes", who=self.full_name(), why=self.why())
        return limit // self.each(x)
