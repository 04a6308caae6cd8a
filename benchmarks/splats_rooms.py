"""Four rooms in a row, made by rule, for benchmarks/splats_momentum_gs.py: doors between them, and fewer photographs of
each. No figure that is asked of a trained scene is taken on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from holdall.splats.camera import Camera, looking
from holdall.splats.learner import beginning
from holdall.splats.made import _facing
from holdall.splats.raster import render
from holdall.splats.scene import C0, Scene

LONG, DEEP, HIGH, DOOR = 2.0, 1.6, 1.2, 0.35  # of a room; half of a door's width
VIEWS = (30, 20, 10, 4)
GAINS = (0.95, 1.05, 0.97, 1.04)  # exposure of a room's photographs
_TINTS = ((0.75, 0.45, 0.35), (0.35, 0.6, 0.5), (0.45, 0.45, 0.75), (0.7, 0.65, 0.35))


def rooms(count: int = 9000, seed: int = 0) -> Scene:
    """Floors, ceilings and walls with patterns; a fifth of the light depends on where it is seen from."""
    rng = np.random.default_rng(seed)
    whole, half = LONG * len(VIEWS), DEEP / 2
    sides = [  # corner, two edges, normal
        ((0, 0, -half), (whole, 0, 0), (0, 0, DEEP), (0, 1, 0)),
        ((0, HIGH, -half), (whole, 0, 0), (0, 0, DEEP), (0, -1, 0)),
        ((0, 0, -half), (whole, 0, 0), (0, HIGH, 0), (0, 0, 1)),
        ((0, 0, half), (whole, 0, 0), (0, HIGH, 0), (0, 0, -1)),
    ]
    for x in range(len(VIEWS) + 1):
        sides.append(((LONG * x, 0, -half), (0, 0, DEEP), (0, HIGH, 0), (1, 0, 0)))
    areas = np.array([np.linalg.norm(np.cross(a, b)) for _, a, b, _ in sides])
    means, normals = [], []
    for (corner, a, b, normal), n in zip(sides, rng.multinomial(count, areas / areas.sum()), strict=True):
        u, v = rng.random((2, n, 1))
        at = np.asarray(corner) + u * np.asarray(a) + v * np.asarray(b)
        inner = normal[0] != 0 and 0 < corner[0] < whole
        keep = (abs(at[:, 2]) > DOOR) | (at[:, 1] > 0.85 * HIGH) if inner else np.ones(n, bool)
        means.append(at[keep])
        normals.append(np.tile(np.asarray(normal, float), (int(keep.sum()), 1)))
    at, facing = np.concatenate(means), np.concatenate(normals)
    n = len(at)
    size = np.sqrt(areas.sum() / count)
    scales = np.log(size * np.array([0.95, 0.95, 0.05])) + 0.1 * rng.standard_normal((n, 3))
    sh = np.zeros((n, 4, 3))
    sh[:, 0] = (_pattern(at) - 0.5) / C0
    sh[:, 1:] = 0.12 * facing[:, [1, 2, 0], None]
    return Scene(at, scales, _facing(facing, rng), np.full(n, 3.0), sh)


def _pattern(at: Any) -> Any:
    room = np.clip(at[:, 0] // LONG, 0, len(VIEWS) - 1).astype(int)
    rate = np.array([3.0, 2.2, 4.0, 2.6])[room]
    wave = np.sin(rate * 2 * at[:, 0]) * np.cos(rate * 1.7 * at[:, 1] + room) + np.sin(
        rate * 1.5 * at[:, 2] + room
    )
    return np.clip(np.asarray(_TINTS)[room] + 0.13 * wave[:, None] * [1.0, 0.8, 0.6], 0.02, 0.98)


def inside(room: int, count: int, side: int, seed: int) -> list[Camera]:
    """Cameras that stand in a room and look across it."""
    rng, found = np.random.default_rng((seed, room)), []
    middle = np.array([LONG * (room + 0.5), HIGH / 2, 0.0])
    for i in range(count):
        angle, away = 2 * np.pi * (i + rng.uniform(0, 0.6)) / count, rng.uniform(0.3, 0.6, 2)
        away = np.array([away[0] * np.cos(angle), rng.uniform(-0.15, 0.15), away[1] * np.sin(angle)])
        place = middle + away
        aim = middle + np.array([-np.cos(angle) * 0.6, rng.uniform(-0.25, 0.25), -np.sin(angle) * 0.5])
        found.append(looking(place, aim, width=side, height=side * 3 // 4, degrees=75))
    return found


def across(count: int, side: int, seed: int) -> list[Camera]:
    """Cameras before a door, which see both rooms, alternately from either side: `count` for each door."""
    rng, found = np.random.default_rng(seed), []
    for door in range(1, len(VIEWS)):
        for i in range(count):
            way = 1 if i % 2 else -1
            place = np.array([LONG * door - way * rng.uniform(0.45, 0.8), HIGH / 2, rng.uniform(-0.25, 0.25)])
            aim = np.array(
                [LONG * door + way * 0.5, HIGH / 2 + rng.uniform(-0.1, 0.1), rng.uniform(-0.2, 0.2)]
            )
            found.append(looking(place, aim, width=side, height=side * 3 // 4, degrees=75))
    return found


class Rooms:
    """Photographs of each room, of its own exposure; views held out to judge by (`test`), to weigh blocks by
    (`judged`), and through doors (`seams`, of no room's exposure)."""

    def __init__(self, side: int = 48, views: Sequence[int] = VIEWS, seed: int = 0):
        self.side, self.scene = side, rooms(seed=seed)
        self.cameras: list[Camera] = []
        self.gains: list[float] = []
        self.train, self.judged, self.test = (self._views(counts, side, s) for counts, s in (
            (views, 1), ([6] * len(views), 2), ([8] * len(views), 3)))  # fmt: skip
        first = len(self.cameras)
        self.cameras += across(6, side, 4)
        self.seams = list(range(first, len(self.cameras)))
        self.gains += [1.0] * len(self.seams)
        self.pictures = [
            np.clip(render(self.scene, c).colour * g, 0, 1).astype(np.float32)
            for c, g in zip(self.cameras, self.gains, strict=True)
        ]

    def _views(self, counts: Sequence[int], side: int, seed: int) -> list[list[int]]:
        found = []
        for room, count in enumerate(counts):
            first = len(self.cameras)
            self.cameras += inside(room, count, side, seed)
            self.gains += [GAINS[room]] * count
            found.append(list(range(first, len(self.cameras))))
        return found

    def view(self, i: int) -> tuple[Camera, Any]:
        return self.cameras[i], self.pictures[i]

    def points(self, count: int, seed: int = 0) -> Scene:
        """As photographs' own model would have them: some of what is there, not quite in its place."""
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(self.scene))[:count]
        at = self.scene.means[some] + 0.02 * rng.standard_normal((count, 3)).astype(np.float32)
        colours = 0.5 + C0 * self.scene.sh[some, 0] + 0.05 * rng.standard_normal((count, 3))
        return beginning(at.astype(np.float32), np.clip(colours, 0, 1))
