"""Training with the price of what will be stored: planes and harmonics with noise as wide as their steps, the steps
learnt, and the bits that the models expect added to what the pictures say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.progress import track
from holdall.splats.coded_near import keys
from holdall.splats.hexplane import HexScene
from holdall.splats.hexplane_learn import HexLearner
from holdall.splats.light4gs_colours import ColourModel, Facts, bands
from holdall.splats.light4gs_hex import PlaneModel, sequence
from holdall.splats.light4gs_planes import STEP_BITS, Plane, code_of, step_of
from holdall.splats.moving import Shot
from holdall.splats.significance import significance

_KILO = 8000.0  # bits: what a price is of
_ROUNDED = 0.7  # share of the steps after which numbers are rounded
_PARTS = 3  # rounds in which all planes are priced once
_GRID = 1 << 10  # cells along an axis, for the order that harmonics are coded in


def spatio_temporal(x: HexScene, cameras: Sequence[Any], times: Sequence[float]) -> Any:
    """float64 [N]: how much each Gaussian is seen, where it is at that time: the mean over times and the most at any,
    so that what matters briefly stays."""
    seen = np.stack([significance(x.at(t), cameras) for t in times])
    return seen.mean(0) + seen.max(0)


def curve(means: Any) -> Any:
    """Gaussians along a curve through space, as numbers."""
    low, high = means.min(0).astype(np.float64), means.max(0).astype(np.float64)
    grid = ((means - low) / np.maximum(high - low, 1e-9) * (_GRID - 1)).astype(np.int64)
    return np.argsort(keys(grid), kind="stable")


def facts_of(opacities: Any, scales: Any) -> Facts:
    """As `light4gs_file` has them, nearly: it rounds within its own range."""
    found = []
    for x in (opacities, scales.mean(1)):
        span = (x.max() - x.min()).clamp_min(1e-6)
        found.append(((x - x.min()) / span * 255).round())
    return found[0], found[1]


class PricedLearner(HexLearner):
    """prices: of a kilobyte of planes and of harmonics."""

    def __init__(
        self,
        x: HexScene,
        planes: PlaneModel,
        colours: ColourModel,
        prices: tuple[float, float],
        step: float,
        **rest: Any,
    ):
        super().__init__(x, **rest)
        self.models, self.prices, self.noise = (planes, colours), prices, torch.Generator().manual_seed(7)
        leaves = self.hexes.planes
        self.centre = {
            k: p.detach().reshape(len(p), -1).median(1).values.half().float() for k, p in leaves.items()
        }
        self.octaves = {
            k: torch.full((len(p),), float(np.log2(step))).requires_grad_() for k, p in leaves.items()
        }
        self.shade = torch.full((4,), float(np.log2(step)) + 1).requires_grad_()  # of harmonics, by degree
        steps = [*self.octaves.values(), self.shade]
        groups = [
            {"params": [*planes.params(), *colours.params()], "lr": 0.01},
            {"params": steps, "lr": 0.02},
        ]
        self.pricing = torch.optim.Adam(groups, lr=0.01)
        self.order = torch.from_numpy(curve(x.still.means))
        self._known: dict[Plane, Tensor] = {}
        self._sh: Tensor | None = None
        with torch.no_grad():
            planes.begin({k: self._values(k) for k in leaves})
            colours.begin(self._harmonics()[0])

    def _values(self, plane: Plane) -> Tensor:
        """In steps, not rounded."""
        return (self.hexes.planes[plane] - self.centre[plane][:, None, None]) / self.octaves[plane].exp2()[
            :, None, None
        ]

    def _harmonics(self) -> tuple[Tensor, Tensor]:
        """(in steps, the steps [K, 1])."""
        sh = torch.cat([self.params["base"], self.params["rest"]], 1)
        steps = self.shade.exp2()[torch.tensor(bands(sh.shape[1]))][:, None]
        return sh / steps, steps

    def _noisy(self, x: Tensor) -> Tensor:
        """With noise as wide as a step; towards the end rounded, with gradients straight through."""
        if self.done >= _ROUNDED * self.steps:
            return x + (x.round() - x).detach()
        return x + torch.rand(x.shape, generator=self.noise) - 0.5

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        self._known, shown = {}, {}
        for plane, step in self.octaves.items():
            self._known[plane] = self._noisy(self._values(plane))
            shown[plane] = self.centre[plane][:, None, None] + self._known[plane] * step.exp2()[:, None, None]
        values, steps = self._harmonics()
        self._sh = self._noisy(values)
        self.hexes.shown = shown
        p = self.params
        still = [p["means"], p["scales"], p["quats"], p["opacities"], self._sh * steps]
        columns = self.hexes.moved(still, self.time)
        self.hexes.shown = None
        return columns[0], columns[1], columns[2], columns[3], columns[4]

    def shot_loss(self, shot: Shot) -> Tensor:
        seen = super().shot_loss(shot)
        planes, colours = self.models
        only = sequence(planes.scales)[self.done % _PARTS :: _PARTS]
        steps = {k: (v.detach().exp2() * (1 << STEP_BITS)) for k, v in self.octaves.items()}
        told: Any = sum(planes.bits(self._known, steps, self.noise, only).values())
        assert self._sh is not None
        p = self.params
        facts = facts_of(p["opacities"].detach()[self.order], p["scales"].detach()[self.order])
        shades = colours.bits(self._sh[self.order], facts)
        return seen + (self.prices[0] * told * _PARTS + self.prices[1] * shades) / _KILO

    def step(self, loss: Tensor) -> float:
        found = super().step(loss)
        self.pricing.step()
        self.pricing.zero_grad()
        return found

    def codes(self) -> tuple[dict[Plane, Tensor], Tensor]:
        """(of each plane's steps [h], of the harmonics' by degree)."""
        planes = {k: code_of(v.detach().exp2()) for k, v in self.octaves.items()}
        return planes, code_of(self.shade.detach().exp2())


def step_size(code: Any) -> Tensor:
    """As numbers."""
    return (step_of(code) / (1 << STEP_BITS)).float()


def priced(learner: HexLearner, shots: Sequence[Shot], steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in track(range(steps), "learning"):
        order = order or rng.permutation(len(shots)).tolist()
        learner.step(learner.shot_loss(shots[order.pop()]))
