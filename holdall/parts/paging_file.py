"""One file of whole blocks, past the page cache: what `parts.paging` reads and writes with."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from holdall.errors import BadInput

BLOCK = 4096  # what a disk takes whole, and what O_DIRECT asks of addresses, places and lengths
_CHUNK = 1 << 20  # 4 MiB buffered writes were measured several times slower than these on a virtual disk
_DIRECT_CHUNK = 4 << 20
_DIRTY = 16 << 20  # bytes written through the page cache that may wait there


def aligned(nbytes: int) -> int:
    """The whole blocks that hold so many bytes."""
    return -(-nbytes // BLOCK) * BLOCK


def buffer(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], at the start of a page and in whole blocks, so that a disk reads into it and writes from it."""
    return np.frombuffer(mmap.mmap(-1, max(aligned(nbytes), BLOCK)), np.uint8)[:nbytes]


def as_bytes(x: Any) -> np.ndarray:
    """The memory of a contiguous tensor, array or buffer, as uint8 [nbytes]; nothing is copied."""
    if hasattr(x, "untyped_storage"):  # a torch tensor, without an import of torch
        x = memory_of(x) if x.is_contiguous() and x.device.type == "cpu" else None
    elif isinstance(x, np.ndarray):
        x = x.reshape(-1).view(np.uint8) if x.flags.c_contiguous else None
    else:
        x = np.frombuffer(x, np.uint8)
    if x is None:
        raise BadInput("memory", "strided", "a contiguous tensor or array in host memory")
    return x


def memory_of(tensor: Any) -> np.ndarray:
    """uint8 [nbytes] over a contiguous tensor in host memory, which it keeps alive. `tensor.numpy()` would do, but then
    torch never resizes that storage again."""
    if not tensor.nbytes:
        return np.empty(0, np.uint8)
    held = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr())
    held.owner = tensor.detach()
    return np.frombuffer(held, np.uint8)


class BlockFile:
    """Reads and writes at whole blocks, from any thread. rate: bytes a second at most, both ways together."""

    def __init__(self, folder: str | Path | None, name: str | None, direct: bool, rate: float | None):
        where = Path(folder if folder is not None else tempfile.gettempdir())
        if not where.is_dir():
            raise BadInput("folder", str(folder), "a folder that exists")
        if name is None:
            made, unnamed = tempfile.mkstemp(prefix="holdall.", suffix=".arena", dir=where)
            path = Path(unnamed)
        else:
            path = where / name
            made = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        self.path = str(path)
        try:
            self._fd, self.direct = _opened(made, path, direct)
        finally:
            if name is None:
                path.unlink()  # gone with the last one who has it open, a killed process included
        self._own = threading.local()
        self._lock = threading.Lock()
        self._rate, self._free_at, self._dirty = rate, 0.0, 0

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def move(self, memory: np.ndarray, at: int, out: bool) -> None:
        """Write (`out`) or read all of the memory; the rest of the last block is filled with zeros."""
        usable = not self.direct or memory.ctypes.data % BLOCK == 0
        chunk = _DIRECT_CHUNK if self.direct and usable else _CHUNK
        for i in range(0, memory.size, chunk):
            piece = memory[i : i + chunk]
            self._paced(piece.size)
            try:
                self._chunk(piece, at + i, out, usable and (not self.direct or piece.size % BLOCK == 0))
            except OSError as fault:
                raise _told(fault, self.path, memory.size, out) from fault
        if not self.direct:
            self._dropped(memory.size, at, out)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _chunk(self, piece: np.ndarray, at: int, out: bool, plain: bool) -> None:
        if plain:
            self._whole(piece, at, out)
            return
        if not hasattr(
            self._own, "bounce"
        ):  # for memory that O_DIRECT does not take; one such buffer a thread
            self._own.bounce = buffer(_DIRECT_CHUNK)
        held = self._own.bounce[: aligned(piece.size)]
        if out:
            held[: piece.size], held[piece.size :] = piece, 0
        self._whole(held, at, out)
        if not out:
            piece[:] = held[: piece.size]

    def _whole(self, piece: np.ndarray, at: int, out: bool) -> None:
        done = 0
        while done < piece.size:  # a call may do less than was asked
            rest = memoryview(piece)[done:]  # type: ignore[arg-type]
            moved = os.pwrite(self._fd, rest, at + done) if out else os.preadv(self._fd, [rest], at + done)
            if not moved:
                raise OSError(errno.EIO, "the file ends before what is to be read")
            done += moved

    def _paced(self, nbytes: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + nbytes / self._rate
            until = self._free_at
        time.sleep(max(0.0, until - time.perf_counter()))

    def _dropped(self, nbytes: int, at: int, out: bool) -> None:
        """Out of the page cache with it: what was read at once, what was written when some of it has gathered."""
        if not hasattr(os, "posix_fadvise"):
            return
        with self._lock:
            self._dirty += nbytes if out else 0
            flush = self._dirty >= _DIRTY
            self._dirty = 0 if flush else self._dirty
        if flush:
            os.fdatasync(self._fd)
        if flush or not out:
            os.posix_fadvise(self._fd, *((0, 0) if flush else (at, nbytes)), os.POSIX_FADV_DONTNEED)


def _opened(made: int, path: Path, direct: bool) -> tuple[int, bool]:
    """The file open for O_DIRECT, if it can be had and works; else as it was made."""
    if not direct or not hasattr(os, "O_DIRECT"):
        return made, False
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | getattr(os, "O_CLOEXEC", 0))
        os.preadv(fd, [memoryview(buffer(BLOCK))], 0)  # type: ignore[arg-type]
    except OSError as fault:
        if fd >= 0:
            os.close(fd)
        if fault.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return made, False
        os.close(made)
        raise
    os.close(made)
    return fd, True


def _told(fault: OSError, path: str, nbytes: int, out: bool) -> OSError:
    act = "writing" if out else "reading"
    hint = "; free some space or give another folder" if fault.errno == errno.ENOSPC else ""
    return OSError(fault.errno, f"{path}: {act} {nbytes} bytes failed: {fault.strerror}{hint}")
