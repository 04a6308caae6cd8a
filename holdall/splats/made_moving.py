"""A moving scene made by rule: solids of `made.py`, one turning, one travelling, one at rest and one that comes late.

moving = moving_solids(2400)
shots = filmed(moving)                 # 12 cameras at 12 times, to learn from
apart = held_out(moving)               # other cameras at times between, to be judged on
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.camera import Camera, looking
from holdall.splats.made import ball, dressed, floor, ring
from holdall.splats.moving import Moving, Shot, drawn, moment
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

BODIES = ("floor", "ring", "ball", "late")
_SHARES = (0.3, 0.33, 0.22, 0.15)
_TURN = math.pi / 2  # of the ring, in all
_WAY = np.array([1.5, 0.0, 0.4])  # of the ball, in all
_LATE, _GROWN = 0.5, 0.6  # when the last solid begins to show, and is whole
_GOLDEN = (math.sqrt(5) - 1) / 2  # parts of the whole from one to the next spread over all of it
_FAINT, _SMALL = 12.0, 1.0  # what its opacities and scales, which are logarithms, lack before
# middle, size, and where `made.py` puts it
_PLACED = {
    "floor": ((0.0, 0.0, 0.0), 1.0, 0.0),
    "ring": ((-0.5, 0.5, -0.35), 0.6, 0.4),
    "ball": ((-0.75, 0.25, 0.95), 0.75, 0.4),
    "late": ((0.75, 0.25, -0.4), 0.75, 0.4),
}


class MovingSolids(Moving):
    """body [N]: which of BODIES each Gaussian is of. Highlights belong to the world, as those of lamps do."""

    def __init__(self, scene: Scene, body: NDArray[Any]):
        self.scene, self.body = scene, body
        self.cameras = scene.cameras

    def __len__(self) -> int:
        return len(self.scene)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Of one moment; motions are rules."""
        return self.scene.arrays()

    def take(self, which: Any) -> MovingSolids:
        return MovingSolids(self.scene.take(which), self.body[which])

    def at(self, t: float) -> Scene:
        t, still = moment(t), self.scene
        means, scales, quats, opacities, sh = (a.copy() for a in still.arrays().values())
        turned, gone, late = (self.body == i for i in (1, 2, 3))
        angle = _TURN * t
        c, s = math.cos(angle), math.sin(angle)
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        middle = np.array(_PLACED["ring"][0])
        means[turned] = (means[turned] - middle) @ turn.T + middle
        quats[turned] = _times((math.cos(angle / 2), 0.0, math.sin(angle / 2), 0.0), quats[turned])
        means[gone] += _WAY * t
        hidden = 1 - _eased((t - _LATE) / (_GROWN - _LATE))
        scales[late] -= _SMALL * hidden
        opacities[late] -= _FAINT * hidden
        return Scene(means, scales, quats, opacities, sh, self.cameras)


def moving_solids(count: int = 2400, degree: int = 1, seed: int = 0) -> MovingSolids:
    """`count` Gaussians in all, in an order by lot."""
    rng = np.random.default_rng(seed)
    shares = [max(1, round(count * share)) for share in _SHARES]
    shares[0] += count - sum(shares)
    parts = []
    for name, n, made in zip(BODIES, shares, (floor, ring, ball, ball), strict=True):
        means, normals = made(rng, n)
        middle, size, high = _PLACED[name]
        parts.append(((means - [0, high, 0]) * size + middle, normals))
    means, normals = (np.concatenate(x) for x in zip(*parts, strict=True))
    order = rng.permutation(count)
    body = np.repeat(np.arange(len(BODIES)), shares)
    scene = dressed(rng, means, normals).with_degree(degree)
    return MovingSolids(scene.take(order), body[order])


def ring_of(
    count: int, *, width: int = 64, height: int = 0, turn: float = 0.0, high: float = 0.45
) -> list[Camera]:
    """Cameras around the solids, from above. turn: in parts of the way from one to the next."""
    cameras = []
    for i in range(count):
        angle = 2 * math.pi * (i + turn) / count
        up = high + 0.25 * (i % 3 - 1)
        place = 3.6 * np.array([math.cos(angle), up, math.sin(angle)]) / math.hypot(1, up)
        cameras.append(looking(place, [0, 0.15, 0], width=width, height=height or width, name=f"ring {i}"))
    return cameras


def filmed(moving: Moving, cameras: int = 12, times: int = 12, width: int = 64) -> list[Shot]:
    """What a ring of cameras takes at even times from the first moment to the last, time by time."""
    return drawn(moving, ring_of(cameras, width=width), np.linspace(0, 1, times).tolist())


def held_out(moving: Moving, count: int = 12, times: int = 12, width: int = 64) -> list[Shot]:
    """From between the cameras and between the times of `filmed`."""
    between = (np.arange(times - 1) + 0.5) / (times - 1)
    chosen = between[(np.arange(count) * _GOLDEN % 1 * len(between)).astype(int)]
    cameras = ring_of(count, width=width, turn=0.5, high=0.5)
    return [drawn(moving, [camera], [float(t)])[0] for camera, t in zip(cameras, chosen, strict=True)]


def _eased(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _times(q: tuple[float, float, float, float], r: NDArray[Any]) -> NDArray[Any]:
    """The rotations r [n, 4] and then q."""
    a, b, c, d = q
    w, x, y, z = r.T
    return np.stack(
        [a * w - b * x - c * y - d * z, a * x + b * w + c * z - d * y,
         a * y - b * z + c * w + d * x, a * z + b * y - c * x + d * w], 1,
    )  # fmt: skip
