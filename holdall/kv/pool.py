"""Pool: which blocks stand behind which slot, counted before any of them is touched."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from holdall.errors import BudgetError
from holdall.kv.pages import Pages, Prefix

_COUNTED = ("steps", "mapped", "unmapped", "mapped_ahead", "shown", "copied", "refused", "failed_ahead")


@dataclass(eq=False)
class Held:
    """What a slot has. Its blocks are numbered from its beginning; the first `shown` of them belong to a prefix.

    kept: tokens of its last context whose place was not taken away since; blocks mapped again behind them are empty.
    worth: of those tokens; what is worth least goes first.
    """

    mapped: int = 0
    shown: int = 0
    prefix: Prefix | None = None
    kept: int = 0
    worth: int = 0


@dataclass(eq=False)
class Pool:
    """At most `size` blocks, those of prefixes included (once, however many slots show them)."""

    pages: Pages
    size: int
    slots: list[Held]
    prefixes: list[Prefix] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    map_seconds: float = 0.0
    peak: int = 0

    @property
    def held(self) -> int:
        """Blocks that are mapped."""
        return sum(s.mapped - s.shown for s in self.slots) + sum(p.blocks for p in self.prefixes)

    @property
    def free(self) -> int:
        return self.size - self.held

    def spare(self, slot: int, length: int) -> int:
        """Blocks of its own that a slot of that length does not need."""
        s = self.slots[slot]
        if length == 0:
            return s.mapped - s.shown
        return max(0, s.mapped - max(s.shown, self.pages.need(length)))

    def missing(self, slot: int, before: int, length: int) -> int:
        """Blocks that a slot needs to go from one length to another."""
        return max(0, self.pages.need(length) - self.slots[slot].mapped) + self.to_copy(slot, before, length)

    def to_copy(self, slot: int, before: int, length: int) -> int:
        """Shown blocks that the tokens to come will be written into."""
        shown = self.slots[slot].shown
        if length <= before or not shown:
            return 0
        return max(0, shown - before * self.pages.row // self.pages.page)

    def take(self, blocks: int, lengths: Sequence[int], why: str) -> None:
        """Bring the pool to so many free blocks: take back what no length needs.

        First from slots in use, then what is worth least, from the highest slot down.
        """
        worth = [s.worth if n == 0 else 0 for s, n in zip(self.slots, lengths, strict=True)]
        for slot in sorted(range(len(self.slots)), key=lambda i: (worth[i], -i)):
            short = blocks - self.free
            if short <= 0:
                return
            spare = self.spare(slot, lengths[slot])
            if spare:
                self.cut(slot, self.slots[slot].mapped - min(spare, short))
        if blocks > self.free:
            raise self.too_little(blocks - self.free, why)

    def too_little(self, short: int, why: str) -> BudgetError:
        block = self.pages.block
        return BudgetError(self.size * block, (self.size + short) * block, who="kv.vattention", why=why)

    def grow(self, slot: int, blocks: int) -> None:
        """Map what a slot has not, up to so many blocks."""
        s = self.slots[slot]
        if blocks <= s.mapped:
            return
        start = time.perf_counter()
        self.pages.grow(slot, s.mapped, blocks)
        self.map_seconds += time.perf_counter() - start
        self.counts["mapped"] += blocks - s.mapped
        s.mapped = blocks
        self.peak = max(self.peak, self.held)

    def cut(self, slot: int, blocks: int) -> None:
        """Unmap what a slot has beyond so many blocks; at 0 it also lets go of its prefix."""
        s = self.slots[slot]
        left = max(blocks, s.shown)
        self.pages.shrink(slot, left, s.mapped)
        self.counts["unmapped"] += max(0, s.mapped - left)
        s.mapped = min(s.mapped, left)
        s.kept = min(s.kept, s.mapped * self.pages.page // self.pages.row)
        prefix = s.prefix
        if blocks == 0 and prefix is not None:
            self.pages.hide(slot, 0, s.shown)
            s.prefix, s.shown, s.mapped, s.kept = None, 0, 0, 0
            prefix.users -= 1
            self.forget(prefix)

    def own(self, slot: int, blocks: int) -> None:
        """Copies in place of the last so many shown blocks."""
        s = self.slots[slot]
        if not blocks or s.prefix is None:
            return
        self.pages.own(slot, s.prefix, s.shown - blocks, s.shown)
        s.shown -= blocks
        self.counts["copied"] += blocks
        self.peak = max(self.peak, self.held)

    def keep(self, slot: int, tokens: int) -> Prefix:
        """The first tokens of a slot as a prefix, which the slot shows from then on."""
        prefix = self.pages.keep(slot, tokens)
        self.prefixes.append(prefix)
        self.peak = max(self.peak, self.held)
        try:
            self.show(slot, prefix, keep=True)
        except OSError:
            self.drop(prefix)
            raise
        return prefix

    def show(self, slot: int, prefix: Prefix, keep: bool = False) -> None:
        """A prefix's whole blocks, in place of a slot's first ones."""
        self.pages.show(slot, prefix, keep)
        s = self.slots[slot]
        s.prefix, s.shown, s.mapped = prefix, prefix.whole, max(s.mapped, prefix.whole)
        self.counts["shown"] += prefix.whole
        prefix.users += 1

    def drop(self, prefix: Prefix) -> None:
        prefix.open = False
        self.forget(prefix)

    def forget(self, prefix: Prefix) -> None:
        if not prefix.open and not prefix.users and prefix in self.prefixes:
            self.prefixes.remove(prefix)
            os.close(prefix.file)

    def close(self) -> None:
        self.pages.close()
        for prefix in self.prefixes:
            os.close(prefix.file)
        self.prefixes = []
