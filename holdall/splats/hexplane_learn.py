"""Training a HexScene from pictures of many cameras at many times.

moving = fit_moving(shots, points, colours, steps=2000)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from holdall.progress import track
from holdall.splats.camera import Camera
from holdall.splats.hexplane import HEADS, PAIRS, TIMED, TRUNK, HexScene, depth
from holdall.splats.learner import RATES, Learner, beginning
from holdall.splats.likeness import photometric
from holdall.splats.moving import WHITE, Shot
from holdall.splats.scene import NAMES, Scene

PLANE_RATE, LAYER_RATE = 0.02, 0.004  # of Adam, at first; a tenth of it at the end
_FALL = 0.1
SHORT = {  # rates of short runs of small pictures, where 3D Gaussian splatting takes 30 000 steps
    **RATES, "means": 8e-4, "scales": 1e-2, "quats": 4e-3, "base": 1e-2, "rest": 2e-3,
}  # fmt: skip


class Hexes:
    """Planes and layers that learn. planes: leaves by (scale, pair); layers: leaves by name."""

    def __init__(self, x: HexScene):
        self.planes = {
            (s, i): torch.from_numpy(p.copy()).requires_grad_()
            for s, six in enumerate(x.planes)
            for i, p in enumerate(six)
        }
        self.layers = {k: torch.from_numpy(v.copy()).requires_grad_() for k, v in x.layers.items()}
        self.frame, self.clock = torch.from_numpy(x.frame.copy()), x.clock
        self.shown: Mapping[tuple[int, int], Tensor] | None = None  # planes as they will be stored

    @property
    def scales(self) -> int:
        return 1 + max(s for s, _ in self.planes)

    def features(self, means: Tensor, t: float) -> Tensor:  # [N, 3] -> [N, h of all scales]
        f = self.frame
        place = (means - f[:3]) @ f[3:12].reshape(3, 3).T / f[12:]
        low, high = self.clock
        at = torch.cat([place, torch.full_like(place[:, :1], low + (high - low) * t)], 1)
        planes = self.shown or self.planes
        found = []
        for s in range(self.scales):
            product: Any = 1.0
            for i, pair in enumerate(PAIRS):
                where = at[None, None][..., pair]
                got = grid_sample(
                    planes[s, i][None], where, "bilinear", padding_mode="border", align_corners=True
                )
                product = product * got[0, :, 0].T
            found.append(product)
        return torch.cat(found, 1)

    def moved(self, columns: Sequence[Tensor], t: float) -> list[Tensor]:
        """Columns of a scene, in the order of NAMES, at time t."""
        hidden = self._through(TRUNK, self.features(columns[0], t)).relu()
        found = []
        for name, own in zip(NAMES, columns, strict=True):
            if f"{name}/0/w" in self.layers:
                own = own + self._through(name, hidden).reshape(own.shape)
            found.append(own)
        return found

    def _through(self, name: str, x: Tensor) -> Tensor:
        for i in range(depth(self.layers, name)):
            x = x.relu() if i else x
            x = torch.nn.functional.linear(x, self.layers[f"{name}/{i}/w"], self.layers[f"{name}/{i}/b"])
        return x

    def smooth(self) -> tuple[Tensor, Tensor]:
        """How far planes are from smooth: over places, and over time (second differences, and off from 1)."""
        over, along = torch.zeros(()), torch.zeros(())
        for (_, i), p in self.planes.items():
            over = over + (p.diff(dim=2) ** 2).mean()
            if i in TIMED:
                along = along + (p.diff(n=2, dim=1) ** 2).mean() if p.shape[1] > 2 else along
                along = along + 0.01 * (p - 1).abs().mean()
            else:
                over = over + (p.diff(dim=1) ** 2).mean()
        return over, along

    def scene(self, still: Scene, shots: tuple[Shot, ...] = ()) -> HexScene:
        planes = tuple(
            tuple(self.planes[s, i].detach().numpy().copy() for i in range(len(PAIRS)))
            for s in range(self.scales)
        )
        layers = {k: v.detach().numpy().copy() for k, v in self.layers.items()}
        return HexScene(still, planes, layers, self.frame.numpy().copy(), self.clock, shots)


@dataclass(frozen=True)
class Smoothness:
    """Prices of planes that are not smooth: over places and over time."""

    places: float = 0.01
    times: float = 0.03


class HexLearner(Learner):
    """Learns the still Gaussians, and planes and layers with them. time: of what is drawn next."""

    def __init__(
        self,
        x: HexScene,
        *,
        steps: int = 0,
        rates: Mapping[str, float] | None = None,
        smooth: Smoothness | None = None,
        speed: float = 1.0,
        background: Sequence[float] = WHITE,
        seed: int = 0,
    ):
        super().__init__(x.still, steps=steps, rates=rates, background=background, seed=seed)
        self.hexes, self.time, self.price = Hexes(x), 0.0, smooth or Smoothness()
        self.resting = False  # whether Gaussians stay as they are
        groups = [
            {"params": list(self.hexes.planes.values()), "first": PLANE_RATE * speed},
            {"params": list(self.hexes.layers.values()), "first": LAYER_RATE * speed},
        ]
        self.teach = torch.optim.Adam(groups, lr=PLANE_RATE, eps=1e-15)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        columns = list(super().tensors())
        columns = columns if self.resting else self.hexes.moved(columns, self.time)
        return columns[0], columns[1], columns[2], columns[3], columns[4]

    def shot_loss(self, shot: Shot) -> Tensor:
        self.time = shot.time
        seen = photometric(self.show(shot.camera), torch.as_tensor(shot.picture))
        if self.resting:
            return seen
        over, along = self.hexes.smooth()
        return seen + self.price.places * over + self.price.times * along

    def loss(self, camera: Camera, wanted: Any) -> Tensor:
        return self.shot_loss(Shot(camera, self.time, wanted))

    def step(self, loss: Tensor) -> float:
        share = min(self.done / self.steps, 1.0) if self.steps else 0.0
        found = super().step(loss)
        for group in self.teach.param_groups:
            group["lr"] = group["first"] * _FALL**share
        self.teach.step()
        self.teach.zero_grad()
        return found

    def hex_scene(self, shots: tuple[Shot, ...] = ()) -> HexScene:
        return self.hexes.scene(self.scene(), shots)


def fresh(
    still: Scene,
    *,
    features: int = 8,
    base: int = 24,
    times: int = 12,
    scales: Sequence[int] = (1, 2),
    width: int = 32,
    heads: Sequence[str] = HEADS[:4],
    turned: bool = True,
    seed: int = 0,
) -> HexScene:
    """Nothing moves yet. turned: planes lie along the main axes of the points, and are as large as those are."""
    rng = np.random.default_rng(seed)
    planes = []
    for by in scales:
        sides = [base * by] * 3 + [times]
        six = []
        for a, b in PAIRS:
            level = np.ones(features) if b == 3 else rng.uniform(0.7, 1.3, features)
            six.append(np.tile(level[:, None, None], (1, sides[b], sides[a])))
        planes.append(tuple(six))
    layers = {}
    ends = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "sh": 3 * still.sh.shape[1]}
    for name, out, before in ((TRUNK, width, features * len(scales)), *((h, ends[h], width) for h in heads)):
        spread = np.sqrt(2 / before) if name == TRUNK else 1e-3
        layers[f"{name}/0/w"] = spread * rng.standard_normal((out, before))
        layers[f"{name}/0/b"] = np.zeros(out)
    return HexScene(still, tuple(planes), layers, framed(still.means, turned))


def framed(means: Any, turned: bool = True) -> Any:
    """float32 [15]: the box of points, along their main axes or the world's."""
    points = np.asarray(means, np.float64)
    axes = np.eye(3)
    if turned and len(points) > 3:
        axes = np.linalg.eigh(np.cov((points - points.mean(0)).T))[1].T[::-1]
        axes = axes * np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    along = points @ axes.T
    low, high = along.min(0), along.max(0)
    half = np.maximum((high - low) / 2, 1e-6 * max(1.0, float(np.abs(points).max())))
    return np.concatenate([axes.T @ ((low + high) / 2), axes.reshape(-1), 1.02 * half]).astype(np.float32)


