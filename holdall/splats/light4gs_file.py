"""The stream of a packed moving scene: a head, then the still Gaussians' places as a tree and their forms, the small
nets and tables that say where numbers are expected, harmonics, planes, and the layers that planes go through.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats import coded_tree, compact3dgs_bits
from holdall.splats.coded_near import AXIS_BITS
from holdall.splats.hexplane import PAIRS, HexScene
from holdall.splats.light4gs_colours import ColourModel, bands
from holdall.splats.light4gs_gauss import Getter
from holdall.splats.light4gs_hex import PlaneModel
from holdall.splats.light4gs_planes import KINDS, STEP_BITS, Plane, step_of
from holdall.splats.light4gs_tables import filled, layers_of, nets_of, tables_of, unlayered, untabled
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = ("places", "forms", "nets", "tables", "harmonics", "planes", "layers")
_HEAD = struct.Struct("<I7B4d23f7I")
_SIDES = struct.Struct("<5H")  # of a scale: h, and points along x, y, z, t
_EACH, _SPARE = 1024, 4096  # numbers to a byte that are believed, and bytes that are not asked for


@dataclass
class Stored:
    """What is stored, in order along the curve. grid [N, 3], on cells from `low`; forms uint8 [N, 8]: opacity, scales,
    rotation, within ranges [3, 2]; sh [N, K, 3] and planes in steps, of codes shade [4] and steps; centre of each."""

    grid: NDArray[Any]
    low: NDArray[Any]
    cell: float
    forms: NDArray[Any]
    ranges: NDArray[Any]
    sh: Tensor
    shade: Tensor
    planes: dict[Plane, Tensor]
    steps: dict[Plane, Tensor]
    centre: dict[Plane, Tensor]
    layers: dict[str, NDArray[Any]]
    frame: NDArray[Any]
    clock: tuple[float, float]
    plane_model: PlaneModel
    colour_model: ColourModel

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def facts(self) -> tuple[Tensor, Tensor]:
        codes = torch.from_numpy(self.forms.astype(np.float64))
        return codes[:, 0], (codes[:, 1:4].sum(1) / 3).floor()

    def take(self, which: Any) -> Stored:
        """Those Gaussians; in rising order they stay along the curve."""
        return replace(
            self, grid=self.grid[which], forms=self.forms[which], sh=self.sh[torch.as_tensor(which)]
        )

    def scene(self) -> HexScene:
        values = unformed(self.forms, self.ranges)
        shades = numbers(self.shade)[torch.tensor(bands(self.sh.shape[1]))][:, None]
        means = (self.low + self.cell * (self.grid + 0.5)).astype(np.float32)
        quats = values[:, 4:].copy()
        quats[np.abs(quats).max(1) < 1e-6, 0] = 1
        still = Scene(means, values[:, 1:4], quats, values[:, 0], (self.sh.float() * shades).numpy())
        scales = range(self.plane_model.scales)
        planes = tuple(tuple(self.plane((s, i)).numpy() for i in range(len(PAIRS))) for s in scales)
        layers = {k: v.astype(np.float32) for k, v in self.layers.items()}
        return HexScene(still, planes, layers, self.frame, self.clock)

    def plane(self, at: Plane) -> Tensor:
        step = numbers(self.steps[at])[:, None, None]
        return self.centre[at].float()[:, None, None] + self.planes[at].float() * step


def numbers(codes: Tensor) -> Tensor:
    """Steps, of their codes."""
    return (step_of(codes) / (1 << STEP_BITS)).float()


def formed(scene: Scene) -> tuple[NDArray[Any], NDArray[Any]]:
    """(forms, ranges) of 8 bits a number."""
    columns = np.concatenate([np.clip(scene.opacities, -15, 15)[:, None], scene.scales, scene.quats], 1)
    groups = (columns[:, :1], columns[:, 1:4], columns[:, 4:])
    ranges = np.array([[g.min(), g.max()] for g in groups], np.float32)
    low, span = _spread(ranges)
    return np.clip(np.rint((columns - low) / span * 255), 0, 255).astype(np.uint8), ranges


def unformed(forms: NDArray[Any], ranges: NDArray[Any]) -> NDArray[Any]:
    low, span = _spread(ranges)
    found: NDArray[Any] = (low + forms.astype(np.float32) / np.float32(255) * span).astype(np.float32)
    return found


def _spread(ranges: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    each = np.repeat(ranges.astype(np.float32), (1, 3, 4), axis=0)
    return each[:, 0], np.maximum(each[:, 1] - each[:, 0], np.float32(1e-6))


def write(x: Stored) -> tuple[NDArray[Any], dict[str, Any]]:
    """(the stream, uint8; bytes by part, and what was expected of planes and harmonics)."""
    planes, spent = x.plane_model.write(x.planes, {k: step_of(v) for k, v in x.steps.items()})
    colours = x.colour_model.write(x.sh, x.facts)
    deep = max(1, int(x.grid.max()).bit_length())
    raw = {
        "places": coded_tree.written(x.grid, deep),
        "forms": compact3dgs_bits.written(x.forms, np.zeros(len(x), np.int64), 1),
        "nets": np.concatenate([net.raw() for net in nets_of(x.plane_model, x.colour_model)]),
        "tables": tables_of(x),
        "harmonics": colours.stream(),
        "planes": planes.stream(),
        "layers": layers_of(x.layers),
    }
    lengths = [raw[name].size for name in PARTS]
    without = sum(1 << i for i, kind in enumerate(KINDS) if kind in x.plane_model.without)
    head = _HEAD.pack(
        len(x), x.sh.shape[1], x.plane_model.scales, without, x.plane_model.hidden, x.colour_model.hidden, deep, 0,
        *x.low, x.cell, *x.ranges.reshape(-1), *x.frame, *x.clock, *lengths,
    )  # fmt: skip
    head += b"".join(_sides(x.planes, s) for s in range(x.plane_model.scales))
    stream = np.frombuffer(head + b"".join(raw[name].tobytes() for name in PARTS), np.uint8)
    spare = max(0, _smallest(len(x), x.sh.shape[1], sum(p.numel() for p in x.planes.values())) - stream.size)
    notes = {"parts": dict(zip(PARTS, lengths, strict=True)), "planes": spent}
    return np.append(stream, np.zeros(spare, np.uint8)), notes | {"bits": [planes.bits, colours.bits]}


def read(stream: NDArray[Any]) -> Stored:
    """CorruptArtefact for what `write` cannot have written."""
    told, sides, raw = _opened(stream)
    n, count, scales, without, hidden, shade_hidden, deep = told[:7]
    grid = coded_tree.read(raw["places"], n, deep)
    if grid is None:
        raise _wrong("its tree does not add up")
    forms = compact3dgs_bits.read(raw["forms"], (n, 8), np.zeros(n, np.int64), 1)
    shapes = {(s, i): (sides[s][0], sides[s][1 + b], sides[s][1 + a])
              for s in range(scales) for i, (a, b) in enumerate(PAIRS)}  # fmt: skip
    kinds = frozenset(kind for i, kind in enumerate(KINDS) if without >> i & 1)
    model, colours = PlaneModel(scales, kinds, hidden), ColourModel(count, shade_hidden)
    filled(raw["nets"], model, colours)
    steps, centre, shade = untabled(raw["tables"], model, colours, {p: s[0] for p, s in shapes.items()})
    x = Stored(
        grid, np.array(told[8:11]), told[11], forms, np.array(told[12:18], np.float32).reshape(3, 2),
        torch.zeros(0), shade, {}, steps, centre, unlayered(raw["layers"]), np.array(told[18:33], np.float32),
        (told[33], told[34]), model, colours,
    )  # fmt: skip
    get = Getter(raw["harmonics"])
    x.sh = colours.read(get, n, x.facts)
    get.close()
    get = Getter(raw["planes"])
    x.planes = model.read(get, shapes, {k: step_of(v) for k, v in steps.items()})
    get.close()
    return x


def scene_of(x: Stored) -> HexScene:
    """Its scene; CorruptArtefact where parts do not belong together."""
    try:
        return x.scene().checked()
    except BadInput as fault:
        raise _wrong(str(fault)) from fault


def _opened(stream: NDArray[Any]) -> tuple[tuple[Any, ...], list[tuple[int, ...]], dict[str, NDArray[Any]]]:
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size < _HEAD.size:
        raise _wrong("its head is none")
    told = _HEAD.unpack(stream[: _HEAD.size].tobytes())
    n, count, scales, without, hidden, shade_hidden, deep, spare = told[:8]
    floats = np.array(told[8:35])
    fine = n and count in (1, 4, 9, 16) and 1 <= scales <= 8 and without < 1 << len(KINDS) and not spare
    fine = (
        fine and min(hidden, shade_hidden) and 1 <= deep <= AXIS_BITS and bool((np.abs(floats) < 1e30).all())
    )
    at = _HEAD.size + scales * _SIDES.size
    if not fine or floats[3] <= 0 or at > stream.size or (np.diff(floats[4:10].reshape(3, 2)) < 0).any():
        raise _wrong("its head is none")
    sides = list(_SIDES.iter_unpack(stream[_HEAD.size : at].tobytes()))
    if min(min(s) for s in sides) < 1:
        raise _wrong("its planes have no points")
    total = sum(s[0] * s[1 + a] * s[1 + b] for s in sides for a, b in PAIRS)
    if _smallest(n, count, total) > stream.size:
        raise _wrong("it is too short for what it says")
    ends = at + np.cumsum((0, *told[35:]))
    if ends[-1] > stream.size:
        raise _wrong("it is cut short")
    return told, sides, {name: stream[a:b] for name, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)}


def _smallest(n: int, count: int, total: int) -> int:
    """Bytes below which nobody believes that a stream holds so many Gaussians and points of planes."""
    return max(n, (n * count * 3 + total) // _EACH) - _SPARE


def _sides(planes: dict[Plane, Tensor], s: int) -> bytes:
    h, y, x = planes[s, 0].shape
    t, z = planes[s, 5].shape[1:]
    return _SIDES.pack(h, x, y, z, t)


def _wrong(why: str) -> CorruptArtefact:
    return CorruptArtefact("a moving scene", why)
