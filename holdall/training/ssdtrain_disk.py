"""The way to disk and back: who waits to be written, who was read, and how much memory that takes."""

from __future__ import annotations

import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np

from holdall.parts.paging import Arena, Span
from holdall.training.ssdtrain_entry import Entry
from holdall.training.ssdtrain_passes import Clock
from holdall.training.ssdtrain_room import Buffers, Rate


class Disk:
    """At most `window` bytes that wait to be written or were read; a larger tensor passes alone. cancel: what is
    wanted again before its write began is not written."""

    def __init__(self, arena: Arena, window: int, cancel: bool):
        self.arena, self._window, self._cancel = arena, window, cancel
        self.clock, self.writes, self.reads, self.buffers = Clock(), Rate(), Rate(), Buffers()
        self._waiting: deque[tuple[weakref.ref[Entry], Future[int], int]] = deque()
        # filled by finalizers, which may run at any moment
        self._gone: deque[tuple[Span, Future[int]]] = deque()
        self._faults: list[BaseException] = []
        self.flow: Counter[str] = Counter()

    def send(self, entry: Entry) -> None:
        """Begin to write it, when there is room."""
        self.wait_for(lambda: self.on_the_way() + entry.nbytes <= self._window)
        self.writes.begin()
        try:
            span, future = entry.write(self.arena, self._written)
        except BaseException:
            self.writes.end(0)
            raise
        entry.final = weakref.finalize(entry, self._gone.append, (span, future))
        entry.final.atexit = False
        self._waiting.append((weakref.ref(entry), future, entry.nbytes))

    def wait_for(self, enough: Callable[[], bool]) -> None:
        """Until there is room, or nothing is left that could give some."""
        while not enough():
            if self.buffers.drop(self._window):
                continue
            future = next((f for _, f, _ in self._waiting if not f.done()), None)
            if future is None:
                return
            since = time.perf_counter()
            future.exception()
            self.clock.stall(since)
            self.check()

    def on_the_way(self) -> int:
        """Bytes of memory that wait to be written, or into which was read."""
        still = [(r, f, n) for r, f, n in self._waiting if not f.done() or _here(r)]
        self._waiting = deque(still)
        return sum(n for _, _, n in still) + self.buffers.nbytes

    def turn(self) -> None:
        """Backward begins: what was saved last is wanted first, and is not written any more."""
        for ref, _, nbytes in self._waiting if self._cancel else ():
            entry = ref()
            if entry is not None and entry.pending and entry.stay(self.arena):
                entry.final.detach()
                self.flow["stayed_bytes"] += nbytes

    def read(self, entry: Entry) -> np.ndarray:
        """Its bytes, which are waited for."""
        if entry.lent() is None:
            self.flow["unforeseen"] += 1
            self._fetch(entry)
        since = time.perf_counter()
        held, late = entry.given()
        if late:
            self.clock.stall(since)
            self.flow["late"] += 1
        return held

    def ahead(self, entries: Iterable[Entry], task: int) -> None:
        """Begin to read what this backward pass has not had yet, in order, while there is room."""
        for entry in entries:
            if entry.task == task or entry.here or entry.lent() is not None or not entry.owner.expired():
                continue
            busy = self.on_the_way() - self.buffers.free_bytes
            if busy + entry.nbytes > self._window:
                return
            if not self.buffers.has(entry.nbytes):
                self.buffers.drop(busy + self.buffers.free_bytes + entry.nbytes - self._window)
            self._fetch(entry)
            self.flow["prefetched"] += 1

    def sweep(self) -> None:
        """Places of what nobody wants any more are free, when nothing is written to them any more."""
        for _ in range(len(self._gone)):
            span, future = self._gone.popleft()
            if future.done() or (self._cancel and future.cancel()):
                self.arena.free(span)
            else:
                self._gone.append((span, future))

    def drain(self) -> None:
        """Until all that is to be written is."""
        for future in [*(f for _, f, _ in self._waiting), *(f for _, f in self._gone)]:
            if not future.cancelled():
                future.exception()
        self.check()

    def check(self) -> None:
        """A write that failed is an error of who comes next; what it was to write is still in memory."""
        if self._faults:
            raise self._faults.pop()

    def close(self) -> None:
        self.arena.close()
        self.sweep()
        self.buffers.drop(self.buffers.nbytes)

    def _fetch(self, entry: Entry) -> None:
        self.reads.begin()
        try:
            future = entry.fetch(self.arena, self.buffers.take(entry.nbytes))
        except BaseException:
            self.reads.end(0)
            raise
        nbytes = entry.nbytes
        future.add_done_callback(lambda f: self.reads.end(0 if f.exception() else nbytes))

    def _written(self, nbytes: int, fault: BaseException | None) -> None:
        self.writes.end(nbytes)
        if fault is not None:
            self._faults.append(fault)


def _here(ref: Any) -> bool:
    entry = ref()
    return entry is not None and entry.here
