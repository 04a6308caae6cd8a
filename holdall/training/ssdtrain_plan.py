"""Which activations go to disk: as many as the disk can take and give back while the step computes, or as few as a
budget asks for; and how long a disk lives with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdall.errors import BadInput

YEAR = 365.25 * 24 * 3600


@dataclass(frozen=True)
class Timed:
    """A tensor of a profiled step: when it was saved, and when backward first asked for it (inf: never), in seconds
    of computing since the step began."""

    nbytes: int
    saved: float
    used: float


def affordable(tensors: Sequence[Timed], write: float, read: float) -> int:
    """How many of the first tensors of a step can be written and read back (bytes a second) without being waited for.

    They go in the order in which they were saved, and come back in the order in which backward asks, one after another
    and when all are there: the last one saved is the first one asked for, so that the last modules keep theirs.
    """
    if not (write > 0 and read > 0):
        raise BadInput("rates", (write, read), "bytes a second, above 0")
    ends, free = [], 0.0  # when the write of each ends
    for t in tensors:
        free = max(free, t.saved) + t.nbytes / write
        ends.append(free)
    for count in range(len(tensors), 0, -1):
        now, late = ends[count - 1], False
        for t in sorted(tensors[:count], key=lambda t: t.used):
            now += t.nbytes / read
            if now > t.used:
                late = True
                break
        if not late:
            return count
    return 0


def needed(tensors: Sequence[Timed], room: int) -> int:
    """How few of the first tensors have to go so that the others fit into the room."""
    rest = sum(t.nbytes for t in tensors)
    for i, t in enumerate(tensors):
        if rest <= room:
            return i
        rest -= t.nbytes
    return len(tensors)


def life_years(endurance: float, step_bytes: float, step_seconds: float) -> float:
    """Until a disk has taken `endurance` bytes, when all that the machine does is such steps."""
    if step_bytes <= 0 or step_seconds <= 0:
        return math.inf
    return endurance / (step_bytes * (YEAR / step_seconds))
