"""A scene of anchors: drawn as its decoder tells it for each camera, and baked for viewers of plain Gaussians."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats.anchors import HIDDEN, Decoder, gaussians, visible
from holdall.splats.camera import Camera
from holdall.splats.naive_raster import naive_harmonics
from holdall.splats.scene import C0, Scene

_CHUNK = 1024  # anchors that are baked together
_FAINT = 1 / 255
_STEADY = 0.02  # of what a view counts: holds view-dependent colour back where views say little


@dataclass(frozen=True, eq=False)
class AnchoredScene(Scene):
    """Its arrays are the baked ones. `seen_from` has the decoder's own; both have the same Gaussians in order."""

    anchors: Mapping[str, Tensor] = field(default_factory=dict)
    decoder: Decoder | None = None
    kept: Any = None  # of the anchors' Gaussians, those that some stored view sees

    def plain(self) -> Scene:
        """The baked scene alone."""
        return Scene(self.means, self.scales, self.quats, self.opacities, self.sh, self.cameras)

    def take(self, which: Any) -> Scene:
        return self.plain().take(which)

    def with_degree(self, degree: int) -> Scene:
        return self.plain().with_degree(degree)

    @torch.no_grad()
    def seen_from(self, camera: Camera) -> Scene:
        assert self.decoder is not None
        a = self.anchors
        which = visible(a["means"], a["scaling"], camera)
        part = {name: v[which] for name, v in a.items()}
        told = self.decoder(part["feature"], part["means"], camera.place)
        n, k = len(a["means"]), self.decoder.offsets
        columns = []
        for v, empty in zip(gaussians(told, part), (0.0, 0.0, 1.0, HIDDEN, 0.0), strict=True):
            whole = torch.full((n, k, *v.shape[1:]), empty)
            whole[which] = v.view(len(which), k, *v.shape[1:])
            columns.append(whole.flatten(0, 1).numpy()[self.kept])
        means, scales, quats, opacities, sh = columns
        return Scene(means, scales, quats, opacities, sh, self.cameras)


@torch.no_grad()
def anchored(anchors: Mapping[str, Tensor], decoder: Decoder, places: Any, degree: int) -> AnchoredScene:
    """places [V, 3]: from where it is baked; nearer ones count more."""
    seen = torch.from_numpy(np.asarray(places, np.float32)).reshape(-1, 3)
    columns: list[list[Tensor]] = [[] for _ in range(5)]
    best = []
    for first in range(0, len(anchors["means"]), _CHUNK):
        part = {name: v[first : first + _CHUNK] for name, v in anchors.items()}
        *baked, most = _baked(part, decoder, seen, degree)
        best.append(most)
        for column, new in zip(columns, baked, strict=True):
            column.append(new)
    kept = np.flatnonzero(torch.cat(best).numpy() >= _FAINT)
    kept = kept if len(kept) else np.array([0])
    means, scales, quats, opacities, sh = (torch.cat(c).numpy()[kept] for c in columns)
    return AnchoredScene(
        means, scales, quats, opacities, sh, anchors=dict(anchors), decoder=decoder, kept=kept
    )


def _baked(part: Mapping[str, Tensor], decoder: Decoder, seen: Tensor, degree: int) -> tuple[Tensor, ...]:
    """means, scales, quats, opacities, sh, the largest opacity from any place."""
    told = [decoder(part["feature"], part["means"], place) for place in seen]
    near = [1 / ((part["means"] - place) ** 2).sum(1).clamp_min(1e-6 * decoder.extent**2) for place in seen]
    opacity = torch.stack([t.opacity.clamp_min(0) for t in told])  # [V, n, k]
    plain = torch.stack(near)[..., None].expand_as(opacity)
    plain = plain / plain.sum(0)
    weight = plain * opacity + 1e-9 * plain
    weight = weight / weight.sum(0)
    means, scales, turns, _, _ = gaussians(told[0], part)
    scales = sum(w.reshape(-1, 1) * gaussians(t, part)[1] for w, t in zip(weight, told, strict=True))
    first = told[0].turn
    signs = [torch.where((t.turn * first).sum(-1, keepdim=True) < 0, -1.0, 1.0) for t in told]
    turns = sum(w[..., None] * s * t.turn for w, s, t in zip(weight, signs, told, strict=True))
    turns = turns.reshape(-1, 4)
    turns[turns.norm(dim=1) < 1e-6, 0] = 1
    shown = (plain * opacity).sum(0).reshape(-1)
    logits = torch.where(shown > 0, torch.logit(shown.clamp(1e-6, 1 - 1e-4)), HIDDEN)
    sh = _harmonics(
        torch.stack([t.colour.flatten(0, 1) for t in told], 1), means, seen, weight.flatten(1).T, degree
    )
    return means, scales, turns, logits, sh, opacity.amax(0).reshape(-1)


def _harmonics(colours: Tensor, means: Tensor, seen: Tensor, weight: Tensor, degree: int) -> Tensor:
    """[n, (degree + 1)^2, 3] by least squares of colours [n, V, 3] as seen from each place; weights [n, V]."""
    count = (degree + 1) ** 2
    ways = torch.nn.functional.normalize(means[:, None] - seen, dim=-1)
    basis = naive_harmonics(ways.reshape(-1, 3))[:, :count].reshape(*ways.shape[:2], count)
    held = (basis * weight[..., None]).mT
    steady = torch.full((count,), _STEADY)
    steady[0] = 1e-6
    middle = (weight[..., None] * colours).sum(1, keepdim=True)  # what is held back is the way it varies
    found = torch.linalg.solve(held @ basis + torch.diag(steady), held @ (colours - middle))
    found[:, :1] += (middle - 0.5) / C0
    return found
