"""Which anchors and which cameras belong to which block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.camera import Camera

_MARGIN = 0.1  # of a cell's own size, around it


class Cells:
    """Space cut into blocks that hold about as many of `means` each, by planes across the longer side."""

    def __init__(self, means: NDArray[Any], count: int):
        self.count = count
        self._cuts: dict[tuple[int, int], tuple[int, float]] = {}  # (first block, blocks): axis, place
        self._cut(np.asarray(means, np.float64), 0, count)

    def _cut(self, means: NDArray[Any], first: int, count: int) -> None:
        if count == 1:
            return
        left = count // 2
        low, high = np.quantile(means, [0.01, 0.99], axis=0) if len(means) else (np.zeros(3), np.zeros(3))
        axis = int((high - low).argmax())
        at = float(np.quantile(means[:, axis], left / count)) if len(means) else 0.0
        self._cuts[first, count] = axis, at
        below = means[:, axis] < at
        self._cut(means[below], first, left)
        self._cut(means[~below], first + left, count - left)

    def of(self, means: Any) -> NDArray[Any]:
        """The block [N] of each place [N, 3]."""
        means = np.asarray(means, np.float64).reshape(-1, 3)
        found = np.zeros(len(means), np.int64)
        self._sort(means, np.arange(len(means)), 0, self.count, found)
        return found

    def _sort(self, means: Any, which: Any, first: int, count: int, found: Any) -> None:
        if count == 1:
            found[which] = first
            return
        axis, at = self._cuts[first, count]
        below, left = means[which, axis] < at, count // 2
        self._sort(means, which[below], first, left, found)
        self._sort(means, which[~below], first + left, count - left, found)


def members(means: NDArray[Any], block: NDArray[Any], b: int, context: float, seed: int) -> NDArray[Any]:
    """Anchors that block b trains: its own, those close by, and some of the others by lot, at most `context` times as
    many as its own. These stand for the rest of its pictures and are left out of the result."""
    own = block == b
    if not own.any():
        return np.flatnonzero(own)
    low, high = np.quantile(means[own], [0.01, 0.99], axis=0)
    wide = _MARGIN * float(np.linalg.norm(high - low))
    close = ((means >= low - wide) & (means <= high + wide)).all(1)
    rest = np.flatnonzero(~own & ~close)
    some = np.random.default_rng((seed, b)).permutation(rest)[: int(context * own.sum())]
    return np.sort(np.concatenate([np.flatnonzero(own | close), some]))


def looks(means: NDArray[Any], block: NDArray[Any], cameras: Sequence[Camera], count: int) -> NDArray[Any]:
    """float64 [V, B]: which part of a camera's picture each block has, nearer anchors counting more. What hides what is
    not known."""
    found = np.zeros((len(cameras), count))
    for i, c in enumerate(cameras):
        at = means @ c.rotation.T + c.translation
        z = np.maximum(at[:, 2], 1e-9)
        inside = (at[:, 2] > 0) & (abs(at[:, 0]) <= z * max(c.cx, c.width - c.cx) / c.fx)
        inside &= abs(at[:, 1]) <= z * max(c.cy, c.height - c.cy) / c.fy
        far = (at[inside] ** 2).sum(1)
        floor = (
            np.quantile(far, 0.05) + 1e-12 if len(far) else 1.0
        )  # one that is in front of the lens is not all
        found[i] = np.bincount(block[inside], 1 / np.maximum(far, floor), count)
    return found


def views_of(parts: NDArray[Any], places: NDArray[Any], overlap: float) -> list[list[int]]:
    """Cameras of each block: those that stand in it (places [V], blocks), those of whose picture it has at least that
    part, and at least the one that sees most of it."""
    share = parts / np.maximum(parts.sum(1, keepdims=True), 1e-30)
    count = parts.shape[1]
    mine = (share >= overlap) | ((places[:, None] == np.arange(count)) & (share > 0))
    mine[share.argmax(0), np.arange(count)] = True
    return [np.flatnonzero(mine[:, b]).tolist() for b in range(count)]
