"""Which lists a vector goes into: those of near heads, as long as none lies behind another one (SPANN's closure)."""

from __future__ import annotations

import numpy as np
from numba import njit


def naive_closure(
    x: np.ndarray, heads: np.ndarray, near: np.ndarray, replicas: int, slack: float, apart: bool = True
) -> list[list[int]]:
    """As `closure`, vector by vector, in float64."""
    found = []
    for vector, candidates in zip(x.astype(np.float64), near, strict=True):
        kept: list[int] = []
        first = None
        for c in candidates[candidates >= 0]:
            away = float(np.square(vector - heads[c]).sum())
            first = away if first is None else first
            behind = any(float(np.square(heads[i].astype(np.float64) - heads[c]).sum()) <= away for i in kept)
            if len(kept) < replicas and away <= (1 + slack) * first and not (apart and behind):
                kept.append(int(c))
        found.append(kept)
    return found


@njit(nogil=True, cache=True)
def closure(x, heads, near, replicas, slack, apart, out, first, last):  # type: ignore[no-untyped-def]
    """Rows [first, last) of: lists int32 [N, replicas] that each vector goes into, -1 behind the last.

    x [N, D] and heads [H, D] float32; near int64 [N, C]: heads by distance, -1 where there are no more. A head is taken
    if its squared distance is at most (1 + slack) times the nearest one's, and if (`apart`) no head taken before is
    nearer to it than the vector is: that one's list is read together with it anyway.
    """
    dim = x.shape[1]
    for n in range(first, last):
        count, nearest = 0, np.float32(-1)
        out[n] = -1
        for j in range(near.shape[1]):
            head = near[n, j]
            if head < 0 or count == replicas:
                break
            away = np.float32(0)
            for d in range(dim):
                away += (x[n, d] - heads[head, d]) ** 2
            if nearest < 0:
                nearest = away
            if away > (np.float32(1) + slack) * nearest:
                break
            behind = False
            for i in range(count if apart else 0):
                between = np.float32(0)
                for d in range(dim):
                    between += (heads[out[n, i], d] - heads[head, d]) ** 2
                if between <= away:
                    behind = True
                    break
            if not behind:
                out[n, count] = head
                count += 1
