"""Colour as a field: where a Gaussian is and from where it is seen go in, its colour comes out; none has its own.

field = ColourField.fresh(box, levels=16, table=11, width=32)
base = field(means, place_of_camera)                 # [N, 3], coefficients of the harmonic of degree 0
sh = field.harmonics(means, places, degree=3)        # [N, 16, 3], what viewers without the field draw
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats import colour_field_grid
from holdall.splats.naive_raster import naive_harmonics
from holdall.splats.scene import C0

BASE, GROWTH = 16, 1.447  # cells of the coarsest level along an axis; of each level to the next
WAYS = 9  # harmonics of degree 2 and less
_START = 1e-4  # of the table's numbers
_CHUNK = 2048  # Gaussians whose harmonics are fitted together
_PRIOR = 0.03  # of what directions on all sides count beside those from where the scene was seen
_STEADY = 1e-4


def sides(levels: int) -> Any:
    """int64: cells along an axis."""
    return np.floor(BASE * GROWTH ** np.arange(levels)).astype(np.int64)


class ColourField:
    """table [levels, entries, 2]; layers [in, width], [width, width], [width, out]; frame: middle [3] and half of the
    side of the cube that is not bent. shown: what the table is taken for, where that is another one. Where `in` is what
    the table gives alone, directions do not count."""

    def __init__(self, table: Tensor, layers: list[Tensor], frame: Any):
        self.table, self.layers = table, layers
        self.frame = np.asarray(frame, np.float32)
        self.shown: Any = None

    @classmethod
    def fresh(
        cls, box: Any, *, levels: int, table: int, width: int, seed: int = 0, ways: int = WAYS, out: int = 3
    ) -> ColourField:
        """table: entries of a level, as the power of two. box: low and high [3] of where most of the scene is. ways:
        harmonics of directions that count, 0: none do."""
        draw = torch.Generator().manual_seed(seed)
        layers = []
        for m, n in ((2 * levels + ways, width), (width, width), (width, out)):
            bound = (6 / (m + n)) ** 0.5
            layers.append((torch.rand(m, n, generator=draw) * 2 - 1) * bound)
        low, high = (np.asarray(b, np.float32) for b in box)
        half = max(float((high - low).max()) / 2, 1e-6)
        entries = (torch.rand(levels, 1 << table, 2, generator=draw) * 2 - 1) * _START
        field = cls(entries, layers, [*(low + high) / 2, half])
        for p in field.params():
            p.requires_grad_(True)
        return field

    def params(self) -> list[Tensor]:
        return [self.table, *self.layers]

    def features(self, means: Tensor) -> Tensor:
        """[N, 2 * levels]; no gradient reaches the places."""
        table = self.table if self.shown is None else self.shown(self.table)
        found: Tensor = _Grid.apply(table, contracted(means.detach(), self.frame))
        return found

    def colours(self, features: Tensor, ways: Tensor) -> Tensor:
        """[..., 3] of features [..., F] seen along unit vectors [..., 3]."""
        return self.told(features, naive_harmonics(ways.reshape(-1, 3)).reshape(*ways.shape[:-1], -1))

    def told(self, features: Tensor, harmonics: Tensor) -> Tensor:
        """The same, of harmonics [..., WAYS or more] of the unit vectors."""
        return self._through(torch.cat([features, harmonics[..., :WAYS]], -1))

    def still(self, means: Tensor) -> Tensor:
        """[N, out] of a field without directions."""
        return self._through(self.features(means))

    def _through(self, x: Tensor) -> Tensor:
        one, two, three = self.layers
        return torch.relu(torch.relu(x @ one) @ two) @ three

    def __call__(self, means: Tensor, place: Any) -> Tensor:
        """[N, 3] as seen from a place."""
        return self.colours(self.features(means), _unit(means.detach() - torch.as_tensor(place).to(means)))

    @torch.no_grad()
    def harmonics(self, means: Any, places: Any, degree: int) -> Any:
        """[N, (degree + 1)^2, 3] float32: least squares over the directions from `places` [V, 3], which count most, and
        over some on all sides."""
        means, around = torch.as_tensor(means), torch.from_numpy(evenly(32))
        seen = torch.as_tensor(np.asarray(places, np.float32)).reshape(-1, 3)
        weight = torch.cat([torch.ones(len(seen)), torch.full((len(around),), _PRIOR)])
        count, found = (degree + 1) ** 2, []
        evenly_told = naive_harmonics(around)
        for some in means.split(_CHUNK):
            ways = _unit(some[:, None] - seen)
            told = naive_harmonics(ways.reshape(-1, 3)).reshape(*ways.shape[:2], -1)
            told = torch.cat([told, evenly_told.expand(len(some), -1, -1)], 1)
            wide = self.features(some)[:, None].expand(-1, told.shape[1], -1)
            wanted = C0 * self.told(wide, told)  # [n, V, 3]
            basis = told[:, :, :count]
            held = (basis * weight[:, None]).mT
            normal = held @ basis + _STEADY * torch.eye(count)
            found.append(torch.linalg.solve(normal, held @ wanted))
        return torch.cat(found).numpy()


def contracted(means: Tensor, frame: Any) -> Tensor:
    """[N, 3] in 0 to 1: the cube of the frame evenly in the middle, all that is outside of it bent in around it."""
    x = (means - torch.from_numpy(frame[:3])) / float(frame[3])
    far = x.norm(dim=1, keepdim=True).clamp_min(1)
    return (torch.where(far > 1, (2 - 1 / far) * x / far, x) / 4 + 0.5).clamp(0, 1)


def evenly(count: int) -> Any:
    """Unit vectors [count, 3] on all sides, float32."""
    i = np.arange(count)
    up = 1 - (2 * i + 1) / count
    angle = np.pi * (3 - np.sqrt(5)) * i
    flat = np.sqrt(1 - up**2)
    return np.stack([flat * np.cos(angle), up, flat * np.sin(angle)], 1).astype(np.float32)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def naive_features(table: Tensor, places: Tensor) -> Tensor:
    """The slow truth of what the grid reads, in whole numbers of Python and differentiated by autograd."""
    levels, size, _ = table.shape
    rows = []
    for place in places:
        row = []
        for level, side in enumerate(sides(levels).tolist()):
            at = place * side
            low = at.floor().clamp(max=side - 1)
            total = torch.zeros(2, dtype=table.dtype)
            for k in range(8):
                corner = [k & 1, k >> 1 & 1, k >> 2]
                x, y, z = (int(a) + b for a, b in zip(low.tolist(), corner, strict=True))
                dense = (side + 1) ** 3 <= size
                mixed = x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)
                entry = x + (side + 1) * (y + (side + 1) * z) if dense else mixed % size
                part = torch.stack(
                    [p if b else 1 - p for p, b in zip((at - low).unbind(), corner, strict=True)]
                )
                total = total + part.prod() * table[level, entry]
            row.append(total)
        rows.append(torch.cat(row))
    return torch.stack(rows)


class _Grid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor) -> Tensor:
        levels = table.shape[0]
        out = np.zeros((len(places), 2 * levels), np.float32)
        at = np.ascontiguousarray(places.numpy(force=True))
        colour_field_grid.read(np.ascontiguousarray(table.numpy(force=True)), at, sides(levels), out)
        ctx.at, ctx.shape = at, table.shape
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        out = np.zeros(ctx.shape, np.float32)
        grad = np.ascontiguousarray(grads[0].numpy(force=True))
        colour_field_grid.taught(grad, ctx.at, sides(ctx.shape[0]), out)
        return torch.from_numpy(out), None
