"""Ranks that are threads of one process, so that a layout of many ranks can be tried on one machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from holdall.checkpoints.bytecheckpoint_ranks import PATIENCE, RankLost, Ranks
from holdall.checkpoints.planning import Tree


class Hall:
    """Ranks that are threads of one process, for trying layouts: `Hall(8).rank(3)`."""

    def __init__(self, world: int, machine: int = 8, fanout: int = 8, patience: float = PATIENCE):
        self.world, self.tree, self.patience = world, Tree(world, machine, fanout), patience
        self.lines: dict[tuple[str, int, int], queue.Queue[Any]] = {}
        self._lock = threading.Lock()

    def rank(self, rank: int, name: str = "") -> Threaded:
        return Threaded(self, rank, name)

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        """What `work` gives on each rank, all at once; the first error is raised when all have ended."""
        with ThreadPoolExecutor(self.world) as pool:
            futures = [pool.submit(work, self.rank(r)) for r in range(self.world)]
        faults = [f.exception() for f in futures]
        for fault in faults:
            if fault is not None:
                raise fault
        return [f.result() for f in futures]

    def line(self, name: str, a: int, b: int) -> queue.Queue[Any]:
        with self._lock:
            return self.lines.setdefault((name, a, b), queue.Queue())


class Threaded(Ranks):
    """A rank of a `Hall`."""

    def __init__(self, hall: Hall, rank: int, name: str = ""):
        super().__init__(rank, hall.world, hall.tree, hall.patience)
        self._hall, self._name = hall, name

    def send(self, to: int, raw: bytes) -> None:
        self._hall.line(self._name, self.rank, to).put(raw)

    def receive(self, of: int, patience: float) -> bytes:
        try:
            return self._hall.line(self._name, of, self.rank).get(timeout=patience)
        except queue.Empty:
            raise RankLost(of, f"has said nothing for {patience:.3g} s") from None

    def exchange(self, out: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
        for to, piece in enumerate(out):
            if to != self.rank and len(piece):
                self.send(to, bytes(piece))
        got = [np.empty(0, np.uint8)] * self.world
        for of, n in enumerate(sizes):
            if of != self.rank and n:
                got[of] = np.frombuffer(self.receive(of, self.patience), np.uint8)
        got[self.rank] = out[self.rank]
        return got

    def twin(self) -> Ranks:
        return Threaded(self._hall, self.rank, self._name + "'")
