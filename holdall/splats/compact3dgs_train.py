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
from holdall.splats.colour_field_file import table_codes
from holdall.splats.compact3dgs_file import Compact, form_of, least_scale
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
        self.exchange(("base", "rest"), {"mask": torch.ones(len(scene))})
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
        soft, opacities = opened(p["mask"], p["opacities"])
        scales, quats = self._formed()
        base = self.field(p["means"], self._eye)
        return p["means"], scales + soft, quats, opacities, base[:, None]

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
        for group in self._teach.param_groups:
            group["lr"] = self.field_rate * pace(self.done, self.steps)
        found = super().step(loss)
        self._teach.step()
        self._teach.zero_grad()
        return found

    @torch.no_grad()
    def quantise(self, stages: int, codes: int, seed: int = 0) -> None:
        """From now on forms come out of books, and the table of colours in steps."""
        p = self.params
        scales, quats, *_ = nearest_to_none(p["scales"].detach().numpy(), p["quats"].detach().numpy())
        for name, new in (("scales", scales), ("quats", quats)):
            p[name].copy_(torch.from_numpy(new))
            for m in self._moments[name]:
                m.zero_()
        self.least = least_scale(scales)
        self.books = (
            Books.learnt(np.exp(scales), stages, codes, seed),
            Books.learnt(quats, stages, codes, seed + 1),
        )
        self.field.shown = lambda table: stepped(table, self.threshold)

    def compact(self, views: Any) -> Compact:
        """What is to be stored. views: places [V, 3] of cameras."""
        assert self.books is not None, "forms are quantised first"
        x = self.scene()
        quats = x.quats / np.linalg.norm(x.quats, axis=1, keepdims=True)
        return Compact(x.means, x.scales, quats, x.opacities, self.field, *self.books, views)


def pace(done: int, steps: int) -> float:
    """Of a field's rate: slow at first, then whole, and three times a third of it."""
    share = done / steps if steps else 0.0
    warm = min(1.0, _COLD + (1 - _COLD) * done / min(_WARM, max(1, steps // 10)))
    return float(warm * _FALL ** sum(share >= f for f in _FALLS))


def stepped(table: Tensor, threshold: float) -> Tensor:
    """As it will be stored, with gradients straight through."""
    codes, step = table_codes(table, threshold)
    return table + (codes * step - table).detach()


def opened(mask: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
    """(logarithm of what a mask leaves of a size: 0, with the gradient that a mask of 1 passes on; logits of opacities,
    which it scales, too)."""
    there = torch.sigmoid(mask)
    soft = there - there.detach()
    opacity = torch.sigmoid(opacities).detach().clamp(max=1 - 1e-4)
    return soft[:, None], torch.where(there > EPS, opacities + soft / (1 - opacity), _HIDDEN)


@torch.no_grad()
def cut(learner: Learner) -> int:
    """Gaussians whose mask is shut go, and their moments; how many. One stays."""
    mask = learner.params["mask"]
    keep = torch.sigmoid(mask) > EPS
    keep[mask.argmax()] = True
    learner.prune(keep)
    return int((~keep).sum())


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
        if due and "mask" in learner.params:
            cut(learner)
