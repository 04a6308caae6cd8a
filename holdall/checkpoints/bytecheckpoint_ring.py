"""A ring of memory that boxes wait in from the copy until they are written: taken in order, given back in order."""

from __future__ import annotations

import threading

import numpy as np


class Ring:
    """`capacity` bytes, allocated and touched once. `take` waits until there is room."""

    def __init__(self, capacity: int):
        self._memory = np.empty(capacity, np.uint8)
        self._memory.fill(0)  # the first save does not pay for page faults
        self.capacity = capacity
        self._head = self._tail = 0  # bytes ever taken, bytes ever given back; gaps at the end included
        self._held: dict[int, int] = {}  # address of a slot -> bytes to give back
        self._changed = threading.Condition()
        self.waited = 0

    def take(self, nbytes: int) -> np.ndarray:
        assert nbytes <= self.capacity
        with self._changed:
            while (gap := self._gap(nbytes)) is None:
                self.waited += 1
                self._changed.wait()
            at = (self._head + gap) % self.capacity
            self._head += gap + nbytes
            slot = self._memory[at : at + nbytes]
            self._held[slot.ctypes.data] = gap + nbytes
            return slot

    def _gap(self, nbytes: int) -> int | None:
        """Bytes to leave out, since a slot is in one piece; None where there is no room now."""
        if self._head == self._tail:
            self._head = self._tail = 0
        over = self._head % self.capacity + nbytes > self.capacity
        gap = -self._head % self.capacity if over else 0
        return gap if self._head + gap + nbytes - self._tail <= self.capacity else None

    def free(self, slot: np.ndarray) -> None:
        """The oldest slot that is still held."""
        with self._changed:
            self._tail += self._held.pop(slot.ctypes.data)
            self._changed.notify()
