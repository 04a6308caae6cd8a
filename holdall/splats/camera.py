"""Cameras: pinholes with a place and a direction, and where to put them around a scene that came without any."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from holdall.splats.scene import Scene

NEAR = 0.01  # in the scene's units; what is nearer is not drawn
_GOLDEN = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole. rotation [3, 3] and translation [3] take the world to the camera, x right, y down, z forward.

    fx, fy, cx, cy: in pixels; the centre of the first pixel is at (0.5, 0.5). time: of a scene that moves, 0 to 1.
    """

    rotation: NDArray[Any]
    translation: NDArray[Any]
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    name: str = ""
    time: float | None = None

    def __post_init__(self) -> None:
        for field, shape in (("rotation", (3, 3)), ("translation", (3,))):
            array = np.asarray(getattr(self, field), dtype=np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise BadInput(f"camera's {field}", array.tolist(), f"finite numbers of shape {shape}")
            object.__setattr__(self, field, array)
        if not (self.width > 0 and self.height > 0 and self.fx > 0 and self.fy > 0):
            raise BadInput(
                "camera", f"{self.width} x {self.height}, fx {self.fx}, fy {self.fy}", "sizes above 0"
            )
        if self.time is not None and not 0 <= self.time <= 1:
            raise BadInput("camera", f"{self.name or 'one'} at time {self.time}", "a time of 0 to 1")

    @property
    def place(self) -> NDArray[Any]:
        """float64 [3], in the world."""
        return -self.rotation.T @ self.translation

    def scaled(self, by: float) -> Camera:
        """The same view in a picture of other size."""
        width, height = max(1, round(self.width * by)), max(1, round(self.height * by))
        x, y = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y, width=width, height=height
        )


def looking(
    place: Sequence[float] | NDArray[Any],
    at: Sequence[float] | NDArray[Any],
    up: Sequence[float] | NDArray[Any] = (0, 1, 0),
    *,
    width: int = 640,
    height: int = 480,
    degrees: float = 50.0,
    name: str = "",
) -> Camera:
    """From a place at a point. degrees: how much is seen from top to bottom."""
    place, at, up = (np.asarray(v, dtype=np.float64) for v in (place, at, up))
    forward = at - place
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:  # straight up or down
        right = np.cross(forward, np.roll(up, 1))
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    focal = height / 2 / math.tan(math.radians(degrees) / 2)
    return Camera(rotation, -rotation @ place, focal, focal, width / 2, height / 2, width, height, name)


def around(
    scene: Scene, count: int, *, width: int = 640, height: int = 480, turn: float = 0.0
) -> list[Camera]:
    """Evenly over a sphere around the middle of the scene, which it fills. turn: in parts of the golden angle, for
    other views than the first ones."""
    middle, radius = _ball(scene)
    cameras = []
    for i in range(count):
        up = 0.85 * (1 - (2 * i + 1) / count)  # never quite from the poles
        side, angle = math.sqrt(1 - up * up), _GOLDEN * (i + turn)
        direction = np.array([side * math.cos(angle), up, side * math.sin(angle)])
        place = middle + 2.4 * radius * direction
        cameras.append(looking(place, middle, width=width, height=height, name=f"around {i}"))
    return cameras


def _ball(scene: Scene) -> tuple[NDArray[Any], float]:
    low, high = scene.box()
    radius = float(np.linalg.norm(high.astype(np.float64) - low)) / 2
    return (low.astype(np.float64) + high) / 2, radius if radius > 0 else 1.0
