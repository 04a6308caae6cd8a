"""From gradients of a picture to gradients of the scene that it shows, in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.splats.camera import Camera
from holdall.splats.raster import Drawn
from holdall.splats.raster_back import SUMS, gathered, unblend
from holdall.splats.raster_flat import Flat, over, parts
from holdall.splats.raster_project import SIDE, lens
from holdall.splats.raster_unproject import uncolour, unflatten
from holdall.splats.scene import NAMES, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray


def gradients(
    scene: Scene,
    camera: Camera,
    drawn: Drawn,
    by_colour: NDArray[Any],
    by_alpha: NDArray[Any],
    background: Any = (0, 0, 0),
    *,
    threads: int = 0,
) -> dict[str, NDArray[Any]]:
    """Of a scene that was drawn with `keep=True`, by colour [H, W, 3] and alpha [H, W]: float32, by name of the column;
    "background" [3]; "moved" [N], how much the place in the picture wants to move, by pixel.

    The same bits for any number of threads.
    """
    if drawn.flat is None or drawn.left is None:
        raise BadInput("drawn", "a picture alone", "what render(..., keep=True) gives")
    flat, ground = drawn.flat, np.asarray(background, dtype=np.float32)
    colour, alpha = (np.ascontiguousarray(x, dtype=np.float32) for x in (by_colour, by_alpha))
    sums = _sums(flat, ground, colour, alpha, threads)
    found: dict[str, Any] = {name: np.zeros_like(getattr(scene, name)) for name in NAMES}
    found["moved"] = np.zeros(len(scene), np.float32)
    view, eye, columns = lens(camera), camera.place, (scene.means, scene.scales, scene.quats)
    grads = tuple(found[name] for name in NAMES[:4])

    def job(*span: int) -> None:
        unflatten(columns, flat.which, flat.rows, sums, view, grads, found["moved"], *span)
        uncolour(
            scene.means, scene.sh, flat.which, flat.colour, sums, eye, found["means"], found["sh"], *span
        )

    parts(len(flat.which), job, threads)
    found["background"] = np.einsum("hw,hwc->c", drawn.left.astype(np.float64), colour).astype(np.float32)
    return found


def _sums(flat: Flat, ground: Any, colour: Any, alpha: Any, threads: int) -> NDArray[Any]:
    """float64 [n, SUMS] of raster_back."""
    each = np.zeros((len(flat.entries), SUMS))

    def job(row: int) -> None:
        part = each[flat.starts[row] : flat.starts[row + 1]]
        unblend(flat.rows, flat.colour, flat.of_row(row), row, ground, colour, alpha, part)

    over(-(-len(alpha) // SIDE), job, threads)
    found: NDArray[Any] = gathered(flat.entries, each, len(flat.which))
    return found
