"""The fixed tables of the mixing kernel, computed with whole numbers so that every machine has the same."""

from __future__ import annotations

import numpy as np

_POINT = 160  # binary places of the fixed-point arithmetic below


def _exp_small(steps: int) -> int:
    """exp(-1/steps) in fixed point, by its series."""
    term = total = 1 << _POINT
    for k in range(1, 60):
        term = -term // (k * steps)
        total += term
    return total


def _logistic() -> np.ndarray:
    """65536 / (1 + exp(-x / 256)) for x = -2800 .. 2800, held inside 1 .. 65535."""
    step, power, upper = _exp_small(256), 1 << _POINT, []
    for _ in range(2801):  # power = exp(-x / 256)
        upper.append(min(65535, (65536 << _POINT) // ((1 << _POINT) + power)))
        power = power * step >> _POINT
    lower = [max(1, 65536 - p) for p in upper[:0:-1]]
    return np.array(lower + upper, np.int32)


def _logit(squash: np.ndarray) -> np.ndarray:
    """For each p (12 bit) the x whose logistic first reaches the middle of its step."""
    middles = (np.arange(4096, dtype=np.int64) << 4) + 8
    return (np.searchsorted(squash, middles).clip(0, 5600) - 2800).astype(np.int32)


SQUASH = _logistic()  # [5601] 16-bit probability by log-odds * 256
STRETCH = _logit(SQUASH)  # [4096] log-odds * 256 by 12-bit probability
RATE = np.array([65536 * 10 // (10 * n + 16) for n in range(64)], np.int64)  # a counter's step after n sights
RATE[40:] = RATE[40]
