"""Loops over a column before and after the kernel (numba): steps, changes, ids and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs.mixing import WINDOW, promote, rank_of


@njit(cache=True, nogil=True)
def last_of_key(values: Any, keys: Any, base: Any) -> Any:
    """[m] for each value the one that stood last under the same key, else `base`."""
    last = np.full(1 << 12, base)
    out = np.empty(values.size, np.int64)
    for i in range(values.size):
        at = keys[i] & ((1 << 12) - 1)
        out[i] = last[at]
        last[at] = values[i]
    return out


@njit(cache=True, nogil=True)
def changes(values: Any, keys: Any, base: Any) -> Any:
    """[2, changes] how many values stood as they were since the last change, and the new value, zigzag from `base`."""
    out, n, since = np.empty((2, values.size), np.int64), 0, 0
    last = np.full(1 << 12, base)
    for i in range(values.size):
        at = keys[i] & ((1 << 12) - 1)
        if values[i] == last[at]:
            since += 1
            continue
        last[at], step = values[i], values[i] - base
        out[0, n], out[1, n] = since, -2 * step - 1 if step < 0 else 2 * step
        n, since = n + 1, 0
    return out[:, :n]


@njit(cache=True, nogil=True)
def undo_steps(steps: Any, keys: Any, base: Any, by_key: Any) -> Any:
    """The values again from their zigzag steps."""
    last = np.full(1 << 12, base)
    out = np.empty(steps.size, np.int64)
    for i in range(steps.size):
        at = keys[i] & ((1 << 12) - 1) if by_key else 0
        step = -((steps[i] + 1) >> 1) if steps[i] & 1 else steps[i] >> 1
        last[at] += step
        out[i] = last[at]
    return out


@njit(cache=True, nogil=True)
def carry(values: Any, changed: Any, keys: Any, base: Any) -> Any:
    """Each value again from the last one under its key, but where it is told anew."""
    last = np.full(1 << 12, base)
    for i in range(values.size):
        at = keys[i] & ((1 << 12) - 1)
        if changed[i]:
            last[at] = values[i]
        else:
            values[i] = last[at]
    return values


@njit(cache=True, nogil=True)
def news_of(ids: Any) -> Any:
    """[m] 0 where an id is new, else the id plus one: the symbols of IDS."""
    out, fresh = np.empty(ids.size, np.int64), 0
    for i in range(ids.size):
        out[i] = 0 if ids[i] >= fresh else ids[i] + 1
        fresh = max(fresh, ids[i] + 1)
    return out


@njit(cache=True, nogil=True)
def ranks_of(ids: Any) -> Any:
    """[m] the symbols of RANKS."""
    out, fresh = np.empty(ids.size, np.int64), 0
    recent = np.full((1, WINDOW), np.int32(-9))
    for i in range(ids.size):
        rank = WINDOW if ids[i] >= fresh else rank_of(recent, 0, ids[i])
        out[i] = 0 if ids[i] >= fresh else (1 + rank if rank < WINDOW else 1 + WINDOW + ids[i])
        fresh = max(fresh, ids[i] + 1)
        promote(recent, 0, rank, ids[i])
    return out
