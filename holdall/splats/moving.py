"""The contract of a scene that moves: at every moment of 0 to 1 it is a `Scene`.

shots = drawn(moving, cameras, times)          # pictures with their camera and time: what training learns from
error = likeness(other, shots)                 # how another moving scene shows them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.camera import Camera
    from holdall.splats.scene import Scene

WHITE = (1.0, 1.0, 1.0)


class Moving(ABC):
    """A scene that moves. cameras: views that it is for, as a `Scene` has them; none are needed."""

    cameras: tuple[Camera, ...] = ()

    @abstractmethod
    def at(self, t: float) -> Scene:
        """The scene at time t of [0, 1]: the same Gaussians in the same order at every time."""

    @abstractmethod
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """All numbers that it consists of, by name; float32, whatever keeps them."""

    @abstractmethod
    def __len__(self) -> int:
        """Gaussians."""

    @property
    def elements(self) -> int:
        return sum(a.size for a in self.arrays().values())

    @property
    def nbytes(self) -> int:
        """As float32: what a share of a budget is a share of."""
        return 4 * self.elements


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture float32 [H, W, 3] of colours from 0 to 1, with where and when it was taken."""

    camera: Camera
    time: float
    picture: NDArray[Any]


def moment(t: float) -> float:
    """t, or BadInput for what is no time of a moving scene."""
    if not 0 <= t <= 1:
        raise BadInput("time", t, "0 to 1: the first moment to the last")
    return float(t)


def drawn(
    moving: Moving,
    cameras: Sequence[Camera],
    times: Iterable[float],
    ground: Sequence[float] = WHITE,
) -> list[Shot]:
    """Each camera at each time, time by time."""
    from holdall.splats.raster import render

    shots = []
    for t in times:
        scene = moving.at(t)
        shots += [Shot(camera, float(t), render(scene, camera, ground).colour) for camera in cameras]
    return shots


def likeness(moving: Moving, shots: Sequence[Shot], ground: Sequence[float] = WHITE) -> float:
    """PSNR in dB of how it shows all shots together: of the mean of their squared errors."""
    import numpy as np

    from holdall.splats.quality import psnr
    from holdall.splats.raster import render

    errors, scenes = [], {t: moving.at(t) for t in {shot.time for shot in shots}}
    for shot in shots:
        shown = np.clip(render(scenes[shot.time], shot.camera, ground).colour, 0, 1)
        errors.append(((shown - np.clip(shot.picture, 0, 1)).astype(np.float64) ** 2).mean())
    return psnr(float(np.mean(errors)))
