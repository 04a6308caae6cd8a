"""Three threads of a keeper: one copies tensors into the ring, one writes the ring to a file, one commits."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from holdall.checkpoints.awaited import Awaited
from holdall.checkpoints.datastates_stream import Packer, Sink
from holdall.checkpoints.shards import Plan
from holdall.errors import HoldallError
from holdall.parts.ring import Ring

_AHEAD = 2  # chunks that are being written while the next one is summed


class Saving(Awaited):
    """`early`: bytes that were copied while `save` was called. `near`: whether it is on the local tier."""

    def __init__(self, step: int):
        super().__init__(step)
        self.early, self.near = 0, False
        self.copied = threading.Event()
        self.written = threading.Event()  # this rank's file, or it failed

    def end(self, nbytes: int, fault: BaseException | None = None) -> None:
        self.fault = fault
        self.copied.set()
        super().end(nbytes, fault)


class Job:
    """A save under way, from the copies to the commit. `digest` is set when this rank's file is on the disk."""

    def __init__(self, saving: Saving, plan: Plan, token: str, path: Path):
        self.saving, self.plan, self.token, self.path = saving, plan, token, path
        self.chunks: queue.SimpleQueue[tuple[np.ndarray, int] | None] = queue.SimpleQueue()
        self.packer: Packer | None = None
        self.settle: Callable[[], None] = lambda: None  # until copies from a device have arrived
        self.digest = ""
        self.fault: BaseException | None = None
        self.size = plan.size

    def give(self, chunk: np.ndarray, at: int) -> None:
        self.settle()
        self.chunks.put((chunk, at))


class Flow:
    """ring: where copies wait. begin: makes the folder of a job. commit: votes and publishes, given a job that was
    written or has a fault."""

    def __init__(
        self,
        ring: Ring,
        chunk: int,
        rate: float,
        direct: bool,
        begin: Callable[[Job], None],
        commit: Callable[[Job], int],
    ):
        self.ring, self.chunk, self._rate, self._direct = ring, chunk, rate, direct
        self._begin, self._commit = begin, commit
        self.counts = {"copied_bytes": 0, "written_bytes": 0, "writes": 0, "throttle_waits": 0}
        self._queues = [queue.SimpleQueue[Job | None]() for _ in range(3)]
        self._pool = ThreadPoolExecutor(_AHEAD, "holdall-write")
        self._acts = (self._copy, self._write, self._end)
        names = ("holdall-copy", "holdall-sum", "holdall-commit")
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=n, daemon=True) for i, n in enumerate(names)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, job: Job, early: int, copy: Callable[[np.ndarray, Any], None] | None = None) -> None:
        """The first `early` sections are copied now, the others in the background."""
        job.packer = Packer(job.plan, self.chunk, self._room(job), job.give, copy)
        self._queues[1].put(job)
        self._queues[2].put(job)
        try:
            job.packer.run(early)
        except BaseException as fault:
            self._give_up(job, fault)
            raise
        job.saving.early = job.packer.copied
        self._queues[0].put(job)

    def _room(self, job: Job) -> Callable[[int], np.ndarray]:
        def take(nbytes: int) -> np.ndarray:
            if job.fault is not None:
                raise HoldallError("given up")
            return self.ring.take(nbytes)

        return take

    def elsewhere(self, job: Job) -> None:
        """A job that somebody else writes, who sets `written`."""
        self._queues[2].put(job)

    def _work(self, number: int) -> None:
        while (job := self._queues[number].get()) is not None:
            self._acts[number](job)
        if number == 0:
            self._queues[1].put(None)

    def _copy(self, job: Job) -> None:
        assert job.packer is not None
        try:
            job.packer.run()
            self.counts["copied_bytes"] += job.packer.copied
            job.chunks.put(None)
        except BaseException as fault:  # noqa: BLE001 (it goes to the receipt)
            self._give_up(job, fault)
        job.packer = None
        job.saving.copied.set()

    def _give_up(self, job: Job, fault: BaseException) -> None:
        job.fault = job.fault or fault
        held = job.packer.drop() if job.packer is not None else None
        if held is not None:
            job.chunks.put((held, -1))
        job.chunks.put(None)

    def _write(self, job: Job) -> None:
        sink: Sink | None = None
        pending: deque[tuple[Future[None], np.ndarray]] = deque()
        try:
            self._begin(job)
            sink = Sink(job.path, job.plan, self._rate, self._direct)
        except BaseException as fault:  # noqa: BLE001
            job.fault = job.fault or fault
        while (item := job.chunks.get()) is not None:
            chunk, at = item
            if job.fault is not None or sink is None:
                self.ring.free(chunk)
                continue
            sink.sum(chunk)
            pending.append((self._pool.submit(sink.write, chunk, at), chunk))
            if len(pending) == _AHEAD:
                self._written(job, *pending.popleft())
        for future, chunk in pending:
            self._written(job, future, chunk)
        self._close(job, sink)
        job.saving.written.set()

    def _written(self, job: Job, future: Future[None], chunk: np.ndarray) -> None:
        fault = future.exception()
        job.fault = job.fault or fault
        self.ring.free(chunk)

    def _close(self, job: Job, sink: Sink | None) -> None:
        if sink is None:
            return
        try:
            if job.fault is None:
                job.digest = sink.finish()
                self.counts["written_bytes"] += job.size
        except BaseException as fault:  # noqa: BLE001
            job.fault = fault
        finally:
            sink.close()
            self.counts["writes"] += sink.writes
            self.counts["throttle_waits"] += sink.waits

    def _end(self, job: Job) -> None:
        job.saving.written.wait()
        try:
            job.saving.end(self._commit(job))
        except BaseException as fault:  # noqa: BLE001
            job.saving.end(0, fault)

    def close(self) -> None:
        """When all that is under way has ended."""
        self._queues[0].put(None)
        self._queues[2].put(None)
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()
