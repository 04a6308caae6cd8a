"""The stream of a compact scene that moves: a head of fixed size, places as a tree along Morton's curve, codes of each
Gaussian, its way, the field's table and layers, the decoder of colours, the books.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats import coded_tree, compact3dgs_bits
from holdall.splats.coded_near import AXIS_BITS, keys
from holdall.splats.colour_field_file import (
    field_read,
    floats,
    layers_read,
    layers_written,
    rounded,
    table_written,
    wrong,
)
from holdall.splats.compact3dgs_file import alphas, grid_of, in_bytes, logits, of_bytes, smallest
from holdall.splats.residual import Books
from holdall.splats.spacetime import HIDDEN, SpacetimeScene
from holdall.splats.spacetime_train import BOOKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.colour_field import ColourField

PARTS = ("places", "codes", "motion", "table", "layers", "decoder", "books")
OUT = 6  # numbers that the field gives
_HEAD = struct.Struct("<I8BHH4d12f4f7I")
_WIDE = {"scales": 3, "quats": 4, "spins": 4, "tints": 3}
_DECODER = ((9, HIDDEN), (HIDDEN, 3))
_FAR, _WILD = 1e30, 1e15  # numbers of the head, and of a scene


@dataclass
class CompactSpacetime:
    """scene: with features of which only the last three are stored; the field tells the others."""

    scene: SpacetimeScene
    field: ColourField
    books: dict[str, Books]

    def __len__(self) -> int:
        return len(self.scene)

    def take(self, which: Any) -> CompactSpacetime:
        return replace(self, scene=self.scene.take(which))

    def column(self, name: str) -> NDArray[Any]:
        return self.scene.features[:, 6:] if name == "tints" else getattr(self.scene, name)


def write(
    x: CompactSpacetime, bits: int, motion: float, threshold: float
) -> tuple[NDArray[Any], dict[str, int]]:
    """(the stream, uint8; bytes by part). bits: of places along the middle; motion: steps of ways, in cells, 0:
    float16."""
    low, cell = grid_of(x.scene.means.astype(np.float64), bits)
    grid = np.floor((x.scene.means - low) / cell).astype(np.int64)
    order = np.argsort(keys(grid), kind="stable")
    x, grid = x.take(order), grid[order]
    s, deep = x.scene, max(1, int(grid.max()).bit_length())
    in_time = [alphas(s.opacities), in_bytes(s.times), in_bytes(s.spans)]
    made = {name: rounded(x.books[name]) for name in BOOKS}
    codes = [made[name][0].encode(x.column(name)) for name in BOOKS]
    rows = np.concatenate([*(part[0][:, None] for part in in_time), *codes], 1)
    table, step = table_written(x.field.table, threshold)
    levels, entries, _ = x.field.table.shape
    raw = {
        "places": coded_tree.written(grid, deep),
        "codes": compact3dgs_bits.written(rows, np.zeros(len(s), np.int64), 1),
        "motion": _columns_written(_ways(s.motion.reshape(-1, 9), motion * cell)),
        "table": table,
        "layers": layers_written(x.field.layers),
        "decoder": np.concatenate([a.astype(np.float16).reshape(-1) for a in s.decoder]).view(np.uint8),
        "books": np.concatenate([half.reshape(-1) for _, half, _ in made.values()]).view(np.uint8),
    }
    lengths = [raw[name].size for name in PARTS]
    size = x.books["scales"].tables.shape[1]
    stages = [len(x.books[name].tables) for name in ("scales", "spins")]
    head = _HEAD.pack(
        len(s), deep, *stages, size - 1, levels, entries.bit_length() - 1, 0, 0, x.field.layers[0].shape[1], 0,
        *low, cell, step, motion * cell, *(v for part in in_time for v in part[1:]),
        *(unit for _, _, unit in made.values()), *x.field.frame, *lengths,
    )  # fmt: skip
    stream = np.frombuffer(head + b"".join(raw[name].tobytes() for name in PARTS), np.uint8)
    spare = max(0, smallest(len(s), levels * entries) - stream.size)
    return np.append(stream, np.zeros(spare, np.uint8)), dict(zip(PARTS, lengths, strict=True))


def read(stream: NDArray[Any]) -> SpacetimeScene:
    """CorruptArtefact for what `write` cannot have written."""
    told, raw = _opened(stream)
    n, deep, stages, later, size, levels, log, _, _, width, _ = told[:11]
    low, cell, numbers = np.array(told[11:14]), told[14], told[15:31]
    step, motion, ends, units, frame = numbers[0], numbers[1], numbers[2:8], numbers[8:12], numbers[12:]
    grid = coded_tree.read(raw["places"], n, deep)
    if grid is None:
        raise wrong("its tree does not add up")
    counts = [later if kind else stages for kind in BOOKS.values()]
    rows = compact3dgs_bits.read(raw["codes"], (n, 3 + sum(counts)), np.zeros(n, np.int64), 1)
    books = _books(raw["books"], counts, size + 1, units)
    if rows[:, 3:].max() > size:
        raise wrong("its codes name entries that there are not")
    cuts = np.split(rows[:, 3:], np.cumsum(counts)[:-1], 1)
    forms, quats, spins, tints = (b.decode(c) for b, c in zip(books, cuts, strict=True))
    quats[np.abs(quats).max(1) < 1e-6, 0] = 1
    shapes = (2 * levels, width), (width, width), (width, OUT)
    field = field_read(raw["table"], raw["layers"], levels, log, step, shapes, frame)
    decoder = layers_read(raw["decoder"], _DECODER)
    means = (low + cell * (grid + 0.5)).astype(np.float32)
    ways = _ways_of(_columns_read(raw["motion"], n), motion)
    found = SpacetimeScene(
        means, np.clip(forms, -60, 60), quats, logits(rows[:, 0], *ends[:2]), ways.reshape(n, 3, 3), spins,
        of_bytes(rows[:, 1], *ends[2:4]), of_bytes(rows[:, 2], *ends[4:]), features(field, means, tints),
        (decoder[0], decoder[1]),
    )  # fmt: skip
    if not all((np.abs(a) < _WILD).all() for a in found.arrays().values()):
        raise wrong("its numbers run away")
    return found


def features(field: ColourField, means: NDArray[Any], tints: NDArray[Any]) -> NDArray[Any]:
    """[N, 9]: what the field tells of places, and what was stored."""
    import torch

    with torch.no_grad():
        told = field.still(torch.from_numpy(means)).numpy()
    return np.concatenate([told, tints], 1)


def _books(raw: NDArray[Any], counts: list[int], size: int, units: Any) -> list[Books]:
    shapes = [(stages, size, wide) for stages, wide in zip(counts, _WIDE.values(), strict=True)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    found = np.split(floats(raw, "<f2", sum(sizes)), np.cumsum(sizes)[:-1])
    return [
        Books(part.reshape(shape) * np.float32(unit))
        for part, shape, unit in zip(found, shapes, units, strict=True)
    ]


def _ways(motion: NDArray[Any], step: float) -> NDArray[Any]:
    """uint16 [N, 9]: small where motion is, in even steps; or float16."""
    if not step:
        return np.clip(motion, -65504, 65504).astype(np.float16).view(np.uint16)
    whole = np.clip(np.rint(motion / step), -32767, 32767).astype(np.int64)
    return np.where(whole < 0, -2 * whole - 1, 2 * whole).astype(np.uint16)


def _ways_of(codes: NDArray[Any], step: float) -> NDArray[Any]:
    if not step:
        return codes.view(np.float16).astype(np.float32)
    whole = codes.astype(np.int64)
    return np.where(whole & 1, -(whole + 1) // 2, whole // 2).astype(np.float32) * np.float32(step)


def _columns_written(codes: NDArray[Any]) -> NDArray[Any]:
    """Of uint16 [N, 9]: the upper halves, then the lower ones."""
    rows = np.concatenate([(codes >> 8).astype(np.uint8), (codes & 255).astype(np.uint8)], 1)
    return compact3dgs_bits.written(rows, np.zeros(len(rows), np.int64), 1)


def _columns_read(raw: NDArray[Any], count: int) -> NDArray[Any]:
    rows = compact3dgs_bits.read(raw, (count, 18), np.zeros(count, np.int64), 1)
    return rows[:, :9].astype(np.uint16) << np.uint16(8) | rows[:, 9:]


def _opened(stream: NDArray[Any]) -> tuple[tuple[Any, ...], dict[str, NDArray[Any]]]:
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size < _HEAD.size:
        raise wrong("its head is none")
    told = _HEAD.unpack(stream[: _HEAD.size].tobytes())
    n, deep, stages, later, _, levels, log, one, two, width, three = told[:11]
    numbers = np.array(told[11:31])
    fine = n and 1 <= deep <= AXIS_BITS and 1 <= stages <= 16 and 1 <= later <= 16 and 1 <= levels <= 32
    fine = fine and not (one or two or three) and log <= 20 and 1 <= width <= 1024
    if (
        not fine
        or not (np.abs(numbers) < _FAR).all()
        or not (numbers[[3, 4, 19]] > 0).all()
        or numbers[5] < 0
    ):
        raise wrong("its head is none")
    if smallest(n, levels << log) > stream.size:
        raise wrong("it is too short for what it says")
    ends = _HEAD.size + np.cumsum((0, *told[31:]))
    if ends[-1] > stream.size:
        raise wrong("it is cut short")
    return told, {name: stream[a:b] for name, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)}
