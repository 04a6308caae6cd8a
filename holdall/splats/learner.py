"""Gaussians that learn: Adam over a scene's numbers, and Gaussians that come, split and go while it does.

learner = Learner(scene)
for step in range(steps):
    loss = learner.loss(camera, wanted)      # of what it shows now, with gradients
    learner.step(loss)                       # one update; `learner.scene()` is the result
learner.prune(keep)                          # moments of what stays stay
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats.camera import Camera
from holdall.splats.likeness import photometric
from holdall.splats.raster_torch import rasterise
from holdall.splats.scene import Scene

RATES = {  # of 3D Gaussian splatting; `means` is in parts of the scene's extent
    "means": 1.6e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "base": 2.5e-3, "rest": 2.5e-3 / 20,
}  # fmt: skip
BETAS, EPS = (0.9, 0.999), 1e-15
_FALL = 0.01  # of the rate of means, at the end
_PERCENT = 1e-2


class Learner:
    """params: leaves by name, "base" and "rest" of the harmonics apart. moved, seen [N]: sums of how much places on the
    screen want to move and how often they were seen, since the last `grow`."""

    def __init__(
        self,
        scene: Scene,
        *,
        steps: int = 0,
        rates: Mapping[str, float] | None = None,
        background: Sequence[float] = (1, 1, 1),
        seed: int = 0,
    ):
        low, high = scene.box()
        self.extent = float(np.linalg.norm(high - low)) / 2 or 1.0
        self.rates, self.steps, self.done = {**RATES, **(rates or {})}, steps, 0
        self.background = torch.tensor(background, dtype=torch.float32)
        self.draw = torch.Generator().manual_seed(seed)
        arrays = {k: torch.from_numpy(v.copy()) for k, v in scene.arrays().items()}
        sh = arrays.pop("sh")
        self.params = {**arrays, "base": sh[:, :1].clone(), "rest": sh[:, 1:].clone()}
        self._cameras = scene.cameras
        self._moments = {k: (torch.zeros_like(p), torch.zeros_like(p)) for k, p in self.params.items()}
        self._told: dict[str, Tensor] = {}
        self._half = 1.0  # pixels
        self._fresh()

    def __len__(self) -> int:
        return len(self.params["means"])

    def exchange(self, gone: Sequence[str], more: Mapping[str, Tensor]) -> None:
        """Other leaves in the place of some: for methods that train something else. Their moments begin at 0."""
        for name in gone:
            del self.params[name], self._moments[name]
        for name, new in more.items():
            self.params[name] = new.clone()
            self._moments[name] = (torch.zeros_like(new), torch.zeros_like(new))
        self._fresh()

    def _fresh(self) -> None:
        for name, p in self.params.items():
            self.params[name] = p.detach().requires_grad_(bool(self.rates[name]))
        self.moved, self.seen = torch.zeros(len(self)), torch.zeros(len(self))

    def scene(self) -> Scene:
        """As it is now; shares no memory with the learner."""
        p = {k: v.detach().numpy().copy() for k, v in self.params.items()}
        sh = np.concatenate([p["base"], p["rest"]], 1)
        return Scene(p["means"], p["scales"], p["quats"], p["opacities"], sh, self._cameras)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """means, scales, quats, opacities, sh: what is drawn. Methods that train something else put theirs here."""
        p = self.params
        return p["means"], p["scales"], p["quats"], p["opacities"], torch.cat([p["base"], p["rest"]], 1)

    def show(self, camera: Camera) -> Tensor:
        """The picture [H, W, 3], with gradients."""
        means, scales, quats, opacities, sh = self.tensors()
        colour, _, self._told = rasterise(means, scales, quats, opacities, sh, camera, self.background)
        self._half = max(camera.width, camera.height) / 2
        return colour

    def loss(self, camera: Camera, wanted: Any) -> Tensor:
        return photometric(self.show(camera), torch.as_tensor(wanted))

    def step(self, loss: Tensor) -> float:
        """Backward and one update of all; the loss."""
        loss.backward()
        with torch.no_grad():
            if "moved" in self._told:
                self.moved += self._told["moved"] * self._half
                self.seen += self._told["seen"]
            self.done += 1
            for name, p in self.params.items():
                if p.grad is not None:
                    self._adam(p, p.grad, *self._moments[name], self._rate(name))
                    p.grad = None
        return float(loss.detach())

    def _rate(self, name: str) -> float:
        rate = self.rates[name]
        if name != "means":
            return rate
        share = min(self.done / self.steps, 1.0) if self.steps else 0.0
        return rate * self.extent * _FALL**share

    def _adam(self, p: Tensor, grad: Tensor, one: Tensor, two: Tensor, rate: float) -> None:
        a, b = BETAS
        one.lerp_(grad, 1 - a)
        two.mul_(b).addcmul_(grad, grad, value=1 - b)
        size = rate / (1 - a**self.done)
        p.addcdiv_(one, (two / (1 - b**self.done)).sqrt_().add_(EPS), value=-size)

    # who is there

    def prune(self, keep: Any) -> None:
        """Only these stay (a mask or numbers), in that order."""
        which = torch.as_tensor(keep)
        self._take(which.nonzero()[:, 0] if which.dtype == torch.bool else which)

    @torch.no_grad()
    def _take(self, which: Tensor) -> None:
        self.params = {k: p.detach()[which].clone() for k, p in self.params.items()}
        self._moments = {k: (a[which], b[which]) for k, (a, b) in self._moments.items()}
        self._fresh()

    @torch.no_grad()
    def add(self, more: Mapping[str, Tensor]) -> None:
        """Further Gaussians, after the others; their moments begin at 0."""
        for name, new in more.items():
            self.params[name] = torch.cat([self.params[name].detach(), new])
            self._moments[name] = tuple(torch.cat([m, torch.zeros_like(new)]) for m in self._moments[name])  # type: ignore[assignment]
        self._fresh()

    @torch.no_grad()
    def grow(self, *, above: float = 2e-4, most: int = 1 << 20, faint: float = 0.005) -> None:
        """Adaptive density: where places on the screen want to move by more than `above` (of half the picture), small
        Gaussians are doubled and large ones split in two; what is fainter than `faint` goes. most: Gaussians at all."""
        want = self.moved / self.seen.clamp_min(1)
        room = max(most - len(self), 0)
        chosen = want >= above
        if int(chosen.sum()) > room:  # those that want it most
            chosen = torch.zeros_like(chosen)
            chosen[want.topk(room).indices] = True
        size = self.params["scales"].exp().amax(1)
        small = chosen & (size <= _PERCENT * self.extent)
        large = chosen & ~small
        again = {k: p.detach()[small] for k, p in self.params.items()}
        halves = self._split(large)
        stay = ~large
        self._take(stay.nonzero()[:, 0])
        self.add(again)
        self.add(halves)
        self.prune(torch.sigmoid(self.params["opacities"].detach()) >= faint)

    def _split(self, which: Tensor) -> dict[str, Tensor]:
        """Two for one: drawn from it, and 1.6 times smaller."""
        from holdall.splats.naive_raster import naive_turns

        p = {k: v.detach()[which].repeat(2, *[1] * (v.dim() - 1)) for k, v in self.params.items()}
        away = torch.randn(p["means"].shape, generator=self.draw) * p["scales"].exp()
        p["means"] = p["means"] + (naive_turns(p["quats"]) @ away[:, :, None])[:, :, 0]
        p["scales"] = p["scales"] - math.log(1.6)
        return p

    @torch.no_grad()
    def dim(self, most: float = 0.01) -> None:
        """Opacities down to that, so that only what is wanted comes back."""
        self.params["opacities"].clamp_(max=math.log(most / (1 - most)))
        for m in self._moments["opacities"]:
            m.zero_()


def beginning(points: Any, colours: Any, degree: int = 0) -> Scene:
    """A scene to train from: a round Gaussian at each point [M, 3] of its colour (0 to 1), as large as its three
    neighbours are far."""
    from scipy.spatial import cKDTree

    from holdall.splats.scene import C0

    n = len(points)
    near = cKDTree(points).query(points, k=min(4, n))[0].reshape(n, -1)[:, 1:]
    size = np.sqrt(np.maximum((near**2).mean(1) if n > 1 else np.ones(n), 1e-7))
    sh = ((np.asarray(colours, np.float32) - 0.5) / C0)[:, None]
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1))
    fresh = Scene(points, np.log(size)[:, None].repeat(3, 1), quats, np.full(n, math.log(0.1 / 0.9)), sh)
    return fresh.with_degree(degree)
