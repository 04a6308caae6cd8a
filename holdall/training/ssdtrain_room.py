"""Memory for what is on its way to disk and back: buffers that are used again, and rates as they were seen."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import Any

import numpy as np

from holdall.parts.paging import aligned, buffer


class Rate:
    """Bytes a second while something was under way, whatever the number of threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # garbage may be collected, and something end, while it is held
        self._count, self._since = 0, 0.0
        self.nbytes, self.seconds = 0, 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._count:
                self._since = time.perf_counter()
            self._count += 1

    def end(self, nbytes: int) -> None:
        """nbytes: that went by; 0 where nothing did."""
        with self._lock:
            now = time.perf_counter()
            self.seconds += now - self._since
            self._since = now
            self._count -= 1
            self.nbytes += nbytes

    def told(self) -> tuple[int, float]:
        with self._lock:
            return self.nbytes, self.seconds


class Buffers:
    """Memory that files are read into: what comes back is given out again, to tensors of the same size."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._back: deque[np.ndarray] = deque()  # filled by finalizers, which may run at any moment
        self.free_bytes = self.nbytes = 0

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] that comes back by itself when nobody looks at it any more."""
        self._collect()
        room = aligned(nbytes)
        same = self._free.get(room)
        if same:
            raw = same.pop()
            self.free_bytes -= room
        else:
            raw = buffer(room)
            self.nbytes += room
        view = raw[:nbytes]
        weakref.finalize(view, self._back.append, raw).atexit = False
        return view

    def held(self) -> int:
        """Bytes that somebody looks at."""
        self._collect()
        return self.nbytes - self.free_bytes

    def has(self, nbytes: int) -> bool:
        self._collect()
        return bool(self._free.get(aligned(nbytes)))

    def drop(self, wanted: int) -> int:
        """Give back so many free bytes, or all that are free: how many."""
        self._collect()
        gone = 0
        for room in sorted(self._free, reverse=True):
            while gone < wanted and self._free[room]:
                self._free[room].pop()
                gone += room
        self.free_bytes -= gone
        self.nbytes -= gone
        return gone

    def _collect(self) -> None:
        while self._back:
            raw: Any = self._back.popleft()
            self._free.setdefault(raw.nbytes, []).append(raw)
            self.free_bytes += raw.nbytes
