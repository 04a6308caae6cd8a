"""Where to begin from photographs that came without points: places by lot, less those that a photograph shows to be
empty, of the colour that most photographs agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.learner import beginning
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from holdall.splats.camera import Camera
    from holdall.splats.posed_photos import Photos

_VIEWS = 24  # photographs that are asked
_TRIES = 24  # times as many places are drawn as are wanted
_PLAIN = 2 / 255  # of the background's colour, which is empty
_EMPTY = 1  # photographs may be wrong about a place


def from_photos(photos: Photos, count: int, seed: int = 0) -> Scene:
    """Round Gaussians: at the points of the photographs' own model, at most `count` of them, or by lot."""
    rng = np.random.default_rng(seed)
    if photos.points is not None and len(photos.points):
        some = rng.permutation(len(photos.points))[:count]
        return beginning(photos.points.means[some], photos.points.colours[some] / 255)
    numbers = photos.train
    asked = [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, _VIEWS).astype(int))]
    cameras = [photos.cameras[i] for i in asked]
    middle, radius = seen_ball(cameras)
    places = middle + radius * rng.uniform(-1, 1, (_TRIES * count, 3))
    empty, total, seen = np.zeros(len(places), int), np.zeros((len(places), 3)), np.zeros(len(places), int)
    for i, camera in zip(asked, cameras, strict=True):
        picture = photos.image(i)
        at, inside = _pixels(places, camera)
        shown = picture[at[:, 1], at[:, 0]]
        plain = (np.abs(shown - photos.background) <= _PLAIN).all(1)
        empty += inside & plain
        solid = inside & ~plain
        total[solid] += shown[solid]
        seen += solid
    order = np.argsort(np.where(empty <= _EMPTY, 0, empty), kind="stable")  # drawn by lot, so ties are, too
    kept = order[:count]
    colours = np.where(seen[kept, None] > 0, total[kept] / np.maximum(seen[kept, None], 1), 0.5)
    return beginning(places[kept].astype(np.float32), colours)


def seen_ball(cameras: Sequence[Camera]) -> tuple[NDArray[Any], float]:
    """(middle [3], radius) of what all look at: the point nearest to all lines of sight, or what lies before a single
    camera, as large as fits into their pictures."""
    places = np.stack([c.place for c in cameras])
    ways = np.stack([c.rotation[2] for c in cameras])
    across = np.eye(3) - ways[:, :, None] * ways[:, None]
    normal = across.sum(0)
    spread = float(np.linalg.norm(places - places.mean(0), axis=1).mean()) or 1.0
    aim = places.mean(0) + spread * ways.mean(0)
    hold = 1e-3 * len(cameras)
    middle = np.linalg.solve(
        normal + hold * np.eye(3), (across @ places[:, :, None]).sum(0)[:, 0] + hold * aim
    )
    away = np.linalg.norm(places - middle, axis=1)
    narrow = [min(c.width / c.fx, c.height / c.fy) / 2 for c in cameras]
    return middle, max(float(np.median(away * narrow)), 1e-3)


def _pixels(places: NDArray[Any], camera: Camera) -> tuple[NDArray[Any], NDArray[Any]]:
    """(columns and rows [N, 2], whether the place is in the picture [N])."""
    at = places @ camera.rotation.T + camera.translation
    depth = np.where(at[:, 2] > 1e-6, at[:, 2], 1)
    x = camera.fx * at[:, 0] / depth + camera.cx
    y = camera.fy * at[:, 1] / depth + camera.cy
    inside = (at[:, 2] > 1e-6) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    found = np.stack([np.clip(x, 0, camera.width - 1), np.clip(y, 0, camera.height - 1)], 1)
    return found.astype(int), inside
