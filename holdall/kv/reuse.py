"""Reuse: what stands in each slot, and in which one a new request begins, with as much as possible of its prompt there.

A request that ended leaves its tokens in its slot until others need the memory. A prompt that begins with the same
tokens (the next turn of a conversation, the same system prompt) need not read them again: it goes on in that slot, or
takes a copy of the beginning where the slot is busy or holds much more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from holdall.errors import BudgetError
from holdall.kv.slots import Slots

_MOST = 0.75  # of what stands in a slot must be of use for the rest of it to be written over


class Reuse:
    """Gives out the slots of a session and remembers which tokens stand where."""

    def __init__(self, slots: Slots):
        self.slots = slots
        self._left: dict[int, list[int]] = {}  # inactive slots, the longest left first: what stands there
        self._ended = 0

    def leave(self, slot: int, tokens: Sequence[int]) -> None:
        """The request in this slot ended; these tokens were written there."""
        self._ended += 1
        self.slots.release(slot, worth=self._ended)
        self._left[slot] = list(tokens)

    def begin(self, ids: Sequence[int], room: int, running: Mapping[int, Sequence[int]]) -> tuple[int, int]:
        """(an inactive slot, how many of `ids` stand there already); the last one is always left to read.

        room: tokens that the request may come to have. running: slots that are busy, and what was written there; not
        all are.
        """
        alike = {slot: _alike(ids[:-1], tokens) for slot, tokens in {**self._standing(), **running}.items()}
        source = max(alike, key=lambda slot: (alike[slot], slot in self._left), default=-1)
        tokens = alike.get(source, 0)
        source = source if tokens else -1
        here = source in self._left and tokens >= _MOST * len(self._left[source])
        slot = source if tokens and here else self._least(running, source)
        try:
            self.slots.begin(slot, tokens, source if tokens else slot, room)
        except BudgetError:  # there is no room for both
            if source not in self._left:
                raise
            slot = source
            self.slots.begin(slot, tokens, source, room)
        self._left.pop(slot, None)
        return slot, tokens

    def _standing(self) -> dict[int, list[int]]:
        """Inactive slots, and which of their tokens are still there."""
        self._left = {slot: tokens[: self.slots.kept(slot)] for slot, tokens in self._left.items()}
        return self._left

    def _least(self, running: Mapping[int, Sequence[int]], source: int) -> int:
        """The slot whose tokens are worth least: none, or those left the longest ago, and the source's at last."""
        inactive = [slot for slot in range(self.slots.method.slots) if slot not in running]
        order = list(self._left)
        return min(
            inactive,
            key=lambda i: (i == source, bool(self._left.get(i)), order.index(i) if i in order else 0),
        )


def _alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))
