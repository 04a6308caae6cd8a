"""Draws scenes on the CPU: 3D Gaussians splatted into tiles and blended from the front to the back.

drawn = render(scene, camera)          drawn.colour [H, W, 3], drawn.alpha [H, W], float32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.splats.camera import Camera
from holdall.splats.raster_blend import blend
from holdall.splats.raster_flat import Flat, flat_of, over
from holdall.splats.raster_project import SIDE
from holdall.splats.scene import Scene
from holdall.splats.significance import significance

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Drawn", "render", "significance"]


@dataclass(frozen=True)
class Drawn:
    """colour float32 [H, W, 3], over the background; alpha float32 [H, W], what hides it.

    counts: pixels computed, Gaussians laid into tiles, Gaussians in the lists of tiles. For a way back, if kept: flat,
    and left [H, W], the light that reaches the background.
    """

    colour: NDArray[Any]
    alpha: NDArray[Any]
    counts: tuple[int, int, int]
    flat: Flat | None = None
    left: NDArray[Any] | None = None


def render(
    scene: Scene,
    camera: Camera,
    background: Sequence[float] = (0, 0, 0),
    *,
    keep: bool = False,
    threads: int = 0,
) -> Drawn:
    """The scene as that camera sees it. The same bits for any number of threads; by default one for each core."""
    ground = np.asarray(background, dtype=np.float32)
    if ground.shape != (3,) or not np.isfinite(ground).all():
        raise BadInput("background", background, "red, green and blue")
    flat = flat_of(scene, camera, threads)
    rows = -(-camera.height // SIDE)
    picture = np.empty((camera.height, camera.width, 3), np.float32)
    left, counts = np.empty((camera.height, camera.width), np.float32), np.zeros((rows, 3), np.int64)

    def job(row: int) -> None:
        blend(flat.rows, flat.colour, flat.of_row(row), row, ground, picture, left, counts[row])

    over(rows, job, threads)
    done, laid, listed = counts.sum(0).tolist()
    if keep:
        return Drawn(picture, 1 - left, (done, laid, listed), flat, left)
    return Drawn(picture, np.subtract(1, left, out=left), (done, laid, listed))
