"""Flash: pages in append-only files, one for each lane of a drive, read past the kernel's cache and counted."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np

_LANE = 40  # bits of an address that are the page within a lane
_READERS = 3  # reads on their way at a time: one by one, waiting to be woken was most of the time


class Flash:
    """`write` puts pages behind those that are there and tells their addresses; nothing is ever written twice.

    Files have no name from the start, so that nothing is left however the process ends. Where the file system refuses
    O_DIRECT (memory file systems do), pages are dropped from the kernel's cache after each write instead.
    """

    def __init__(self, folder: str, lanes: int, page: int):
        self.lanes, self.page = lanes, page
        self.direct = True
        self._files = [self._opened(folder) for _ in range(lanes)]
        self._next = [0] * lanes
        self._room = mmap.mmap(-1, mmap.PAGESIZE)
        self._readers = ThreadPoolExecutor(_READERS)
        self.written = 0
        self.read_by_lane = np.zeros(lanes, np.int64)

    def _opened(self, folder: str) -> int:
        handle, name = tempfile.mkstemp(prefix=".holdall.drive.", dir=folder)
        os.close(handle)
        try:
            return self._reopened(Path(name))
        finally:
            Path(name).unlink()

    def _reopened(self, path: Path) -> int:
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
        wanted = getattr(os, "O_DIRECT", 0) if self.page % mmap.PAGESIZE == 0 else 0
        if wanted:
            try:
                return os.open(path, flags | wanted)
            except OSError as fault:
                if fault.errno != errno.EINVAL:
                    raise
        self.direct = False
        return os.open(path, flags)

    def write(self, pages: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Append pages [N, page] to those lanes [N], each lane in one go; their addresses [N]."""
        addresses = np.empty(len(pages), np.int64)
        for lane in np.unique(lanes).tolist():
            mine = np.flatnonzero(lanes == lane)
            first = self._next[lane]
            addresses[mine] = (lane << _LANE) + first + np.arange(len(mine))
            room = self._buffer(len(mine))
            room[: len(mine)] = pages[mine]
            self._put(lane, memoryview(self._room)[: len(mine) * self.page], first * self.page)
            self._next[lane] += len(mine)
            self.written += len(mine)
        return addresses

    def _put(self, lane: int, raw: memoryview, at: int) -> None:
        while raw:
            done = os.pwrite(self._files[lane], raw, at)
            raw, at = raw[done:], at + done
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.fdatasync(self._files[lane])
            os.posix_fadvise(self._files[lane], 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, addresses: np.ndarray) -> np.ndarray:
        """The pages at those addresses [N], in their order; neighbours come in one read. [N, page] uint8."""
        order = np.argsort(addresses)
        stored = addresses[order]
        cuts = [0, *(np.flatnonzero(np.diff(stored) != 1) + 1).tolist(), len(stored)]
        runs = [(int(stored[a]), a, b) for a, b in pairwise(cuts) if b > a]
        found = _aligned(len(stored) * self.page)
        shares = [runs[i::_READERS] for i in range(_READERS)]
        others = [self._readers.submit(self._get, some, found) for some in shares[1:] if some]
        self._get(shares[0], found)
        for other in others:
            other.result()
        self.read_by_lane += np.bincount(stored >> _LANE, minlength=self.lanes)
        out = np.empty((len(stored), self.page), np.uint8)
        out[order] = found.reshape(out.shape)
        return out

    def _get(self, runs: Sequence[tuple[int, int, int]], found: np.ndarray) -> None:
        """Runs of neighbours: the address of the first, and the places of all in `found`."""
        for first, start, end in runs:
            lane, at = first >> _LANE, (first & ((1 << _LANE) - 1)) * self.page
            room = memoryview(found.data)[start * self.page : end * self.page]
            while room:
                done = os.preadv(self._files[lane], [room], at)
                if not done:
                    raise OSError(errno.EIO, "a page is not where it was written")
                room, at = room[done:], at + done

    def _buffer(self, pages: int) -> np.ndarray:
        """Aligned room for so many pages."""
        if len(self._room) < pages * self.page:
            self._room = mmap.mmap(-1, -(-pages * self.page // mmap.PAGESIZE) * mmap.PAGESIZE)
        whole = np.frombuffer(self._room, np.uint8)
        return whole[: len(whole) // self.page * self.page].reshape(-1, self.page)

    def close(self) -> None:
        self._readers.shutdown()
        files, self._files = self._files, []
        for file in files:
            os.close(file)


def _aligned(size: int) -> np.ndarray:
    """Room for so many bytes, from an address that O_DIRECT can read to."""
    raw = np.empty(size + mmap.PAGESIZE, np.uint8)
    start = -raw.ctypes.data % mmap.PAGESIZE
    return raw[start : start + size]


def lanes_of(groups: Sequence[int] | np.ndarray, lanes: int, placement: str, seed: int) -> np.ndarray:
    """The lane of each group: in turn along the tokens, or by lot."""
    groups = np.asarray(groups, np.int64)
    if placement == "striped":
        return groups % lanes
    return np.random.default_rng([seed, *groups.shape]).integers(0, lanes, groups.shape)