@dataclass(frozen=True)
class Course:
    """How `fit_moving` goes, in shares of all steps. most: Gaussians at all; above: see Learner.grow."""

    steps: int = 2000
    still: float = 0.1  # before anything moves
    grow_until: float = 0.5
    grow_each: int = 100
    most: int = 4000
    above: float = 2e-4
    seed: int = 0


def fit_moving(
    shots: Sequence[Shot],
    points: Any,
    colours: Any,
    course: Course | None = None,
    *,
    degree: int = 1,
    smooth: Smoothness | None = None,
    **shape: Any,
) -> HexScene:
    """A HexScene from pictures, and points [M, 3] of colours [M, 3] to begin with. shape: what `fresh` takes."""
    course = course or Course()
    x = fresh(beginning(points, colours, degree), seed=course.seed, **shape)
    learner = HexLearner(x, steps=course.steps, rates=SHORT, smooth=smooth, seed=course.seed)
    learnt(learner, shots, course)
    return learner.hex_scene(tuple(shots))


def learnt(learner: HexLearner, shots: Sequence[Shot], course: Course) -> None:
    """By all shots in turn, each round in another order."""
    rng = np.random.default_rng(course.seed)
    order: list[int] = []
    for step in track(range(course.steps), "learning"):
        order = order or rng.permutation(len(shots)).tolist()
        learner.resting = step < course.still * course.steps
        learner.step(learner.shot_loss(shots[order.pop()]))
        due = (step + 1) % course.grow_each == 0
        if due and course.still * course.steps <= step < course.grow_until * course.steps:
            learner.grow(above=course.above, most=course.most)
