"""How much each Gaussian of a scene is seen: what is pruned by, with no photographs.

significance(scene, cameras)                        the sum of its shares of all pixels
lightgaussian(scene, significance(scene, cameras))  times a term for its volume (Fan et al. 2024)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.splats.camera import Camera
from holdall.splats.raster_flat import flat_of, over
from holdall.splats.raster_project import SIDE
from holdall.splats.raster_sums import weigh
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("sum", "hits", "most")
_LARGE = 0.9  # the share of Gaussians that are smaller than the one whose volume counts as 1


def significance(
    scene: Scene, cameras: Sequence[Camera], kind: str = "sum", *, threads: int = 0
) -> NDArray[Any]:
    """float64 [N] over all pixels of all cameras, higher is more: "sum" of its opacity times the light that reaches it,
    "hits", the pixels where that is above 0, or the "most" that it has in one pixel."""
    if kind not in KINDS:
        raise BadInput("kind", kind, f"one of {', '.join(KINDS)}")
    if not len(cameras):
        raise BadInput("cameras", "none", "at least one; splats.camera.around(scene, 12) chooses some")
    return contributions(scene, cameras, threads=threads)[:, KINDS.index(kind)]


def contributions(scene: Scene, cameras: Sequence[Camera], *, threads: int = 0) -> NDArray[Any]:
    """float64 [N, 3]: all KINDS from one pass."""
    found = np.zeros((len(scene), len(KINDS)))
    for camera in cameras:
        flat = flat_of(scene, camera, threads)
        sums = np.zeros((len(flat.entries), len(KINDS)))

        def job(row: int, flat: Any = flat, sums: Any = sums, camera: Camera = camera) -> None:
            part = sums[flat.starts[row] : flat.starts[row + 1]]
            weigh(flat.rows, flat.of_row(row), row, camera.height, camera.width, part)

        over(-(-camera.height // SIDE), job, threads)
        view = np.zeros((len(flat.which), len(KINDS)))
        np.add.at(view[:, :2], flat.entries, sums[:, :2])
        np.maximum.at(view[:, 2], flat.entries, sums[:, 2])
        found[flat.which, :2] += view[:, :2]
        found[flat.which, 2] = np.maximum(found[flat.which, 2], view[:, 2])
    return found


def volume_term(scene: Scene, beta: float = 0.1) -> NDArray[Any]:
    """float64 [N] in 0 to 1: volumes over the one at the 90th percentile, at most 1, to the power of beta."""
    logs = scene.scales.astype(np.float64).sum(1)
    return np.exp(beta * np.minimum(logs - np.quantile(logs, _LARGE), 0))


def lightgaussian(scene: Scene, seen: NDArray[Any], beta: float = 0.1) -> NDArray[Any]:
    """LightGaussian's global significance float64 [N], of a "sum"."""
    return np.asarray(seen, dtype=np.float64) * volume_term(scene, beta)
