"""Slots: the session of `kv.vattention`. It decides when pages come and go, and never holds more than its pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdall.errors import BadInput
from holdall.kinds import Session
from holdall.kv.pages import Geometry, Pages, Prefix
from holdall.kv.pool import Held, Pool

if TYPE_CHECKING:
    from torch import Tensor

    from holdall.kv.vattention import VAttention


class Slots(Session):
    """B places for a context of up to S tokens, in plain tensors; pages stand behind them as far as they are needed.

        session.step([17, 0, 230])            before a pass: how long each slot will be after it; 0 is inactive
        session.keys[layer][slot, :17]        [T, H, D], a view; write the new tokens there and attend to it
        session.step([18, 0, 231])

    Addresses never change: a view stays right for as long as its request lives. A thread maps what the next step is
    going to need while the caller computes (`step_async`; `step` too, if the method says `background`). Not for
    several threads at a time.
    """

    def __init__(self, method: VAttention, geometry: Geometry, budget: int):
        self.method, self.geometry = method, geometry
        pages = Pages(geometry, method.slots, method.length, method.page, method.sliced)
        size = min(budget // pages.block, method.slots * pages.most)
        self.pool = Pool(pages, size, [Held() for _ in range(method.slots)])
        self.lengths = [0] * method.slots
        self.block = pages.block  # bytes that come and go at a time
        self._pages = pages
        self._thread: threading.Thread | None = None
        self._waited = 0.0
        self._open = True

    @property
    def keys(self) -> list[Tensor]:
        """[B, S, H, D] for each layer."""
        self._check()
        return self._pages.keys

    @property
    def values(self) -> list[Tensor]:
        """[B, S, H, D] for each layer."""
        self._check()
        return self._pages.values

    @property
    def budget(self) -> int:
        """Bytes that may be mapped, in whole blocks."""
        return self.pool.size * self.block

    @property
    def nbytes(self) -> int:
        """Bytes that are mapped, as this session counts them."""
        self._settle()
        return self.pool.held * self.block

    @property
    def free(self) -> int:
        """Bytes that further tokens may take: what is not mapped, and what is mapped but not needed."""
        self._settle()
        spare = sum(self.pool.spare(i, n) for i, n in enumerate(self.lengths))
        return (self.pool.free + spare) * self.block

    def cost(self, tokens: int) -> int:
        """Bytes that so many tokens of one request take, in whole blocks."""
        return self._pages.need(tokens) * self.block

    def resident(self) -> int:
        """Bytes that the kernel has behind the slots now, measured."""
        self._settle()
        return self._pages.resident(self.pool.prefixes)

    def lowest(self) -> int | None:
        """The first inactive slot, which is the one most likely to have pages; None: all are busy."""
        return next((i for i, n in enumerate(self.lengths) if n == 0), None)

    def step(self, x: Sequence[int]) -> None:
        """Make room for slots of these lengths (fewer than there are slots: the others are inactive).

        BudgetError, with nothing changed, where the pool has not enough even after taking back what is not needed.
        """
        if self.method.background:
            self.step_async(x)
        else:
            self._serve(x)

    def step_async(self, lengths: Sequence[int]) -> None:
        """`step`, and then a thread maps what the next one is going to need, while the caller computes."""
        self._serve(lengths)
        if (wanted := self._foreseen()) and self.pool.free:
            self._thread = threading.Thread(target=self._ahead, args=(wanted,), name="holdall-pages")
            self._thread.start()

    def release(self, slot: int, worth: int = 0) -> None:
        """The request in a slot has ended, as a step says in which its length is 0. worth: of what it leaves there."""
        self._settle()
        self.lengths[slot], self.pool.slots[slot].worth = 0, worth
        self._let_go(slot)

    def kept(self, slot: int) -> int:
        """Tokens of a slot that still stand there: of an inactive one, until others needed the memory."""
        self._settle()
        return self.pool.slots[slot].kept

    def begin(self, slot: int, tokens: int, source: int, room: int | None = None) -> None:
        """Let an inactive slot begin with the first tokens that stand in another one, as a copy, or in itself.

        room: tokens that it may come to have; what it has beyond goes, but for some `extra` blocks. BudgetError, with
        nothing copied, where the pool has not enough beside those tokens.
        """
        self._settle()
        if self.lengths[slot] or not 0 <= tokens <= self.kept(source):
            raise BadInput("slot", slot, f"an inactive slot, and up to {self.kept(source)} tokens of another")
        if room is not None:
            self.pool.cut(slot, self._pages.need(max(room, tokens)) + self.method.extra)
        asked = [tokens if i == slot else max(n, tokens * (i == source)) for i, n in enumerate(self.lengths)]
        self.pool.take(self.pool.missing(slot, 0, tokens), asked, "the beginning of a context")
        self.pool.grow(slot, self._pages.need(tokens))
        for layer in [*self.keys, *self.values] if slot != source else []:
            layer[slot, :tokens] = layer[source, :tokens]
        self.lengths[slot] = self.pool.slots[slot].kept = tokens

    def share(self, slot: int, tokens: int) -> Prefix:
        """The first tokens of a slot as a prefix that other slots can `attach`; the slot shows it from then on too.

        Free blocks for all of it are needed for a moment.
        """
        self._settle()
        if not 0 < tokens <= self.lengths[slot] or self.pool.slots[slot].prefix is not None:
            raise BadInput("prefix", tokens, f"1 to {self.lengths[slot]} tokens of a slot without a prefix")
        self.pool.take(self._pages.need(tokens), self.lengths, "a prefix, copied once")
        return self.pool.keep(slot, tokens)

    def attach(self, slot: int, prefix: Prefix) -> None:
        """Let an inactive slot begin with a prefix: its whole blocks are the same memory, the rest is copied."""
        self._settle()
        if self.lengths[slot] or prefix not in self.pool.prefixes or not prefix.open:
            raise BadInput("slot", slot, "an inactive slot, and a prefix that was not dropped")
        self.pool.cut(slot, 0)
        self.pool.take(prefix.blocks - prefix.whole, self.lengths, "the end of a prefix")
        self.pool.show(slot, prefix)
        try:
            self.pool.grow(slot, prefix.blocks)
            self._pages.copy_rest(slot, prefix)
        except OSError:
            self.pool.cut(slot, 0)
            raise
        self.lengths[slot] = self.pool.slots[slot].kept = prefix.tokens

    def drop(self, prefix: Prefix) -> None:
        """No further slot will ask for this prefix; its memory goes when the last one that shows it ends."""
        self._settle()
        self.pool.drop(prefix)

    def traffic(self) -> dict[str, float]:
        """Blocks mapped, unmapped, mapped by the thread, shown, copied when written; steps, also refused; bytes."""
        self._settle()
        pool, regions = self.pool, self._pages.regions
        sizes = {"block_bytes": self.block, "page_groups": len(regions), "peak_bytes": pool.peak * self.block}
        seconds = {"map_seconds": pool.map_seconds, "wait_seconds": self._waited}
        return {**pool.counts, **sizes, "reserved_bytes": sum(r.nbytes for r in regions), **seconds}

    def close(self) -> None:
        if self._open:
            self._settle()
            self._open = False
            self.pool.close()

    def _check(self) -> None:
        if not self._open:
            raise BadInput("slots", "a closed session", "an open one")

    def _settle(self) -> None:
        """Wait for the thread, if it still maps."""
        self._check()
        if self._thread is not None:
            start = time.perf_counter()
            self._thread.join()
            self._thread = None
            self._waited += time.perf_counter() - start

    def _serve(self, lengths: Sequence[int]) -> None:
        self._settle()
        b, s, pool = self.method.slots, self.method.length, self.pool
        if len(lengths) > b or any(not 0 <= n <= s for n in lengths):
            raise BadInput("lengths", list(lengths), f"at most {b} lengths from 0 to {s}")
        before, asked = self.lengths, [*lengths, *[0] * (b - len(lengths))]
        wanted = sum(pool.missing(i, before[i], n) for i, n in enumerate(asked))
        short = wanted - pool.free - sum(pool.spare(i, n) for i, n in enumerate(asked))
        if short > 0:
            pool.counts["refused"] += 1
            raise pool.too_little(short, "for contexts of these lengths")
        self.lengths = asked
        try:
            self._finish()
            pool.take(wanted, asked, "these lengths")
            for slot, n in enumerate(asked):
                pool.own(slot, pool.to_copy(slot, before[slot], n))
                pool.grow(slot, self._pages.need(n))
                pool.slots[slot].kept = n or pool.slots[slot].kept
        except OSError:  # those that ended have ended; the others are as long as they were
            self.lengths = [n if now else 0 for n, now in zip(before, asked, strict=True)]
            raise
        pool.counts["steps"] += 1

    def _finish(self) -> None:
        """What inactive slots give back of their own accord, by the method's way of reclaiming."""
        idle = [i for i, n in enumerate(self.lengths) if n == 0]
        for slot in idle:
            self._let_go(slot)
        if self.method.reclaim == "gradual":  # one block, and never from the slot that is to be taken next
            full = [i for i in idle[1:] if self.pool.slots[i].mapped]
            if full:
                self.pool.cut(full[-1], self.pool.slots[full[-1]].mapped - 1)

    def _let_go(self, slot: int) -> None:
        if self.pool.slots[slot].prefix is not None or self.method.reclaim == "at once":
            self.pool.cut(slot, 0)

    def _foreseen(self) -> list[tuple[int, int]]:
        """Slots, and the blocks that each is to have: for its next token, then for a few more; then the next slot's."""
        method, need, most = self.method, self._pages.need, self._pages.most
        active = [(i, n) for i, n in enumerate(self.lengths) if n]
        wanted = [(i, need(n + 1)) for i, n in active]
        if method.extra:
            wanted += [(i, min(need(n + method.ahead), need(n + 1) + method.extra)) for i, n in active]
            wanted += [(slot, method.extra) for slot in [self.lowest()] if slot is not None]
        return [(i, min(n, most)) for i, n in wanted if min(n, most) > self.pool.slots[i].mapped]

    def _ahead(self, wanted: list[tuple[int, int]]) -> None:
        """In the thread: map them as far as the pool is free; nothing is taken back for it."""
        pool = self.pool
        before = pool.counts["mapped"]
        try:
            for slot, blocks in wanted:
                pool.grow(slot, min(blocks, pool.slots[slot].mapped + pool.free))
        except OSError:  # the step that needs it will ask again, and say so
            pool.counts["failed_ahead"] += 1
        pool.counts["mapped_ahead"] += pool.counts["mapped"] - before
