"""What of a scene is worth its bytes: how much each Gaussian shows, and how much it would be missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.camera import Camera, around
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = 0.01  # of a Gaussian that blends in counts as if it stood out: its neighbours are coded roughly, too
_CONTRAST = 4.0  # the square of an even difference of colours of 0.5, inverted
_CROWD = 0.05  # as _PLAIN, where Gaussians are left out: many that are not missed alone are missed together


@dataclass(frozen=True)
class Weights:
    """colour, form [N]: how much errors of colour, and of place, size, turn and opacity, would show. need [N]: how much
    the Gaussian itself would be missed. In squared colour, over a picture of a million pixels."""

    colour: Any
    form: Any
    need: Any

    def take(self, which: Any) -> Weights:
        return Weights(self.colour[which], self.form[which], self.need[which])

    def logs(self, which: Any) -> np.ndarray:
        """[n, 2] to base 2."""
        return np.log2(np.stack([self.colour, self.form], 1)[which] + 1e-12)


def weighed(scene: Scene, cameras: Sequence[Camera], hidden: float) -> Weights:
    """hidden: the share of what it would show at the front that a Gaussian is taken to show where others hide it: a
    rough error may bring it forward."""
    from holdall.splats.coded_shown import shown

    light, missed, bare = shown(scene, cameras).T
    outside = bare == 0
    bare[outside] = _reckoned(scene.take(outside), cameras)
    colour = light + hidden * bare
    return Weights(colour, _CONTRAST * (missed + _PLAIN * colour), missed + _CROWD * colour)


def _reckoned(scene: Scene, cameras: Sequence[Camera]) -> np.ndarray:
    """What Gaussians outside of all views would show in the middle of them."""
    places = np.stack([c.place for c in cameras])
    away = float(np.median(np.linalg.norm(places - places.mean(0), axis=1))) or 1.0
    pixels = np.mean([c.fx * c.fy / (c.width * c.height) for c in cameras]) * 1e6
    sizes = np.sort(scene.scales.astype(np.float64), 1)[:, 1:].sum(1)
    opacity = 1 / (1 + np.exp(-scene.opacities.astype(np.float64)))
    found = opacity**2 * np.pi * pixels * np.exp(np.minimum(sizes, 40)) / away**2
    return np.minimum(found, 1e6)


def views(scene: Scene, count: int, width: int, turn: float = 0.0) -> list[Camera]:
    """The scene's own cameras, evenly chosen, or some on a sphere around it, at that width."""
    if not scene.cameras:
        return around(scene, count, width=width, height=max(1, width * 3 // 4), turn=turn)
    first = turn * len(scene.cameras) / count
    chosen = (first + np.arange(count) * len(scene.cameras) / count).astype(int) % len(scene.cameras)
    return [scene.cameras[i].scaled(width / scene.cameras[i].width) for i in np.unique(chosen)]
