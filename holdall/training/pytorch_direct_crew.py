"""Threads that read at the same time: as many as could be started, and none of them left at work when a call ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Crew:
    """Up to `most` threads of this process; where a limit lets fewer start, fewer do the same work."""

    def __init__(self, most: int):
        self.process = os.getpid()  # a fork has the object, and not the threads
        self._asked: SimpleQueue[Any] = SimpleQueue()
        self._threads: list[Thread] = []
        for _ in range(most):
            thread = Thread(target=self._work, name="holdall-rows", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit on memory (each has a stack) or on threads
                break
            self._threads.append(thread)

    def __len__(self) -> int:
        return len(self._threads)

    def do(self, act: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
        """act(*task) for each, and here where there are no threads. Raises what one raised, when all have ended: they
        write into memory that the caller may give back."""
        if not self._threads:
            for task in tasks:
                act(*task)
            return
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        for task in tasks:
            self._asked.put((act, task, ended))
        left, faults = len(tasks), []
        try:
            while left:
                fault = ended.get()
                left -= 1
                faults += [] if fault is None else [fault]
        finally:
            for _ in range(left):  # the user's interrupt came in between
                ended.get()
        if faults:
            raise faults[0]

    def close(self) -> None:
        if self.process == os.getpid():
            for _ in self._threads:
                self._asked.put(None)
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            act, task, ended = asked
            try:
                act(*task)
            except BaseException as fault:  # noqa: BLE001  (it is raised where the work was asked for)
                ended.put(fault)
            else:
                ended.put(None)
            del asked, act, task, ended
