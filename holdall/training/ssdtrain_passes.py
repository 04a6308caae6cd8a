"""Forward passes as they are measured, and what is planned for the next ones of their kind."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from holdall.errors import BudgetError
from holdall.meter import Meter, resident_bytes
from holdall.training.ssdtrain_entry import Entry
from holdall.training.ssdtrain_plan import Timed, affordable, needed
from holdall.training.ssdtrain_room import Rate

PROFILED = 2  # passes of a kind: in the first one the file itself grows, which is slower than writing to it


class Clock:
    """Seconds of computing: those in which the step was held up are left out."""

    def __init__(self) -> None:
        self.stalled = 0.0

    def now(self) -> float:
        return time.perf_counter() - self.stalled

    def stall(self, since: float) -> None:
        self.stalled += time.perf_counter() - since


@dataclass
class Pass:
    """One step: a forward pass, or several whose backward is still to come. cut: of what it saves, so many bytes go to
    disk, the first ones."""

    key: Any
    cut: float
    start: float
    entered: int = 0
    tensors: list[list[float]] = field(default_factory=list)  # bytes, saved, used

    def enter(self, entry: Entry, now: float) -> bool:
        """Whether it goes to disk."""
        goes = self.entered < self.cut
        self.entered += entry.nbytes
        entry.place, entry.index = self, len(self.tensors)
        self.tensors.append([entry.nbytes, now - self.start, math.inf])
        return goes

    def used(self, entry: Entry, now: float) -> None:
        times = self.tensors[entry.index]
        times[2] = min(times[2], now - self.start)


class Limit:
    """The rise of resident memory that a step may cause, as the kernel counts it."""

    def __init__(self, most: int, who: str):
        self.most, self.who, self.tight = most, who, False
        self._base, self._beside, self.working, self._top, self._rise = resident_bytes(), 0, 0, 0, 0
        self._meter: Meter | None = None

    def begin(self, beside: int, profile: bool) -> None:
        """A step begins, with so many bytes in memory that are counted as its own."""
        self.stop()
        if profile:  # what libraries take in the first one of all is no later step's
            self._meter, self.working = Meter().__enter__(), 0
        self._top, self._base, self._beside, self.tight = 0, resident_bytes() - beside, beside, False

    def over(self, held: int) -> bool:
        """Whether the rise is too high now; what of it is not held for backward is remembered."""
        self._rise = resident_bytes() - self._base
        self._top = max(self._top, self._rise)
        self.working = max(self.working, self._rise - held)
        over = self._rise > self.most
        self.tight = self.tight or over  # from here on this pass keeps nothing
        return over

    def stop(self) -> int:
        """The highest rise, peaks between looks too where the step is profiled."""
        if self._meter is not None:
            self._meter.__exit__(None, None, None)
            self._rise = self._meter.peak_bytes + self._beside
            self.working += max(0, self._rise - self._top)
            self._top = max(self._top, self._rise)
            self._meter = None
        return self._top

    def ended(self) -> None:
        """Backward is over."""
        if self.stop() > self.most:
            self._rise = self._top
            self.refuse()

    def room(self, window: int) -> int:
        """For what stays in memory."""
        return self.most - self.working - window

    def refuse(self) -> None:
        raise BudgetError(self.most, self._rise, who=self.who, why="a step that keeps nothing in memory")


class Plans:
    """For each kind of pass (which module, which shapes) how many bytes go."""

    def __init__(self, choose: str, window: int, limit: Limit | None, writes: Rate, reads: Rate):
        self._choose, self._window, self._limit = choose, window, limit
        self._rates, self._before = (writes, reads), ((0, 0.0), (0, 0.0))
        self._seen: dict[Any, int] = {}
        self.cuts: dict[Any, float] = {}

    def profiles(self, key: Any) -> bool:
        return self._choose == "adaptive" and key not in self.cuts

    def begin(self, key: Any, now: float) -> Pass:
        return Pass(key, self.cuts.get(key, math.inf), now)

    def ended(self, done: Pass) -> None:
        """A pass whose backward is over: after some of its kind there is a plan."""
        if not self.profiles(done.key) or not done.tensors:
            return
        self._seen[done.key] = self._seen.get(done.key, 0) + 1
        told = [r.told() for r in self._rates]
        write, read = (
            (a - c) / (b - d) if b > d and a > c else 0.0
            for (a, b), (c, d) in zip(told, self._before, strict=True)
        )
        self._before = told[0], told[1]
        if self._seen[done.key] < PROFILED:
            return
        tensors = [Timed(int(n), saved, used) for n, saved, used in done.tensors]
        if self._limit is not None:
            count = needed(tensors, self._limit.room(self._window))
        else:
            count = affordable(tensors, write, read or write) if write else 0
        self.cuts[done.key] = sum(t.nbytes for t in tensors[:count])
