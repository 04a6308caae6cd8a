"""Paging: an arena of spans in one file on disk, and windows of what may be in memory at once.

An arena writes and reads in threads of its own and gives futures; what goes wrong there is raised by `result()`. It
goes past the page cache (O_DIRECT), or where the file system does not have that drops what it wrote from the cache, so
that memory is not the store. A `Window` is a byte budget over named things that says what has to leave.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from holdall.errors import BadInput, BudgetError
from holdall.parts.paging_file import BLOCK, BlockFile, aligned, as_bytes, buffer, memory_of

__all__ = ["BLOCK", "Arena", "Span", "Window", "aligned", "as_bytes", "buffer", "memory_of"]


class Span(NamedTuple):
    """A place in the arena: whole blocks, of which `nbytes` were asked for."""

    start: int
    nbytes: int

    @property
    def room(self) -> int:
        return max(aligned(self.nbytes), BLOCK)


class Arena:
    """Spans in one file, written and read in the background.

    folder: where the file is; None: the system's temporary folder. name: kept under that name; None: the file has none
    and is gone with the arena. direct: past the page cache, where the file system can. rate: bytes a second at most,
    both ways together, for trials of slow disks.

        with Arena() as arena:
            span = arena.place(x.nbytes)
            arena.write(span, x).result()
            arena.read(span, y).result()
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        direct: bool = True,
        threads: int = 2,
        *,
        name: str | None = None,
        rate: float | None = None,
    ):
        self._file = BlockFile(folder, name, direct, rate)
        self.path, self.direct = self._file.path, self._file.direct
        self._end = 0
        self._holes: list[tuple[int, int]] = []  # (start, bytes), in order, none beside another
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, "holdall-arena")
        self._lock = threading.Lock()
        self._told = dict.fromkeys(("read_bytes", "written_bytes", "reads", "writes"), 0.0)
        self._told |= {"read_seconds": 0.0, "write_seconds": 0.0}

    def place(self, nbytes: int) -> Span:
        """A span of its own: the smallest freed place that is large enough, else the end of the file."""
        if nbytes < 0:
            raise BadInput("bytes", nbytes, "a size")
        found = Span(0, nbytes)
        need = found.room
        with self._lock:
            fits = [(size, start) for start, size in self._holes if size >= need]
            if fits:
                size, start = min(fits)
                self._holes.remove((start, size))
                if size > need:
                    insort(self._holes, (start + need, size - need))
            else:
                start, self._end = self._end, self._end + need
        return found._replace(start=start)

    def free(self, span: Span) -> None:
        """Its blocks may be given to others; only when all that was asked of it is done."""
        start, size = span.start, span.room
        with self._lock:
            taken = any(a < start + size and start < a + n for a, n in self._holes)
            if taken or start + size > self._end:
                raise BadInput("span", tuple(span), "one that was placed and is not free")
            for a, n in [h for h in self._holes if h[0] + h[1] == start or h[0] == start + size]:
                self._holes.remove((a, n))
                start, size = min(a, start), size + n
            if start + size == self._end:
                self._end = start
            else:
                insort(self._holes, (start, size))

    @property
    def nbytes(self) -> int:
        """Of the file that are in use."""
        with self._lock:
            return self._end - sum(n for _, n in self._holes)

    @property
    def file_bytes(self) -> int:
        return self._file.size

    def buffer(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] that is read into and written from without a copy."""
        return buffer(nbytes)

    def write(self, span: Span, x: Any, at: int = 0) -> Future[int]:
        """Write memory, which must stay as it is until then, at a whole block `at` of the span: how many bytes. The
        rest of the last block is filled with zeros."""
        return self._soon(self._store, span, as_bytes(x), at)

    def read(self, span: Span, out: Any, at: int = 0) -> Future[int]:
        """Fill memory from a whole block `at` of the span on: how many bytes."""
        return self._soon(self._fetch, span, as_bytes(out), at)

    def sync(self) -> None:
        """Until all that was written is on the disk, a power cut included."""
        self._file.sync()

    def traffic(self) -> dict[str, float]:
        with self._lock:
            return dict(self._told)

    def close(self) -> None:
        """Finish what is under way and close the file; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _soon(self, act: Any, span: Span, memory: np.ndarray, at: int) -> Future[int]:
        if at % BLOCK or at < 0 or at + memory.size > span.room:
            raise BadInput("place", f"{memory.size} bytes at {at}", f"whole blocks within {span.room} bytes")
        if self._pool is None:
            raise BadInput("arena", self.path, "one that is open")
        return self._pool.submit(act, memory, span.start + at)

    def _store(self, memory: np.ndarray, at: int) -> int:
        return self._counted(memory, at, True, ("written_bytes", "writes", "write_seconds"))

    def _fetch(self, memory: np.ndarray, at: int) -> int:
        return self._counted(memory, at, False, ("read_bytes", "reads", "read_seconds"))

    def _counted(self, memory: np.ndarray, at: int, out: bool, ways: tuple[str, str, str]) -> int:
        start = time.perf_counter()
        self._file.move(memory, at, out)
        with self._lock:
            for way, more in zip(ways, (memory.size, 1, time.perf_counter() - start), strict=True):
                self._told[way] += more
        return memory.size


class Window:
    """At most `capacity` bytes of named things. What leaves first: "lru", "fifo", or a function of the name, of which
    the lowest score leaves. Pinned things stay. Counts `hits`, `misses` and `evicted`; moving bytes is the caller's.
    """

    def __init__(self, capacity: int, order: str | Callable[[Hashable], float] = "lru"):
        if not callable(order) and order not in ("lru", "fifo"):
            raise BadInput("order", order, '"lru", "fifo" or a function of the name')
        self.capacity, self.order = capacity, order
        self._held: dict[Hashable, int] = {}  # the first leaves first
        self._pinned: set[Hashable] = set()
        self.hits = self.misses = self.evicted = 0

    @property
    def nbytes(self) -> int:
        return sum(self._held.values())

    def __contains__(self, name: Hashable) -> bool:
        return name in self._held

    def take(self, name: Hashable, nbytes: int, pin: bool = False) -> list[Hashable]:
        """Have a thing in the window, and what has to leave for it, in order. BudgetError where it cannot be, and
        then nothing has changed."""
        if name in self._held:
            self.hits += 1
            if self.order == "lru":
                self._held[name] = self._held.pop(name)
            gone: list[Hashable] = []
        else:
            gone = self._leaving(nbytes)
            self.misses += 1
            self.evicted += len(gone)
            for old in gone:
                del self._held[old]
            self._held[name] = nbytes
        if pin:
            self._pinned.add(name)
        return gone

    def unpin(self, name: Hashable) -> None:
        self._pinned.discard(name)

    def drop(self, name: Hashable) -> None:
        """It has left by itself."""
        self._held.pop(name, None)
        self._pinned.discard(name)

    def _leaving(self, nbytes: int) -> list[Hashable]:
        free = self.capacity - self.nbytes
        can = [n for n in self._held if n not in self._pinned]
        if callable(self.order):
            can.sort(key=self.order)
        gone = []
        while free < nbytes and can:
            gone.append(can.pop(0))
            free += self._held[gone[-1]]
        if free < nbytes:
            least = nbytes + sum(self._held[n] for n in self._pinned if n in self._held)
            raise BudgetError(self.capacity, least, why="a window with what has to stay in it")
        return gone
