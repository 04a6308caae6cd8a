"""How a light scene learns: recovers from pruning, looks as its teacher with fewer harmonics, makes good what was
quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats.camera import Camera
from holdall.splats.learner import BETAS, EPS, Learner
from holdall.splats.lightgaussian_books import Split
from holdall.splats.raster import render
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.posed_photos import Photos

Look = Callable[[int, np.random.Generator], tuple[Camera, Any, Any]]  # camera, what it sees, what is behind
JITTER, PSEUDO = 0.05, 2 / 3  # of the scene's extent, per axis; share of steps that look from there
_FALLS, _FALL = 10, 0.9  # the paper's 0.9 for each 500 of 5,000 steps
_WIDE, _HIGH = 240, 180  # pixels of a picture that are learnt from in one step
_HELD = 1 << 28  # bytes of pictures that are kept
_WHITE = 0.5  # share of steps before white; others before any colour: what is clear stays clear
STILL = 1.0  # gradients, in mean ones, that move a number half as far as large ones do
# Twice those of 3D Gaussian splatting: there are few steps.
RECOVERY = {
    "means": 3.2e-4, "scales": 1e-2, "quats": 4e-3, "opacities": 5e-2, "base": 5e-3, "rest": 1e-3,
}  # fmt: skip
COLOURS = {"means": 0.0, "scales": 0.0, "quats": 0.0, "opacities": 0.0, "base": 2.5e-3, "rest": 1e-3}


class Pictures:
    """Of a scene, from its cameras and, in two of three times, from beside them. jitter: of cameras' places, in parts
    of the scene's extent; 0: only from the cameras."""

    def __init__(self, scene: Scene, cameras: Sequence[Camera], jitter: float = 0.0):
        low, high = scene.box()
        self.scene, self.cameras = scene, cameras
        self.away = jitter * float(np.linalg.norm(high - low)) / 2
        self._held: dict[int, Any] = {}

    def __call__(self, i: int, rng: np.random.Generator) -> tuple[Camera, Any, Any]:
        camera, ground = self.cameras[i], rng.random(3).astype(np.float32)
        if rng.random() < _WHITE:
            ground = np.ones(3, np.float32)
        if self.away and rng.random() < PSEUDO:
            camera = moved(camera, rng.normal(0, self.away, 3))
            return camera, render(self.scene, camera, ground.tolist()).colour, ground
        if i not in self._held:
            drawn = render(self.scene, camera)
            if drawn.colour.nbytes * 4 // 3 * (len(self._held) + 1) > _HELD:
                return camera, drawn.colour + (1 - drawn.alpha)[:, :, None] * ground, ground
            self._held[i] = drawn.colour, drawn.alpha
        colour, alpha = self._held[i]
        return camera, colour + (1 - alpha)[:, :, None] * ground, ground


def photographs(photos: Photos) -> Look:
    """Of those to learn from, by their number among them."""

    def look(i: int, rng: np.random.Generator) -> tuple[Camera, Any, Any]:
        at = photos.train[i]
        return photos.cameras[at], photos.image(at), photos.background

    return look


def moved(camera: Camera, by: NDArray[Any]) -> Camera:
    """The same view from beside."""
    return replace(camera, translation=camera.translation - camera.rotation @ by)


def cropped(camera: Camera, wanted: Any, rng: np.random.Generator) -> tuple[Camera, Any]:
    """A part of a large picture: steps cost by pixels, and what learns from small pictures looks well only in them."""
    width, height = min(_WIDE, camera.width), min(_HIGH, camera.height)
    x, y = (int(rng.integers(0, a - b + 1)) for a, b in ((camera.width, width), (camera.height, height)))
    seen = replace(camera, cx=camera.cx - x, cy=camera.cy - y, width=width, height=height)
    return seen, np.ascontiguousarray(wanted[y : y + height, x : x + width])


def turns(count: int, steps: int, rng: np.random.Generator) -> list[int]:
    """Which view each step looks at: all of them in an order by lot, then again."""
    rounds = [rng.permutation(count) for _ in range(-(-steps // max(1, count)))]
    return [int(i) for i in np.concatenate(rounds)[:steps]] if rounds else []


def recovered(scene: Scene, look: Look, count: int, steps: int, seed: int) -> Scene:
    """Fine-tuned to `count` views, with nobody coming or going."""
    if not steps:
        return scene
    learner = Learner(scene, steps=steps, rates=RECOVERY, seed=seed)
    _falling(learner, look, count, steps, seed)
    return learner.scene()


def distilled(
    scene: Scene, degree: int, cameras: Sequence[Camera], steps: int, seed: int, jitter: float = JITTER
) -> Scene:
    """Its harmonics cut to a degree and taught to look as they did. Form and opacity stay."""
    student = scene.with_degree(degree)
    if not steps:
        return student
    learner = Steady(student, steps=steps, rates=COLOURS, seed=seed)
    _falling(learner, Pictures(scene, cameras, jitter), len(cameras), steps, seed)
    return learner.scene()


class Steady(Learner):
    """What hardly shows hardly moves. Adam alone moves all numbers alike, and what moves for nothing costs bytes."""

    def _adam(self, p: Tensor, grad: Tensor, one: Tensor, two: Tensor, rate: float) -> None:
        a, b = BETAS
        one.lerp_(grad, 1 - a)
        two.mul_(b).addcmul_(grad, grad, value=1 - b)
        size = (two / (1 - b**self.done)).sqrt_()
        p.addcdiv_(one, size.add_(STILL * size.mean() + EPS), value=-rate / (1 - a**self.done))


class Shared(Steady):
    """Colours learn while form stays as it was stored, and harmonics that share an entry of the book stay shared.

    plain: how many harmonics each Gaussian has of its own (0 or 1); book [K, harmonics - plain, 3].
    """

    def __init__(self, scene: Scene, cut: Split, book: NDArray[Any], plain: int, *, steps: int, seed: int):
        super().__init__(scene, steps=steps, rates={**COLOURS, "book": COLOURS["rest"]}, seed=seed)
        self._add("book", torch.tensor(book, dtype=torch.float32))
        self.top, self.owner = torch.from_numpy(cut.top)[:, None, None], torch.from_numpy(cut.owner)
        self.plain = plain

    def _add(self, name: str, values: Tensor) -> None:
        self.params[name] = values.requires_grad_(True)
        self._moments[name] = (torch.zeros_like(values), torch.zeros_like(values))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        means, scales, quats, opacities, sh = super().tensors()
        if len(self.params["book"]):
            shared = self.params["book"][self.owner.clamp_min(0)]
            sh = torch.cat([sh[:, : self.plain], torch.where(self.top, sh[:, self.plain :], shared)], 1)
        return means, scales, quats, opacities, sh

    def colours(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(sh [N, K, 3], book)."""
        with torch.no_grad():
            return self.tensors()[4].numpy().copy(), self.params["book"].detach().numpy().copy()


def tuned(learner: Shared, look: Look, count: int, steps: int, seed: int) -> None:
    _falling(learner, look, count, steps, seed)


def _falling(learner: Learner, look: Look, count: int, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for step, i in enumerate(turns(count, steps, rng)):
        camera, wanted, ground = look(i, rng)
        camera, wanted = cropped(camera, wanted, rng)
        learner.background = torch.as_tensor(ground)
        learner.step(learner.loss(camera, wanted))
        if (step + 1) * _FALLS // steps > step * _FALLS // steps:
            learner.rates = _times(learner.rates, _FALL)


def _times(rates: Mapping[str, float], by: float) -> dict[str, float]:
    return {name: rate * by for name, rate in rates.items()}
