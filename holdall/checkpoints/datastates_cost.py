"""What checkpoints cost, before any is made: how long a save holds training up, and how often to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdall.errors import BadInput


@dataclass(frozen=True)
class Cost:
    """In seconds. copied: from the save until training may change the state; stall: of it, what is left when the next
    update comes; durable: until the file is on the disk; shortest: between two saves that the disk can keep up with;
    sync: what a save in the foreground holds training; period: between saves, for the least loss, `lost` its share."""

    copied: float
    stall: float
    durable: float
    shortest: float
    sync: float
    period: float
    lost: float


def predict(
    state: float,
    ring: float,
    copy_rate: float,
    disk_rate: float,
    step: float,
    between_failures: float = math.inf,
) -> Cost:
    """state, ring: bytes; rates: bytes a second; step: seconds of forward and backward; between_failures: mean seconds.

    Copies go at `copy_rate` until the ring is full, and then as fast as the disk frees it (the ring also empties while
    it fills, so it takes in ring * copy_rate / (copy_rate - disk_rate) before that). The period is Young's, no shorter
    than the disk allows; what is lost are stalls, and half a period for each failure.

    >>> told = predict(500e6, 64e6, 4e9, 1e9, step=1.0, between_failures=86400)
    >>> round(told.copied, 3), told.stall, told.sync
    (0.436, 0, 0.625)
    """
    if min(state, ring, copy_rate, disk_rate, between_failures) <= 0 or step < 0:
        raise BadInput(
            "cost", f"{state}, {ring}, {copy_rate}, {disk_rate}, {step}", "sizes and rates above nothing"
        )
    free = math.inf if copy_rate <= disk_rate else ring * copy_rate / (copy_rate - disk_rate)
    fast = min(state, free)
    copied = fast / copy_rate + (state - fast) / disk_rate
    stall = max(0, copied - step)
    shortest = state / disk_rate
    period = max(math.sqrt(2 * stall * between_failures) if stall else 0.0, shortest, step)
    lost = stall / period + (period / 2 / between_failures if between_failures < math.inf else 0.0)
    durable = max(shortest, copied)
    return Cost(copied, stall, durable, shortest, state / copy_rate + state / disk_rate, period, lost)
