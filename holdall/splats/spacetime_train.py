"""Spacetime Gaussians that learn from pictures of many times: plainly, or with masks, a field of colours, and books.

learner = SpacetimeLearner(at_rest(scene), steps=1500)
learnt(learner, views, numbers, Plan(steps=1500))       # cameras have times
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.errors import BadInput
from holdall.splats.camera import Camera
from holdall.splats.colour_field import ColourField
from holdall.splats.compact3dgs_train import opened, pace, stepped
from holdall.splats.compact3dgs_turns import nearest_to_none
from holdall.splats.learner import Learner
from holdall.splats.residual_learnt import LearntBooks
from holdall.splats.scene import Scene
from holdall.splats.spacetime import SHAPES, SpacetimeScene, coloured, placed

IN_TIME = {"motion": 3.5, "spins": 3e-3, "times": 1e-3, "spans": 3e-2, "features": 2.5e-3, "tints": 2.5e-3}
BOOKS = {"scales": 0, "quats": 0, "spins": 1, "tints": 1}  # 0: of forms; 1: of what changes in time
_DECODE = 1e-3  # rate of the decoder
_STILL = ("means", "scales", "quats", "opacities")


class SpacetimeLearner(Learner):
    """params as a SpacetimeScene's columns. The rate of motion is in parts of that of places."""

    def __init__(
        self,
        scene: SpacetimeScene,
        *,
        steps: int = 0,
        rates: Mapping[str, float] | None = None,
        background: Sequence[float] = (1, 1, 1),
        seed: int = 0,
    ):
        bare = np.zeros((len(scene), 1, 3), np.float32)
        still = Scene(scene.means, scene.scales, scene.quats, scene.opacities, bare, scene.cameras)
        rates = {**IN_TIME, **(rates or {})}
        super().__init__(still, steps=steps, rates=rates, background=background, seed=seed)
        more = {name: torch.from_numpy(a) for name, a in scene.columns().items() if name not in _STILL}
        self.exchange(("base", "rest"), more)
        self.layers = [torch.from_numpy(x.copy()).requires_grad_(True) for x in scene.decoder]
        self._decode = torch.optim.Adam(self.layers, lr=_DECODE)
        self._eye, self._time = np.zeros(3), 0.0

    def columns(self) -> dict[str, Tensor]:
        """What is drawn, of all times."""
        return self.params

    def moving(self) -> SpacetimeScene:
        """As it is now; shares no memory with the learner."""
        with torch.no_grad():
            columns = self.columns()
        found = {name: columns[name].numpy(force=True).copy() for name in SHAPES}
        layers = [x.numpy(force=True).copy() for x in self.layers]
        return SpacetimeScene(**found, decoder=(layers[0], layers[1]), cameras=self._cameras)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        columns = self.columns()
        means, scales, quats, opacities, off = placed(columns, self._time)
        ways = torch.nn.functional.normalize(means.detach() - torch.as_tensor(self._eye).to(means), dim=1)
        base = coloured(columns["features"], off, ways, self.layers)
        return means, scales, quats, opacities, base[:, None]

    def show(self, camera: Camera) -> Tensor:
        if camera.time is None:
            raise BadInput("camera", f"{camera.name or 'one'} without a time", "a view of a moving scene")
        self._eye, self._time = camera.place, camera.time
        return super().show(camera)

    def step(self, loss: Tensor) -> float:
        found = super().step(loss)
        self._decode.step()
        self._decode.zero_grad()
        return found

    def _rate(self, name: str) -> float:
        return self.rates[name] * super()._rate("means") if name == "motion" else super()._rate(name)


class CompactSpacetimeLearner(SpacetimeLearner):
    """params has "mask", and "tints" in place of features: the other six come out of the field."""

    def __init__(
        self,
        scene: SpacetimeScene,
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
        super().__init__(scene, steps=steps, rates={"mask": mask_rate}, background=background, seed=seed)
        tints = torch.from_numpy(scene.features[:, 6:].copy())
        self.exchange(("features",), {"mask": torch.ones(len(scene)), "tints": tints})
        self.field, self.lambda_mask, self.threshold, self.field_rate = (
            field,
            lambda_mask,
            threshold,
            field_rate,
        )
        self._teach = torch.optim.Adam(field.params(), lr=field_rate, eps=1e-15)
        self.books: dict[str, LearntBooks] = {}

    def columns(self) -> dict[str, Tensor]:
        p = dict(self.params)
        soft, p["opacities"] = opened(p["mask"], p["opacities"])
        if not self.books:
            p["quats"] = torch.nn.functional.normalize(p["quats"], dim=1)
        for name, books in self.books.items():
            p[name] = books(p[name])
        p["scales"] = p["scales"] + soft
        p["features"] = torch.cat([self.field.still(p["means"]), p["tints"]], 1)
        return p

    def loss(self, camera: Camera, wanted: Any) -> Tensor:
        found = super().loss(camera, wanted) + self.lambda_mask * torch.sigmoid(self.params["mask"]).mean()
        return sum((books.missed for books in self.books.values()), found)

    def step(self, loss: Tensor) -> float:
        for group in self._teach.param_groups:
            group["lr"] = self.field_rate * pace(self.done, self.steps)
        found = super().step(loss)
        self._teach.step()
        self._teach.zero_grad()
        for books in self.books.values():
            books.step()
        return found

    @torch.no_grad()
    def quantise(self, stages: tuple[int, int], codes: int, seed: int = 0) -> None:
        """From now on forms, turns and tints come out of books, and the table of colours in steps."""
        p = self.params
        arrays = [p[name].detach().numpy() for name in ("scales", "quats", "spins")]
        for name, new in zip(("scales", "quats", "spins"), nearest_to_none(*arrays), strict=True):
            p[name].copy_(torch.from_numpy(new))
            for m in self._moments[name]:
                m.zero_()
        for i, (name, kind) in enumerate(BOOKS.items()):
            self.books[name] = LearntBooks(p[name], stages[kind], codes, seed + i)
        self.field.shown = lambda table: stepped(table, self.threshold)
