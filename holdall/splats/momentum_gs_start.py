"""Where blocks begin: anchors from points of photographs, or from a scene's own Gaussians, and what both look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdall.splats.anchors import Decoder, Told, fresh_anchors
from holdall.splats.coded_near import AXIS_BITS, keys
from holdall.splats.naive_raster import naive_harmonics
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_RATE, _PLACES = 0.01, 8
_DEEP = 10  # bits along an axis of the curve that anchors follow
_ABSENT = -0.5  # of opacity, where an anchor has fewer Gaussians than it could


class Start(NamedTuple):
    """anchors and what their Gaussians should look like: opacity [N, k]; scales [N, k, 3], logarithms, and turns
    [N, k, 4], where they are known; sh [N, k, K, 3]. voxel: the size of a cell. extent: of the scene."""

    anchors: dict[str, Tensor]
    opacity: Tensor
    sh: Tensor
    scales: Tensor | None
    turns: Tensor | None
    voxel: float
    extent: float


def extent_of(scene: Scene) -> float:
    low, high = scene.box()
    return float(np.linalg.norm(high.astype(np.float64) - low)) / 2 or 1.0


def from_points(scene: Scene, feature: int, offsets: int, seed: int) -> Start:
    """scene: round Gaussians at points (`learner.beginning`). A cell for each few points."""
    extent = extent_of(scene)
    voxel = max(float(np.exp(np.median(scene.scales))), 1e-4 * extent)
    anchors = fresh_anchors(scene.means, voxel, feature, offsets, seed)
    from scipy.spatial import cKDTree

    near = cKDTree(scene.means).query(anchors["means"].numpy())[1]
    n = len(near)
    opacity = torch.full((n, offsets), 0.1)
    sh = torch.from_numpy(scene.sh[near])[:, None].expand(-1, offsets, -1, -1)
    return Start(anchors, opacity, sh, None, None, voxel, extent)


def from_gaussians(scene: Scene, feature: int, offsets: int, seed: int) -> Start:
    """Neighbours along a curve share an anchor, each in a place of its own: none is lost."""
    extent, n = extent_of(scene), -(-len(scene) // offsets)
    order = np.argsort(keys(_coarse(scene.means)), kind="stable")
    which = np.concatenate([order, np.repeat(order[-1:], n * offsets - len(order))]).reshape(n, offsets)
    means = scene.means[which].astype(np.float64)
    middle = means.mean(1)
    wide = np.maximum(abs(means - middle[:, None]).max(1), 1e-6 * extent)
    largest = scene.scales[which].max(1) + 1.0  # stretch is below 1
    draw = torch.Generator().manual_seed(seed)
    anchors = {
        "means": torch.from_numpy(middle.astype(np.float32)),
        "feature": 0.1 * torch.randn(n, feature, generator=draw),
        "scaling": torch.from_numpy(np.concatenate([np.log(wide), largest], 1).astype(np.float32)),
        "offsets": torch.from_numpy(((means - middle[:, None]) / wide[:, None]).astype(np.float32)),
    }
    opacity = torch.sigmoid(torch.from_numpy(scene.opacities[which]))
    opacity.view(-1)[len(order) :] = _ABSENT
    quats = torch.nn.functional.normalize(torch.from_numpy(scene.quats[which]), dim=-1)
    quats = torch.where(quats[..., :1] < 0, -quats, quats)
    voxel = float(np.median(wide)) * 2
    return Start(anchors, opacity, torch.from_numpy(scene.sh[which]), torch.from_numpy(scene.scales[which]), quats,
                 voxel, extent)  # fmt: skip


def _coarse(means: NDArray[Any]) -> NDArray[Any]:
    low, high = np.quantile(means.astype(np.float64), [0.01, 0.99], axis=0)
    step = max(float((high - low).max()) / (1 << _DEEP), 1e-9)
    at = np.floor((means - low) / step) + (1 << (AXIS_BITS - 1))
    return np.clip(at, 0, (1 << AXIS_BITS) - 1).astype(np.int64)


def taught(decoder: Decoder, start: Start, places: Sequence[Any], rounds: int) -> None:
    """Features and decoder learn to tell what is known, as it is seen from these places. No picture is drawn."""
    anchors = start.anchors
    feature = anchors["feature"].requires_grad_(True)
    params = [feature, *decoder.asking().params.values()]
    teach = torch.optim.Adam(params, lr=_RATE, eps=1e-15, fused=True)
    weight = start.opacity.clamp_min(0.02)[..., None]
    some = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, _PLACES).astype(int))]
    colours = [_colour(start, place) for place in some]
    for step in range(rounds):
        i = step % len(some)
        told = decoder(feature, anchors["means"], some[i])
        _miss(told, start, colours[i], weight).backward()
        for group in teach.param_groups:
            group["lr"] = _RATE * 0.1 ** (step / rounds)
        teach.step()
        teach.zero_grad()
    feature.requires_grad_(False)


def _colour(start: Start, place: Any) -> Tensor:
    """[N, k, 3] as seen from there."""
    means = start.anchors["means"]
    way = torch.nn.functional.normalize(means - torch.as_tensor(np.asarray(place)).to(means), dim=1)
    basis = naive_harmonics(way)[:, : start.sh.shape[2]]
    return (0.5 + torch.einsum("nv,nkvc->nkc", basis, start.sh)).clamp(0, 1)


def _miss(told: Told, start: Start, colour: Tensor, weight: Tensor) -> Tensor:
    loss = ((told.opacity - start.opacity) ** 2).mean() + (weight * (told.colour - colour) ** 2).mean()
    if start.scales is not None and start.turns is not None:
        largest = start.anchors["scaling"][:, None, 3:]
        off = largest + torch.log(told.stretch.clamp_min(1e-6)) - start.scales
        same = (told.turn * start.turns).sum(-1) ** 2  # a rotation and its negative are one
        loss = (
            loss + 0.1 * (weight * off.clamp(-4, 4) ** 2).mean() + 0.1 * (weight[..., 0] * (1 - same)).mean()
        )
    return loss
