"""The optimizer beside the backward pass: pieces are read, updated and written in turn, each while others are moved."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from holdall.parts.paging import buffer
from holdall.training.fuyou_groups import Group, Piece
from holdall.training.fuyou_states import States


@dataclass(eq=False)
class Job:
    """One group's update. grads: one a parameter, None where none came; each is multiplied by `scale`. steps: of each
    parameter, after it. lives: the parameters are in memory and are to be changed there."""

    group: Group
    grads: list[Any]
    hypers: list[Any]  # one for each parameter
    scale: float
    steps: list[int]
    lives: bool
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.group.pieces)
        self.nbytes = sum(g.nbytes for g in self.grads if g is not None)


class Updater:
    """A thread that updates what is given to it, in order. buffers: pieces in memory at once. limit: bytes of gradients
    that may wait; who brings more is held up. Faults are raised by `drain`, and nothing after one is written."""

    def __init__(self, states: States, buffers: int, limit: int):
        self._states, self._limit = states, limit
        largest = max((p.section for p in states.all()), default=0)
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(buffer(3 * largest))
        self.nbytes = buffers * 3 * largest
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._waiting = self._held = 0  # pieces not yet written, bytes of gradients
        self._faults: list[BaseException] = []
        self.done: dict[Group, list[int]] = {}  # groups updated since the last commit
        self.busy, self.count = 0.0, 0  # seconds, parameters
        self._thread = threading.Thread(target=self._run, name="holdall-fuyou", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + job.nbytes <= self._limit)
            self._held += job.nbytes
            self._waiting += len(job.group.pieces)
        self._jobs.put(job)

    def drain(self) -> None:
        """Until all that was submitted is on disk; what went wrong is raised here."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            faults, self._faults = self._faults, []
        if faults:
            raise faults[0]

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        while not self._free.empty():
            self._free.get()

    def _run(self) -> None:
        """Two reads are under way while a piece is updated; its write is queued behind them."""
        ahead: deque[tuple[Job, Piece, np.ndarray, Future[int] | None]] = deque()
        coming: deque[tuple[Job, Piece]] = deque()
        while True:
            while not coming and (not self._jobs.empty() or not ahead):
                job = self._jobs.get()
                if job is None:
                    return
                coming.extend((job, piece) for piece in job.group.pieces)
            while coming and (not ahead or (len(ahead) < 2 and not self._free.empty())):
                ahead.append(self._fetched(*coming.popleft()))
            self._updated(*ahead.popleft())

    def _fetched(self, job: Job, piece: Piece) -> tuple[Job, Piece, np.ndarray, Future[int] | None]:
        held = self._free.get()
        try:
            return job, piece, held, None if self._faults else self._states.read(piece, held)
        except Exception as fault:  # noqa: BLE001 - raised by drain
            self._failed(fault)
            return job, piece, held, None

    def _updated(self, job: Job, piece: Piece, held: np.ndarray, read: Future[int] | None) -> None:
        try:
            if read is None or self._faults:
                raise _Skipped
            read.result()
            start = time.perf_counter()
            update(job, piece, held)
            self.busy, self.count = self.busy + time.perf_counter() - start, self.count + piece.count
            written = self._states.write(piece, held)
        except _Skipped:
            self._finished(job, held)
        except Exception as fault:  # noqa: BLE001 - raised by drain
            self._failed(fault)
            self._finished(job, held)
        else:
            self._consumed(job)
            written.add_done_callback(lambda done: self._landed(job, held, done))

    def _landed(self, job: Job, held: np.ndarray, done: Future[int]) -> None:
        fault = done.exception()
        if fault is not None:
            self._failed(fault)
        self._finished(job, held, consumed=True)

    def _failed(self, fault: BaseException) -> None:
        with self._changed:
            self._faults.append(fault)

    def _consumed(self, job: Job) -> None:
        """Its gradients may go when the last piece has taken what it needs of them."""
        job.left -= 1
        if not job.left:
            with self._changed:
                self.done[job.group] = job.steps
                self._held -= job.nbytes
                self._changed.notify_all()
            job.grads = []

    def _finished(self, job: Job, held: np.ndarray, consumed: bool = False) -> None:
        if not consumed:
            self._consumed(job)
        self._free.put(held)
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()


class _Skipped(Exception):
    """After a fault nothing more of the step is done."""


def update(job: Job, piece: Piece, held: np.ndarray) -> None:
    """AdamW on a piece, and its new parameters into memory where they live there."""
    from holdall.training.adam_kernel import adamw, raw, tail_of

    p, m, v = piece.sections(held)
    for n, a, b, at in piece.parts:
        grad = job.grads[n]
        if grad is None:
            continue
        here = slice(at, at + b - a)
        tail = tail_of(job.group.sizes[n], a, b)
        out = raw(job.group.params[n])[a:b] if job.lives else None
        adamw(p[here], m[here], v[here], raw(grad)[a:b], job.hypers[n], out, job.scale, tail)
