"""A ring of memory between who fills it and who empties it: allocated once, taken in order, given back in order.

ring = Ring(64 << 20)
slot = ring.take(n)      # waits while there is no room; the one that fills has its brake here
slot[:] = ...            # then somebody else writes it to disk
ring.free(slot)          # its room comes back as soon as all older slots are free, too
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from holdall.errors import BadInput, BudgetError, HoldallError

BLOCK = 4096  # slots begin at multiples of it, so that a disk can take them past the page cache


class Ring:
    """`capacity` bytes, touched at once, so that no save pays for page faults.

    A slot is in one piece: where the end is too near it begins at the start, and the gap comes back with it. Slots may
    be freed in any order; room is given out again in the order in which it was taken, so nobody waits for a slot that
    is younger than the one it waits with. memory: bytes that somebody else allocated (pinned ones), else a mapping of
    its own, which goes back to the system as a whole.
    """

    def __init__(self, capacity: int, memory: Any = None):
        if capacity < 1:
            raise BadInput("ring", capacity, "bytes, one at least")
        self._memory = np.frombuffer(mmap.mmap(-1, capacity) if memory is None else memory, np.uint8)
        self._memory.fill(0)
        self.capacity = len(self._memory)
        self._head = self._tail = 0  # bytes ever taken and ever given back, gaps included
        self._held: deque[int] = deque()  # addresses of slots, the oldest first
        self._sizes: dict[int, int] = {}  # address -> bytes to give back
        self._freed: set[int] = set()
        self._changed = threading.Condition()
        self._closed: str | None = None
        self.waited = 0  # takes that found no room
        self.waited_seconds = 0.0
        self.most = 0  # bytes that were held at once

    def take(self, nbytes: int, timeout: float | None = None) -> np.ndarray:
        """A slot of `nbytes`, when there is room; HoldallError after `timeout` seconds, or where the ring is closed."""
        if not 0 < nbytes <= self.capacity:
            raise BudgetError(self.capacity, nbytes, who="a ring", why="one slot")
        with self._changed:
            if self._gap(nbytes) is None and self._closed is None:
                self.waited += 1
                began = time.perf_counter()
                there = self._changed.wait_for(lambda: self._closed or self._gap(nbytes) is not None, timeout)
                self.waited_seconds += time.perf_counter() - began
                if not there:
                    raise HoldallError(f"the ring of {self.capacity} bytes was full for {timeout} s")
            if self._closed is not None:
                raise HoldallError(self._closed)
            gap = self._gap(nbytes)
            assert gap is not None
            at = (self._head + gap) % self.capacity
            slot = self._memory[at : at + nbytes]
            room = min(-(-nbytes // BLOCK) * BLOCK, self.capacity - at)
            self._head += gap + room
            address = slot.ctypes.data
            self._held.append(address)
            self._sizes[address] = gap + room
            self.most = max(self.most, self._head - self._tail)
            return slot

    def _gap(self, nbytes: int) -> int | None:
        """Bytes to leave out before a slot in one piece; None where there is no room now."""
        if not self._held:
            self._head = self._tail = 0
        left = self.capacity - self._head % self.capacity
        gap = 0 if nbytes <= left else left
        room = min(-(-nbytes // BLOCK) * BLOCK, self.capacity if gap else left)
        return gap if self._head + gap + room - self._tail <= self.capacity else None

    def free(self, slot: np.ndarray) -> None:
        """Give a slot back, once."""
        with self._changed:
            address = slot.ctypes.data
            if address not in self._sizes or address in self._freed:
                raise BadInput("slot", hex(address), "one that this ring gave and that is still held")
            self._freed.add(address)
            while self._held and self._held[0] in self._freed:
                oldest = self._held.popleft()
                self._freed.remove(oldest)
                self._tail += self._sizes.pop(oldest)
            self._changed.notify_all()

    @property
    def held(self) -> int:
        """Bytes that are not free, gaps included."""
        with self._changed:
            return self._head - self._tail if self._held else 0

    def close(self, why: str = "the ring is closed") -> None:
        """Whoever waits for room, and whoever asks for it from now on, gets `why` as an error."""
        with self._changed:
            self._closed = why
            self._changed.notify_all()
