"""A snapshot by fork: the child has the memory as it was, page by page, and writes it; the parent trains on.

It is safe under these conditions, which `why_not` looks at:

- The memory is this process's own. Pages that are shared with others (or of a file that is mapped shared) would change
  in the child, too, and memory of a GPU is not there at all.
- The child runs Python, and copies and writes bytes; it never calls torch. torch's pool of OpenMP threads, like every
  other thread, is not in the child, and a call that waits for one would wait for ever. What is not contiguous, which
  torch would have to gather, is gathered before the fork.
- Of the locks that other threads may hold at that moment the child needs only Python's own and those of the C library
  (for memory, and for one thread of the child's own), which both see to forks themselves (glibc does; an allocator that
  was loaded in its place has to).
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import sys
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from holdall.checkpoints.datastates_flow import Job
from holdall.checkpoints.datastates_stream import Packer, Sink
from holdall.errors import HoldallError
from holdall.optional import lazy
from holdall.parts.paging_file import as_bytes

torch = lazy("torch", extra="checkpoints")

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def why_not(leaves: Iterable[Any], gathered: int) -> str:
    """ "", or the reason why a fork would not be a snapshot. gathered: bytes that may be gathered before it."""
    if not sys.platform.startswith("linux"):
        return "fork is used on Linux only"
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return "a GPU is in use"
    starts, kinds = _mappings()
    loose = 0
    for leaf in leaves:
        if leaf.device.type != "cpu":
            return f"a tensor is on {leaf.device}"
        loose += 0 if leaf.is_contiguous() else leaf.nbytes
        at = bisect_right(starts, leaf.data_ptr()) - 1
        if leaf.numel() and (at < 0 or kinds[at] != "p"):
            return "a tensor is in memory that is shared"
    if loose > gathered:
        return f"{loose} bytes of tensors are not contiguous"
    return ""


def _mappings() -> tuple[list[int], list[str]]:
    """Where this process's mappings begin, and whether they are private (p) or shared (s)."""
    starts, kinds = [], []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, flags = line.split(None, 2)[:2]
        starts.append(int(place.split("-")[0], 16))
        kinds.append(flags[3])
    return starts, kinds


class Child:
    """A process that writes one job's file. It dies with its parent, and is gone when `result` was called."""

    def __init__(self, job: Job, chunk: int, rate: float, direct: bool):
        plan = job.plan
        plan.leaves = [leaf if leaf is None else as_bytes(leaf.contiguous()) for leaf in plan.leaves]
        bounce = np.frombuffer(mmap.mmap(-1, 2 * chunk), np.uint8).reshape(2, chunk)
        main = (
            threading.current_thread() is threading.main_thread()
        )  # the signal comes when a forking thread ends
        prctl = ctypes.CDLL(None).prctl if main else None  # looked up before the fork
        parent = os.getpid()
        out, self._in = os.pipe()[::-1]
        self.pid = os.fork()
        if self.pid == 0:
            _child(job, (bounce, chunk, rate, direct), out, parent, prctl)
        os.close(out)
        plan.leaves = [None] * len(plan.leaves)

    def result(self) -> tuple[str, dict[str, int]]:
        """Digest and counts, when the file is on the disk."""
        with os.fdopen(self._in, "rb") as pipe:
            said = pipe.read().decode()
        _, status = os.waitpid(self.pid, 0)
        kind, _, rest = said.partition(" ")
        if kind == "done" and os.waitstatus_to_exitcode(status) == 0:
            digest, writes, waits = rest.split()
            return digest, {"writes": int(writes), "throttle_waits": int(waits)}
        if kind == "errno":
            raise OSError(int(rest), os.strerror(int(rest)))
        raise HoldallError(
            f"the process that wrote the snapshot ended with {status} ({said[:200] or 'no word'})"
        )


def _child(job: Job, how: tuple[np.ndarray, int, float, bool], out: int, parent: int, prctl: Any) -> None:
    """Never returns. Nothing here takes a lock of another thread's."""
    code = 1
    try:
        gc.disable()
        if prctl is not None:
            prctl(_DIES_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        os.closerange(3, out)  # among them a lock on the folder, which is the parent's
        os.closerange(out + 1, max(out + 2, 1 << 16))
        said = _saved(job, *how)
        code = 0
    except OSError as fault:
        said = f"errno {fault.errno}"
    except BaseException as fault:  # noqa: BLE001 (there is nobody to raise it to)
        said = f"fault {type(fault).__name__} {fault}"
    try:
        os.write(out, said.encode())
    finally:
        os._exit(code)


def _saved(job: Job, bounce: np.ndarray, chunk: int, rate: float, direct: bool) -> str:
    """Two chunks in turn: one is written by a thread of the child's own while the other is filled and summed."""
    sink, pending = Sink(job.path, job.plan, rate, direct), deque[Future[None]]()
    pool = ThreadPoolExecutor(1)
    taken = [0]

    def take(nbytes: int) -> np.ndarray:
        if len(pending) == 2:
            pending.popleft().result()
        taken[0] += 1
        return bounce[taken[0] % 2][:nbytes]

    def give(piece: np.ndarray, at: int) -> None:
        sink.sum(piece)
        pending.append(pool.submit(sink.write, piece, at))

    Packer(job.plan, chunk, take, give).run()
    while pending:
        pending.popleft().result()
    return f"done {sink.finish()} {sink.writes} {sink.waits}"
