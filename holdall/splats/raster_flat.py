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
from holdall.splats.raster_project import FLAT, SIDE, depths, flatten, lens
from holdall.splats.raster_tiles import dealt
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PART = 4096  # Gaussians that a thread projects at a time


@dataclass(frozen=True)
class Flat:
    """What is in the picture, n Gaussians by depth.

    which int64 [n], of the scene; rows float64 [n, FLAT] (raster_project); colour float32 [n, 4]; tops int32 [n, 2],
    the rows of tiles that each touches, if any. starts, entries: how they are dealt to these (raster_tiles.dealt).
    """

    which: NDArray[Any]
    rows: NDArray[Any]
    colour: NDArray[Any]
    tops: NDArray[Any]
    starts: NDArray[Any]
    entries: NDArray[Any]

    @property
    def drawn(self) -> NDArray[Any]:
        """bool [n]: what is in the picture; the others are near it."""
        return self.tops[:, 1] > self.tops[:, 0]

    def of_row(self, row: int) -> NDArray[Any]:
        return self.entries[self.starts[row] : self.starts[row + 1]]


def flat_of(scene: Scene, camera: Camera, threads: int = 0) -> Flat:
    scene = scene.seen_from(camera)
    view, eye, size = lens(camera), camera.place, -(-camera.height // SIDE)
    columns = tuple(scene.arrays().values())
    depth = np.empty(len(scene))

    def look(first: int, last: int) -> None:
        depths(scene.means, scene.scales, scene.opacities, view, depth, first, last)

    parts(len(scene), look, threads)
    seen = np.flatnonzero(depth < np.inf)
    which = seen[_by_depth(depth[seen])]
    n = len(which)
    out = np.empty((n, FLAT)), np.empty((n, 4), np.float32), np.empty((n, 2), np.int32)

    def project(first: int, last: int) -> None:
        flatten(columns, which, view, eye, out, first, last)

    parts(n, project, threads)
    return Flat(which, *out, *dealt(out[2], size))


def _by_depth(depth: NDArray[Any]) -> NDArray[Any]:
    """A stable order: numpy's other sort, which is four times as fast, and then those that tie."""
    order = np.argsort(depth)
    sorted_depth = depth[order]
    same = np.flatnonzero(sorted_depth[1:] == sorted_depth[:-1])
    if len(same):
        tied = np.union1d(same, same + 1)
        order[tied] = order[tied][np.lexsort((order[tied], sorted_depth[tied]))]
    return order


def parts(count: int, job: Callable[[int, int], None], threads: int = 0) -> None:
    """job(first, last) for parts of a range."""
    over(-(-count // _PART), lambda i: job(i * _PART, min(count, (i + 1) * _PART)), threads)


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
