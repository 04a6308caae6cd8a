"""Where anchors are missing: cells of a grid whose Gaussians want to move much, and that have none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SIZES = (4.0, 1.0, 0.25)  # cells, of the first grid's
_DOUBLE = 2.0  # times as much is asked of each smaller size


def wanted_anchors(
    p: Mapping[str, Tensor], want: Tensor, voxel: float, above: float, draw: torch.Generator, most: int
) -> dict[str, Tensor] | None:
    """At most so many new anchors: where want [N * k], of Gaussians, is `above`; by size of cells, rarer ones of the
    coarser. A new one has the largest features that asked for it."""
    places = (p["means"][:, None] + p["offsets"] * p["scaling"][:, None, :3].exp()).reshape(-1, 3)
    each = p["offsets"].shape[1]
    there, found = p["means"], []
    for level, size in enumerate(SIZES):
        chosen = want >= above * _DOUBLE**level
        chosen &= torch.rand(len(want), generator=draw) > 0.5 ** (level + 1)
        side = voxel * size
        new = _fresh(places, want, chosen, there, side, most)
        if new is None:
            continue
        cells, which = new
        feature = p["feature"][torch.div(which, each, rounding_mode="floor")]
        n = int(cells.max()) + 1
        wide = feature.shape[1]
        features = torch.full((n, wide), -math.inf)
        features.scatter_reduce_(0, cells[:, None].expand(-1, wide), feature, "amax")
        middle = torch.zeros(n, 3)
        middle[cells] = (torch.floor(places[which] / side) + 0.5) * side
        found.append(
            {
                "means": middle,
                "feature": features,
                "scaling": torch.full((n, 6), math.log(side)),
                "offsets": (torch.rand(n, each, 3, generator=draw) - 0.5),
            }
        )
        there, most = torch.cat([there, middle]), most - n
    return {name: torch.cat([f[name] for f in found]) for name in found[0]} if found else None


def _fresh(
    places: Tensor, want: Tensor, chosen: Tensor, there: Tensor, side: float, most: int
) -> tuple[Tensor, Tensor] | None:
    """(number of the new cell of each, which places asked): cells without an anchor, those that want it most."""
    which = chosen.nonzero()[:, 0]
    if not len(which) or most < 1:
        return None
    taken = torch.unique(torch.floor(there / side).long(), dim=0)
    cells = torch.floor(places[which] / side).long()
    both, number = torch.unique(torch.cat([taken, cells]), dim=0, return_inverse=True)
    empty = torch.ones(len(both), dtype=torch.bool)
    empty[number[: len(taken)]] = False
    number = number[len(taken) :]
    score = torch.zeros(len(both)).scatter_reduce_(0, number, want[which], "amax")
    score[~empty] = -1
    count = min(int((score > 0).sum()), most)
    if not count:
        return None
    rename = torch.full((len(both),), -1)
    rename[score.topk(count).indices] = torch.arange(count)
    mine = rename[number]
    return mine[mine >= 0], which[mine >= 0]
