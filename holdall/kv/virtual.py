"""Virtual memory: addresses reserved at once, pages of memory put behind them on demand and taken away again.

Linux, through the C library's own calls. Reserving costs nothing but addresses; `map` puts pages of zeros behind a
part of them, `unmap` gives these back to the kernel. What nobody mapped may be read (zeros, no memory is taken), and
must not be written: the kernel would then put a page there that nobody counted.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="kv")

SMALLEST = max(4 << 10, mmap.PAGESIZE)  # bytes of a page group: one page of the processor,
LARGEST = 2 << 20  # one huge page

_PRIVATE, _SHARED = 0x02, 0x01  # of mmap on Linux, where Python has no name for them all
_FIXED, _ANONYMOUS, _NORESERVE = 0x10, 0x20, 0x4000
_READ_WRITE = 0x3
_DONTNEED, _HUGEPAGE, _NOHUGEPAGE, _WIPEONFORK, _POPULATE_WRITE = 4, 14, 15, 18, 23


class Region:
    """A range of addresses of `nbytes`, a multiple of `page`; nothing is behind it until it is mapped.

    A child process that is forked off sees zeros: it would otherwise hold on to pages that are given back here.
    """

    def __init__(self, nbytes: int, page: int):
        if not sys.platform.startswith("linux"):
            raise BadInput("system", sys.platform, "Linux: pages are mapped with its calls")
        if page < SMALLEST or page > LARGEST or page & (page - 1) or nbytes % page:
            raise BadInput("page group", page, f"a power of two from {SMALLEST} to {LARGEST}")
        self.nbytes, self.page = nbytes, page
        # One more, so that page groups start at multiples of their size; what is left keeps regions apart in smaps.
        self._memory = mmap.mmap(-1, nbytes + page, flags=_PRIVATE | _ANONYMOUS | _NORESERVE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._skipped = -start % page
        self.start = start + self._skipped
        self._advise(0, nbytes)

    def _advise(self, offset: int, nbytes: int) -> None:
        for advice in (_HUGEPAGE if self.page == LARGEST else _NOHUGEPAGE, _WIPEONFORK):
            try:
                _call("madvise", self.start + offset, nbytes, advice)
            except (
                OSError
            ) as fault:  # a kernel that does not know it has no huge pages, or is older than 4.14
                if fault.errno != errno.EINVAL:
                    raise

    def tensor(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it, flat. It keeps the addresses alive, also after `close`."""
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, offset=self._skipped, count=self.nbytes)
        return flat.view(dtype)

    def map(self, offset: int, nbytes: int) -> None:
        """Pages of zeros behind a part; what was mapped there stays. OSError where the kernel has none left."""
        if _populates():
            _call("madvise", self.start + offset, nbytes, _POPULATE_WRITE)
        else:
            self._touch(offset, nbytes)

    def _touch(self, offset: int, nbytes: int) -> None:
        for at in range(self.start + offset, self.start + offset + nbytes, mmap.PAGESIZE):
            cell = ctypes.c_ubyte.from_address(at)
            cell.value = cell.value

    def unmap(self, offset: int, nbytes: int) -> None:
        """Give a private part back to the kernel; it reads as zeros from then on."""
        _call("madvise", self.start + offset, nbytes, _DONTNEED)

    def show(self, offset: int, nbytes: int, file: int, at: int) -> None:
        """The pages of a memory file, from `at` on, behind a part: the same ones for everybody who shows them."""
        _place(self.start + offset, nbytes, _SHARED, file, at)

    def hide(self, offset: int, nbytes: int) -> None:
        """Take shown pages away; the part is then private and unmapped again."""
        _place(self.start + offset, nbytes, _PRIVATE | _ANONYMOUS | _NORESERVE, -1, 0)
        self._advise(offset, nbytes)

    def read(self, offset: int, nbytes: int) -> memoryview:
        """What stands there, without a copy."""
        at = self._skipped + offset
        return memoryview(self._memory)[at : at + nbytes]

    def close(self) -> None:
        """Give all memory back now. The addresses go when the last tensor on them does: none ever dangles."""
        self.hide(0, self.nbytes)


def memory_file(nbytes: int) -> int:
    """A file that lives in memory only, as large as told; a descriptor."""
    file = os.memfd_create("holdall-prefix", os.MFD_CLOEXEC)
    os.ftruncate(file, nbytes)
    return file


def resident(regions: Iterable[Region], files: Iterable[int] = ()) -> int:
    """Bytes of memory behind regions and memory files, by the kernel's own count.

    Private pages by `smaps`; pages of memory files by the file, because what is shown at three addresses would be
    counted three times in a resident set, and not at all where nobody looked yet.
    """
    ranges = sorted((r.start, r.start + r.nbytes) for r in regions)
    total, inside = sum(os.fstat(f).st_blocks * 512 for f in files), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024 * inside
        elif "-" in line.split(None, 1)[0]:
            first = int(line.split("-", 1)[0], 16)
            inside = any(a <= first < b for a, b in ranges) and "/memfd:" not in line
    return total


@cache
def _populates() -> bool:
    """Whether this kernel maps pages when told to (Linux 5.14)."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return _libc().madvise(at, mmap.PAGESIZE, _POPULATE_WRITE) == 0


@cache
def _libc() -> Any:
    found = ctypes.CDLL(None, use_errno=True)
    found.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    found.mmap.restype = ctypes.c_void_p
    return found


def _call(name: str, *args: Any) -> None:
    if getattr(_libc(), name)(*args):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _place(address: int, nbytes: int, flags: int, file: int, at: int) -> None:
    """Another mapping in place of a part of a region."""
    if _libc().mmap(address, nbytes, _READ_WRITE, flags | _FIXED, file, at) != address:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap: {os.strerror(code)}")
