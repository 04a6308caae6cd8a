"""Anchors: places with a feature each, and one small network that tells the Gaussians around them as a place sees them.

anchors: {"means" [N, 3], "feature" [N, F], "scaling" [N, 6], "offsets" [N, k, 3]}. scaling has logarithms: how far
offsets reach along the axes, and how large Gaussians can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdall.splats.camera import Camera
from holdall.splats.scene import C0

NAMES = ("means", "feature", "scaling", "offsets")
AROUND = 4  # numbers of a view: a direction and a distance
HEADS = {"opacity": 1, "colour": 3, "form": 7}  # numbers of an offset
HIDDEN = -30.0  # a logit
_BEGIN = 0.1  # opacity
_MOST = 1 - 1e-4
_REACH = 3.0  # times an anchor's size, around it, may be seen
_SPARE = 1.1  # times the picture


class Told(NamedTuple):
    """opacity [n, k] in -1 to 1, hidden below 0; colour [n, k, 3] and stretch [n, k, 3] in 0 to 1; turn [n, k, 4]."""

    opacity: Tensor
    colour: Tensor
    stretch: Tensor
    turn: Tensor


class Decoder:
    """params by name: one layer of 3 x width neurons for the three heads, then a layer for each. extent: the distance
    that counts as 1."""

    def __init__(self, params: Mapping[str, Tensor], extent: float):
        self.params, self.extent = dict(params), extent
        self.offsets = self.params["opacity"].shape[1]
        self.width = self.params["first"].shape[1] // 3

    @classmethod
    def fresh(cls, feature: int, width: int, offsets: int, extent: float, seed: int = 0) -> Decoder:
        draw = torch.Generator().manual_seed(seed)

        def layer(m: int, n: int) -> Tensor:
            return (torch.rand(m, n, generator=draw) * 2 - 1) * (6 / (m + n)) ** 0.5

        params = {"first": torch.cat([layer(feature + AROUND, width) for _ in HEADS], 1)}
        params["first_bias"] = torch.zeros(3 * width)
        for name, count in HEADS.items():
            params[name], params[f"{name}_bias"] = layer(width, count * offsets), torch.zeros(count * offsets)
        params["opacity_bias"] += math.atanh(_BEGIN)
        params["form_bias"].view(offsets, 7)[:, 3] = 1.0  # hardly turned
        return cls(params, extent)

    def copy(self) -> Decoder:
        """Shares no memory, and has no gradients."""
        return Decoder({k: p.detach().clone() for k, p in self.params.items()}, self.extent)

    def asking(self, on: bool = True) -> Decoder:
        """Itself, with gradients or without."""
        for p in self.params.values():
            p.requires_grad_(on)
        return self

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.params.values())

    def __call__(self, feature: Tensor, means: Tensor, place: Any) -> Told:
        p, n = self.params, len(feature)
        way = means.detach() - torch.as_tensor(np.asarray(place)).to(means)
        far = way.norm(dim=1, keepdim=True).clamp_min(1e-9)
        known = torch.cat([feature, way / far, far / self.extent], 1)
        hidden = torch.relu(torch.addmm(p["first_bias"], known, p["first"])).split(self.width, 1)
        out = [
            torch.addmm(p[f"{h}_bias"], x, p[h]).view(n, self.offsets, -1)
            for h, x in zip(HEADS, hidden, strict=True)
        ]
        form = out[2]
        turn = torch.nn.functional.normalize(form[..., 3:], dim=-1, eps=1e-9)
        return Told(torch.tanh(out[0][..., 0]), torch.sigmoid(out[1]), torch.sigmoid(form[..., :3]), turn)


def gaussians(told: Told, anchors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """means, scales, quats, opacities, sh of n * k Gaussians, an anchor's beside each other; all of them, hidden or
    not."""
    scaling = anchors["scaling"][:, None]  # [n, 1, 6]
    means = anchors["means"][:, None] + anchors["offsets"] * scaling[..., :3].exp()
    scales = scaling[..., 3:] + torch.log(told.stretch.clamp_min(1e-6))
    opacity = told.opacity.reshape(-1)
    logits = torch.where(opacity > 0, torch.logit(opacity.clamp(1e-6, _MOST)), HIDDEN)
    base = ((told.colour - 0.5) / C0).reshape(-1, 1, 3)
    return means.reshape(-1, 3), scales.reshape(-1, 3), told.turn.reshape(-1, 4), logits, base


def disagreement(one: Told, other: Told) -> Tensor:
    """Sum of mean squared differences of colour, rotation, size and opacity, over what the first does not hide."""
    seen = one.opacity.detach() > 0
    if not bool(seen.any()):
        return one.opacity.sum() * 0
    parts = [((a[seen] - b[seen].detach()) ** 2).mean() for a, b in zip(one, other, strict=True)]
    return torch.stack(parts).sum()


@torch.no_grad()
def visible(means: Tensor, scaling: Tensor, camera: Camera) -> Tensor:
    """Numbers of anchors that may be in the picture, at least one."""
    turn = torch.as_tensor(camera.rotation).to(means)
    x, y, z = (means @ turn.T + torch.as_tensor(camera.translation).to(means)).unbind(1)
    reach = _REACH * scaling.amax(1).exp()
    wide = _SPARE * max(camera.cx, camera.width - camera.cx) / camera.fx
    high = _SPARE * max(camera.cy, camera.height - camera.cy) / camera.fy
    front = z.clamp_min(0)
    inside = (z > -reach) & (x.abs() <= wide * front + reach) & (y.abs() <= high * front + reach)
    found = inside.nonzero()[:, 0]
    return found if len(found) else torch.zeros(1, dtype=torch.long)


def fresh_anchors(means: Any, voxel: float, feature: int, offsets: int, seed: int = 0) -> dict[str, Tensor]:
    """An anchor in each cell of a grid that has points [M, 3], as large as a cell; offsets by lot within it."""
    cells = np.unique(np.floor(np.asarray(means, np.float64) / voxel).astype(np.int64), axis=0)
    places = torch.from_numpy(((cells + 0.5) * voxel).astype(np.float32))
    draw, n = torch.Generator().manual_seed(seed), len(places)
    return {
        "means": places,
        "feature": 0.1 * torch.randn(n, feature, generator=draw),
        "scaling": torch.full((n, 6), math.log(voxel)),
        "offsets": torch.rand(n, offsets, 3, generator=draw) - 0.5,
    }


def took(anchors: Mapping[str, Tensor], which: Any) -> dict[str, Tensor]:
    """Those anchors, as a copy."""
    return {name: anchors[name].detach()[which].clone() for name in NAMES}
