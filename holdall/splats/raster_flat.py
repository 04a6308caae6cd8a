"""What one camera sees of a scene, ready for blending, and the threads that work on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.camera import Camera
from holdall.splats.raster_project import FLAT, SIDE, colours, flatten, lens
from holdall.splats.raster_tiles import dealt
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART = 8192  # Gaussians that a thread projects at a time


@dataclass(frozen=True)
class Flat:
    """What is in the picture, n Gaussians by depth.

    which int64 [n], of the scene; rows float64 [n, FLAT] (raster_project); colour float32 [n, 4].
    before [n + 1], top [n], starts, entries: how they are dealt to rows of tiles (raster_tiles.dealt).
    """

    which: NDArray[Any]
    rows: NDArray[Any]
    colour: NDArray[Any]
    top: NDArray[Any]
    before: NDArray[Any]
    starts: NDArray[Any]
    entries: NDArray[Any]

    def of_row(self, row: int) -> NDArray[Any]:
        return self.entries[self.starts[row] : self.starts[row + 1]]


def flat_of(scene: Scene, camera: Camera, threads: int = 0) -> Flat:
    n, view, eye = len(scene), lens(camera), camera.place
    flat, depth, colour = np.empty((n, FLAT)), np.empty(n), np.empty((n, 4), np.float32)

    def job(part: int) -> None:
        span = part * PART, min(n, (part + 1) * PART)
        flatten(scene.means, scene.scales, scene.quats, scene.opacities, view, flat, depth, *span)
        colours(scene.means, scene.sh, depth, eye, colour, *span)

    over(-(-n // PART), job, threads)
    seen = np.flatnonzero(depth < np.inf)
    which = seen[_by_depth(depth[seen])]
    rows = flat[which]
    return Flat(which, rows, colour[which], *dealt(rows, -(-camera.height // SIDE)))


def _by_depth(depth: NDArray[Any]) -> NDArray[Any]:
    """A stable order; numpy's stable sort is four times slower than its other one, which is enough where none tie."""
    order = np.argsort(depth)
    ranked = depth[order]
    return np.argsort(depth, kind="stable") if (ranked[1:] == ranked[:-1]).any() else order


def over(count: int, job: Callable[[int], None], threads: int = 0) -> None:
    """job(0), job(1) ... on that many threads; jobs must not depend on each other."""
    threads = min(threads or _cores(), count)
    if threads < 2:
        for i in range(count):
            job(i)
        return
    for _ in _pool(threads).map(job, range(count)):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "holdall-raster")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
