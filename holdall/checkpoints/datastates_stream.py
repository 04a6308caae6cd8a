"""From tensors to the bytes of one file: packed into equal chunks, summed, and written past the page cache."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from holdall.checkpoints.shards import Plan, pieces
from holdall.files import _sync_folder

_BUFFERED = 1 << 20  # larger writes through the page cache were several times slower on a virtual disk
_SMALL = 1 << 16  # copies in one go, of what is not contiguous


class Packer:
    """Fills chunks with the leaves of a plan, one after the other; tensors of any size, however small the chunks are.

    take: bytes -> an empty chunk, where it waits for room. give: (chunk, place in the payload), full ones in order.
    copy: (chunk's part, uint8 tensor), for tensors on a device.
    """

    def __init__(
        self,
        plan: Plan,
        chunk: int,
        take: Callable[[int], np.ndarray],
        give: Callable[[np.ndarray, int], None],
        copy: Callable[[np.ndarray, Any], None] | None = None,
    ):
        self._plan, self._chunk, self._take, self._give, self._copy = plan, chunk, take, give, copy
        self._slot: np.ndarray | None = None
        self._used = self._at = self._next = 0
        self.copied = 0

    def run(self, stop: int | None = None) -> None:
        """Take in the plan's sections up to number `stop`, or all; the last chunk goes out when all are in."""
        plan = self._plan
        last = len(plan.sections) if stop is None else stop
        while self._next < last:
            section, leaf = plan.sections[self._next], plan.leaves[self._next]
            plan.leaves[self._next] = None  # memory that was copied is not held
            self._next += 1
            if leaf is None:
                self._put(np.zeros(section.stop - section.start, np.uint8))
                continue
            if isinstance(leaf, np.ndarray):
                self._put(leaf)
            else:
                for piece in pieces(leaf, min(self._chunk, _SMALL)):
                    self._put(piece.numpy() if piece.device.type == "cpu" else piece)
            self.copied += section.stop - section.start
        if self._next == len(plan.sections) and self._used:
            self._out()

    def _put(self, source: Any) -> None:
        done, size = 0, len(source)
        while done < size:
            if self._slot is None:
                self._slot = self._take(min(self._chunk, self._plan.payload - self._at))
            n = min(size - done, len(self._slot) - self._used)
            place = self._slot[self._used : self._used + n]
            if isinstance(source, np.ndarray):
                place[:] = source[done : done + n]  # lets other threads run
            else:
                assert self._copy is not None
                self._copy(place, source[done : done + n])
            done, self._used = done + n, self._used + n
            if self._used == len(self._slot):
                self._out()

    def _out(self) -> None:
        slot, at = self._slot, self._at
        assert slot is not None
        self._at, self._used, self._slot = at + len(slot), 0, None
        self._give(slot, at)

    def drop(self) -> np.ndarray | None:
        """What was taken and not given, where the save ends early."""
        slot, self._slot = self._slot, None
        return slot


class Sink:
    """The file of one rank: room for it is asked for first, so that a full disk is found before anything is written.

    rate: bytes a second at most; 0: no limit. direct: past the page cache, where the file system can.
    """

    def __init__(self, path: Path, plan: Plan, rate: float = 0.0, direct: bool = True):
        self.path, self._plan, self._rate = path, plan, rate
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd, self.direct = _opened(path, flags, direct)
        self._sums = [xxhash.xxh3_128() for _ in plan.sections]
        self._section = self._summed = 0
        self._turn = threading.Lock()
        self._free_at, self.waits, self.writes = 0.0, 0, 0
        try:
            _reserve(self._fd, plan.size)
        except BaseException:
            self.close()
            raise

    def sum(self, chunk: np.ndarray) -> None:
        """Chunks in order: into the checksums of the sections that they hold."""
        start, sections = self._summed, self._plan.sections
        self._summed += len(chunk)
        at = start
        while self._section < len(sections):
            section = sections[self._section]
            stop = min(section.stop, self._summed)
            if stop > at:
                self._sums[self._section].update(chunk[at - start : stop - start].data)
                at = stop
            if section.stop > self._summed:
                break
            self._section += 1

    def write(self, chunk: np.ndarray, at: int) -> None:
        """A chunk to its place in the payload, in any order."""
        self._paced(len(chunk))
        step = len(chunk) if self.direct else _BUFFERED
        for i in range(0, len(chunk), step):
            self._whole(chunk[i : i + step], self._plan.base + at + i)
        self.writes += 1

    def _whole(self, piece: Any, at: int) -> None:
        done = 0
        while done < len(piece):  # a call may do less than was asked
            try:
                n = os.pwrite(self._fd, piece[done:], at + done)
            except OSError as fault:
                if fault.errno != errno.EINVAL or not self.direct:
                    raise
                self._through_cache()
                continue
            if not n:
                raise OSError(errno.EIO, "the disk took no bytes")
            done += n

    def _through_cache(self) -> None:
        """Some file systems take O_DIRECT when a file is opened and not when it is written."""
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct = False

    def _paced(self, nbytes: int) -> None:
        if self._rate <= 0:
            return
        with self._turn:
            now = time.monotonic()
            self._free_at = until = max(self._free_at, now) + nbytes / self._rate
            self.waits += until > now
        time.sleep(until - now)

    def finish(self) -> str:
        """Header, file and folder onto the disk; the digest of the header, which stands for the whole file."""
        assert self._section == len(self._plan.sections), "not all was written"
        head = self._plan.head([s.digest() for s in self._sums])
        if self.direct:
            self._through_cache()
        self._whole(memoryview(head), 0)
        os.fsync(self._fd)
        self.close()
        _sync_folder(self.path.parent)
        return xxhash.xxh3_128_hexdigest(head)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _opened(path: Path, flags: int, direct: bool) -> tuple[int, bool]:
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT, 0o644), True
        except OSError as fault:
            if fault.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o644), False


def _reserve(fd: int, nbytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as fault:
        if fault.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
