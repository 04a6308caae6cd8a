"""What Compact-3DGS trains: Gaussians with a mask each, a field for all their colours, and at the end books for forms.

learner = CompactLearner(scene, field, lambda_mask=4e-3, steps=2000)
learnt(learner, views, Plan(steps=2000))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.progress import track
from holdall.splats.camera import Camera
from holdall.splats.colour_field import ColourField
from holdall.splats.compact3dgs_file import Compact, form_of, least_scale, table_codes
from holdall.splats.compact3dgs_turns import nearest_to_none
from holdall.splats.learner import RATES, Learner
from holdall.splats.likeness import photometric
from holdall.splats.residual import Books
from holdall.splats.scene import Scene

EPS = 0.01  # of a mask's sigmoid: below it the Gaussian is not there
_HIDDEN = -30.0  # a logit
_WARM, _COLD = 100, 0.01  # steps, and the first one's rate
_FALLS, _FALL = (1 / 6, 1 / 2, 5 / 6), 0.33
_DECAY = 0.8

View = Callable[[int], tuple[Camera, Any]]  # (number) -> camera and picture [H, W, 3]


@dataclass(frozen=True)
class Plan:
    """Steps, in parts of all of them where they are shares. most: Gaussians at all."""

    steps: int
    grow_from: float = 1 / 60
    grow_until: float = 0.5
    grow_each: int = 100
    most: int = 1 << 20
    above: float = 2e-4
    quantise: float = 0.8  # from here on forms come out of books
    seed: int = 0


class CompactLearner(Learner):
    """params has "mask" in place of colours."""

    def __init__(
        self,
        scene: Scene,
        field: ColourField,
        *,
        lambda_mask: float,
        mask_rate: float = 0.01,
        field_rate: float = 0.01,
        threshold: float = 0.1,
        steps: int = 0,
        background: Sequence[float] = (1, 1, 1),
        seed: int = 0,
    ):
        super().__init__(
            scene.with_degree(0),
            steps=steps,
            rates={**RATES, "mask": mask_rate},
            background=background,
            seed=seed,
        )
        for name in ("base", "rest"):
            del self.params[name], self._moments[name]
        mask = torch.ones(len(scene))
        self.params["mask"] = mask
        self._moments["mask"] = (torch.zeros_like(mask), torch.zeros_like(mask))
        self._fresh()
        self.field, self.lambda_mask, self.threshold, self.field_rate = (
            field,
            lambda_mask,
            threshold,
            field_rate,
        )
        self._teach = torch.optim.Adam(field.params(), lr=field_rate, eps=1e-15)
        self._eye = np.zeros(3)
        self.books: tuple[Books, Books] | None = None
        self.least = 0.0  # scale

    def scene(self) -> Scene:
        """Without its colours, which the field has."""
        p = {k: v.detach().numpy().copy() for k, v in self.params.items()}
        sh = np.zeros((len(self), 1, 3), np.float32)
        return Scene(p["means"], p["scales"], p["quats"], p["opacities"], sh, self._cameras)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        p = self.params
        there = torch.sigmoid(p["mask"])
        kept = there > EPS
        soft = there - there.detach()  # 0, with the gradient that a mask of 1 passes on
        scales, quats = self._formed()
        opacity = torch.sigmoid(p["opacities"]).detach().clamp(max=1 - 1e-4)
        opacities = torch.where(kept, p["opacities"] + soft / (1 - opacity), _HIDDEN)
        base = self.field(p["means"], self._eye)
        return p["means"], scales + soft[:, None], quats, opacities, base[:, None]

    def _formed(self) -> tuple[Tensor, Tensor]:
        """Scales and rotations: as they are, or as the books have them, with gradients straight through."""
        scales, quats = self.params["scales"], torch.nn.functional.normalize(self.params["quats"], dim=1)
        if self.books is None:
            return scales, quats
        one, two = self.books
        with torch.no_grad():
            taken = torch.from_numpy(form_of(one.follow(scales.exp().numpy(), _DECAY), self.least))
            turned = torch.from_numpy(two.follow(quats.numpy(), _DECAY))
        return scales + (taken - scales).detach(), quats + (turned - quats).detach()

    def show(self, camera: Camera) -> Tensor:
        self._eye = camera.place
        return super().show(camera)

    def loss(self, camera: Camera, wanted: Any) -> Tensor:
        seen = photometric(self.show(camera), torch.as_tensor(wanted))
        return seen + self.lambda_mask * torch.sigmoid(self.params["mask"]).mean()

    def step(self, loss: Tensor) -> float:
        share = self.done / self.steps if self.steps else 0.0
        warm = min(1.0, _COLD + (1 - _COLD) * self.done / min(_WARM, max(1, self.steps // 10)))
        for group in self._teach.param_groups:
            group["lr"] = self.field_rate * warm * _FALL ** sum(share >= f for f in _FALLS)
        found = super().step(loss)
        self._teach.step()
        self._teach.zero_grad()
        return found

    @torch.no_grad()
    def cut(self) -> int:
        """Gaussians whose mask is shut go, and their moments; how many. One stays."""
        mask = self.params["mask"]
        keep = torch.sigmoid(mask) > EPS
        keep[mask.argmax()] = True
        self.prune(keep)
        return int((~keep).sum())

    @torch.no_grad()
    def quantise(self, stages: int, codes: int, seed: int = 0) -> None:
        """From now on forms come out of books, and the table of colours in steps."""
        p = self.params
        scales, quats = nearest_to_none(p["scales"].detach().numpy(), p["quats"].detach().numpy())
        for name, new in (("scales", scales), ("quats", quats)):
            p[name].copy_(torch.from_numpy(new))
            for m in self._moments[name]:
                m.zero_()
        self.least = least_scale(scales)
        self.books = (
            Books.learnt(np.exp(scales), stages, codes, seed),
            Books.learnt(quats, stages, codes, seed + 1),
        )
        self.field.shown = self._stepped

    def _stepped(self, table: Tensor) -> Tensor:
        codes, step = table_codes(table, self.threshold)
        return table + (codes * step - table).detach()

    def compact(self, views: Any) -> Compact:
        """What is to be stored. views: places [V, 3] of cameras."""
        assert self.books is not None, "forms are quantised first"
        x = self.scene()
        quats = x.quats / np.linalg.norm(x.quats, axis=1, keepdims=True)
        return Compact(x.means, x.scales, quats, x.opacities, self.field, *self.books, views)


def learnt(
    learner: Learner,
    views: View,
    numbers: Sequence[int],
    plan: Plan,
    *,
    quantise: Callable[[], None] | None = None,
) -> None:
    """Trains by all numbers of views in turn, each round in another order. Masks are cut when Gaussians grow, and as
    often afterwards. quantise: called once, before the last part."""
    rng = np.random.default_rng(plan.seed)
    order: list[int] = []
    grow_from, until, late = (
        int(plan.steps * share) for share in (plan.grow_from, plan.grow_until, plan.quantise)
    )
    for step in track(range(plan.steps), "learning"):
        order = order or rng.permutation(np.asarray(numbers)).tolist()
        camera, wanted = views(order.pop())
        if quantise is not None and step == late:
            quantise()
        learner.step(learner.loss(camera, wanted))
        due = (step + 1) % plan.grow_each == 0 and step + 1 < plan.steps
        if due and grow_from <= step < until:
            learner.grow(above=plan.above, most=plan.most)
        if due and isinstance(learner, CompactLearner):
            learner.cut()
