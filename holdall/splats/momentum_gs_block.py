"""One block while it trains: its anchors, their moments, and what anchors come and go by.

block = Block(anchors, decoder, voxel=0.1, steps=400)
loss = block.loss_of(camera, wanted)        # photometric, volumes; block.told and block.part: of what is in the picture
block.step(loss)                            # the anchors' update; the decoder has its gradients
block.adjust(above=2e-4, most=2000)         # grow and prune
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats.anchors import NAMES, Decoder, Told, gaussians, visible
from holdall.splats.camera import Camera
from holdall.splats.learner import Learner
from holdall.splats.likeness import photometric
from holdall.splats.momentum_gs_grow import wanted_anchors
from holdall.splats.raster_torch import rasterise
from holdall.splats.scene import Scene

RATES = {"means": 0.0, "feature": 7.5e-3, "scaling": 7e-3, "offsets": 1e-2}  # of Scaffold-GS
_FALL = 0.01  # of the rate of offsets, at the end
_SUMS = ("moved", "seen", "shown", "asked")
_OFTEN = 0.4  # of the steps since the last time: whoever was seen less is not judged


class Block(Learner):
    """moved, seen [N * k] and shown, asked [N]: sums since the last `adjust`. told, part: of the last picture."""

    def __init__(
        self,
        anchors: Mapping[str, Tensor],
        decoder: Decoder,
        *,
        voxel: float,
        steps: int = 0,
        background: Sequence[float] = (1, 1, 1),
        seed: int = 0,
    ):
        self.decoder, self.voxel, self.each = decoder, voxel, decoder.offsets
        n = len(anchors["means"])
        bare = Scene(anchors["means"].numpy(force=True), np.zeros((n, 3)), np.ones((n, 4)), np.zeros(n), np.zeros((n, 1, 3)))  # noqa: E501  # fmt: skip
        super().__init__(bare, steps=steps, rates=RATES, background=background, seed=seed)
        self.since = 0
        self.exchange(list(self.params), {name: anchors[name].detach() for name in NAMES})

    def _fresh(self) -> None:
        super()._fresh()
        n = len(self)
        self.moved, self.seen = torch.zeros(n * self.each), torch.zeros(n * self.each)
        self.shown, self.asked = torch.zeros(n), torch.zeros(n)

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from."""
        found = {name: p.detach() for name, p in self.params.items()}
        for name, moments in self._moments.items():
            found |= {f"{name}.{i}": m for i, m in enumerate(moments)}
        found |= {name: getattr(self, name) for name in _SUMS}
        found["steps"] = torch.tensor([self.done, self.since])
        found["draw"] = self.draw.get_state()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.params = {name: state[name] for name in NAMES}
        self._moments = {name: (state[f"{name}.0"], state[f"{name}.1"]) for name in NAMES}
        self._fresh()
        for name in _SUMS:
            setattr(self, name, state[name])
        self.done, self.since = (int(v) for v in state["steps"])
        self.draw.set_state(state["draw"])

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.state().values())

    def show(self, camera: Camera) -> Tensor:
        p = self.params
        self._which = visible(p["means"], p["scaling"].detach(), camera)
        self.part = {name: v.index_select(0, self._which) for name, v in p.items()}
        self.told: Told = self.decoder(self.part["feature"], self.part["means"], camera.place)
        columns = gaussians(self.told, self.part)
        self._scales = columns[1]
        colour, _, self._told = rasterise(*columns, camera, self.background)
        self._half = max(camera.width, camera.height) / 2
        return colour

    def loss_of(self, camera: Camera, wanted: Any, volume: float = 0.01) -> tuple[Tensor, Tensor]:
        """(loss, the picture). volume: what a Gaussian costs that fills a cell of the grid."""
        shown = self.show(camera)
        sizes = (self._scales - np.log(self.voxel)).sum(1).clamp(max=6).exp()
        return photometric(shown, torch.as_tensor(wanted)) + volume * sizes.mean(), shown

    def step(self, loss: Tensor) -> float:
        info, self._told = self._told, {}  # of those in the picture: added here, not by the base
        found = super().step(loss)
        rows = (self._which[:, None] * self.each + torch.arange(self.each)).reshape(-1)
        self.moved.index_add_(0, rows, info["moved"] * self._half)
        self.seen.index_add_(0, rows, info["seen"])
        opacity = self.told.opacity.detach().clamp_min(0).sum(1)
        self.shown.index_add_(0, self._which, opacity)
        self.asked.index_add_(0, self._which, torch.ones(len(self._which)))
        self.since += 1
        return found

    def _rate(self, name: str) -> float:
        share = min(self.done / self.steps, 1.0) if self.steps else 0.0
        return self.rates[name] * (_FALL**share if name == "offsets" else 1.0)

    @torch.no_grad()
    def adjust(self, *, above: float = 2e-4, most: int = 1 << 20, faint: float = 0.005) -> None:
        """Anchors where offsets want to move, at three sizes of cells; without those that never showed much. most:
        anchors at all."""
        often = _OFTEN * self.since
        want = torch.where(self.seen >= min(often, 4), self.moved / self.seen.clamp_min(1), 0.0)
        dull = (self.shown < faint * self.asked) & (self.asked >= often)
        p = {name: v.detach() for name, v in self.params.items()}
        new = wanted_anchors(p, want, self.voxel, above, self.draw, max(most - int((~dull).sum()), 0))
        if bool(dull.all()):
            dull[self.shown.argmax()] = False
        if new is not None:
            self.add(new)
            dull = torch.cat([dull, torch.zeros(len(new["means"]), dtype=torch.bool)])
        self.prune(~dull)
        self.since = 0
