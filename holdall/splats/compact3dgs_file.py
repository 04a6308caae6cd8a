"""The stream of a compact scene: a head of fixed size, then places as a tree, codes of opacity and form, the colour
field's table, its layers, the books, and some places from where the scene was seen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats import coded_tree, compact3dgs_bits
from holdall.splats.coded_near import AXIS_BITS, keys
from holdall.splats.colour_field import WAYS, ColourField
from holdall.splats.colour_field_file import field_read, floats, layers_written, rounded, table_written, wrong
from holdall.splats.residual import Books
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = ("places", "codes", "table", "layers", "books", "views")
_HEAD = struct.Struct("<I6B2H4d10f6I")
_SPARE = 4096


@dataclass
class Compact:
    """What is stored. scales [N, 3] are logarithms, opacities [N] logits; books of activated scales and of unit
    quaternions; views [V, 3]."""

    means: NDArray[Any]
    scales: NDArray[Any]
    quats: NDArray[Any]
    opacities: NDArray[Any]
    field: ColourField
    scale_books: Books
    quat_books: Books
    views: NDArray[Any]

    def __len__(self) -> int:
        return len(self.means)

    def take(self, which: Any) -> Compact:
        names = ("means", "scales", "quats", "opacities")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    def scene(self, degree: int = 3) -> Scene:
        """With harmonics that are fitted to the field."""
        sh = self.field.harmonics(self.means, self.views, degree)
        if not np.isfinite(sh).all():
            raise wrong("its field has no colours")
        return Scene(self.means, self.scales, self.quats, self.opacities, np.clip(sh, -1e4, 1e4))


def form_of(taken: NDArray[Any], least: float) -> NDArray[Any]:
    """Logarithms of scales; sums of entries may fall below 0."""
    return np.log(np.clip(taken, least, 1e30)).astype(np.float32)


def least_scale(scales: NDArray[Any]) -> float:
    return float(np.float32(np.exp(np.clip(scales.astype(np.float64), -60, 60)).min() / 2))


def write(x: Compact, bits: int, threshold: float) -> tuple[NDArray[Any], dict[str, int]]:
    """(the stream, uint8; bytes by part). bits: of places, along the longest side of the middle."""
    low, cell = grid_of(x.means.astype(np.float64), bits)
    grid = np.floor((x.means - low) / cell).astype(np.int64)
    order = np.argsort(keys(grid), kind="stable")
    x, grid = x.take(order), grid[order]
    deep = max(1, int(grid.max()).bit_length())
    least = least_scale(x.scales)
    (scale_books, scale_raw, scale_unit), (quat_books, quat_raw, quat_unit) = map(
        rounded, (x.scale_books, x.quat_books)
    )
    scale_codes = scale_books.encode(np.exp(x.scales))
    quat_codes = quat_books.encode(x.quats)
    alpha, dim, bright = alphas(x.opacities)
    table, step = table_written(x.field.table, threshold)
    levels, entries, _ = x.field.table.shape
    rows = np.concatenate([alpha[:, None], scale_codes, quat_codes], 1)
    raw = {
        "places": coded_tree.written(grid, deep),
        "codes": compact3dgs_bits.written(rows, np.zeros(len(rows), np.int64), 1),
        "table": table,
        "layers": layers_written(x.field.layers),
        "books": np.concatenate([scale_raw.reshape(-1), quat_raw.reshape(-1)]).view(np.uint8),
        "views": np.asarray(x.views, np.float32).reshape(-1).view(np.uint8),
    }
    lengths = [raw[name].size for name in PARTS]
    stages, size = scale_books.tables.shape[:2]
    width = x.field.layers[0].shape[1]
    head = _HEAD.pack(
        len(x), deep, stages, size, levels, entries.bit_length() - 1, 0, width, len(x.views), *low, cell,
        least, dim, bright, step, scale_unit, quat_unit, *x.field.frame, *lengths,
    )  # fmt: skip
    stream = np.frombuffer(head + b"".join(raw[name].tobytes() for name in PARTS), np.uint8)
    spare = max(0, smallest(len(x), levels * entries) - stream.size)
    stream = np.append(stream, np.zeros(spare, np.uint8))
    return stream, dict(zip(PARTS, lengths, strict=True))


def read(stream: NDArray[Any]) -> Compact:
    """CorruptArtefact for what `write` cannot have written."""
    told, raw = _opened(stream)
    n, deep, stages, size, levels, log, _, width, views = told[:9]
    low, cell, numbers = np.array(told[9:12]), told[12], told[13:23]
    least, dim, bright, step, scale_unit, quat_unit = numbers[:6]
    grid = coded_tree.read(raw["places"], n, deep)
    if grid is None:
        raise wrong("its tree does not add up")
    rows = compact3dgs_bits.read(raw["codes"], (n, 1 + 2 * stages), np.zeros(n, np.int64), 1)
    if rows[:, 1:].max() >= size:
        raise wrong("its codes name entries that there are not")
    books = floats(raw["books"], "<f2", stages * size * 7)
    split = stages * size * 3
    scale_books = Books(books[:split].reshape(stages, size, 3) * np.float32(scale_unit))
    quat_books = Books(books[split:].reshape(stages, size, 4) * np.float32(quat_unit))
    shapes = (2 * levels + WAYS, width), (width, width), (width, 3)
    field = field_read(raw["table"], raw["layers"], levels, log, step, shapes, numbers[6:])
    quats = quat_books.decode(rows[:, 1 + stages :])
    quats[np.abs(quats).max(1) < 1e-6, 0] = 1
    return Compact(
        (low + cell * (grid + 0.5)).astype(np.float32),
        form_of(scale_books.decode(rows[:, 1 : 1 + stages]), least),
        quats,
        logits(rows[:, 0], dim, bright),
        field, scale_books, quat_books,
        floats(raw["views"], "<f4", 3 * views).reshape(-1, 3),
    )  # fmt: skip


def _opened(stream: NDArray[Any]) -> tuple[tuple[Any, ...], dict[str, NDArray[Any]]]:
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size < _HEAD.size:
        raise wrong("its head is none")
    told = _HEAD.unpack(stream[: _HEAD.size].tobytes())
    n, deep, stages, size, levels, log, spare, width, views = told[:9]
    numbers = np.array(told[9:23])
    fine = 1 <= deep <= AXIS_BITS and 1 <= stages <= 16 and 1 <= size <= 128 and 1 <= levels <= 32
    fine = (
        fine
        and not spare
        and log <= 20
        and 1 <= width <= 1024
        and views
        and n
        and bool((np.abs(numbers) < 1e30).all())
    )
    if not fine or not (numbers[[3, 4, 13]] > 0).all():
        raise wrong("its head is none")
    if smallest(n, levels << log) > stream.size:
        raise wrong("it is too short for what it says")
    ends = _HEAD.size + np.cumsum((0, *told[23:]))
    if ends[-1] > stream.size:
        raise wrong("it is cut short")
    raw = {name: stream[a:b] for name, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)}
    return told, raw


def smallest(count: int, entries: int) -> int:
    """Bytes below which nobody believes that a stream holds so many Gaussians and entries of the table."""
    return max(count, entries // 64) - _SPARE


def grid_of(means: NDArray[Any], bits: int) -> tuple[NDArray[Any], float]:
    """(corner, cell): so many bits for the middle of the scene, coarser only where strays are too far away."""
    low, high = np.quantile(means, [0.01, 0.99], axis=0)
    all_low, all_high = means.min(0), means.max(0)
    span = float((all_high - all_low).max())
    middle = float((high - low).max()) or span or 1.0
    cell = max(middle / (1 << bits), span / ((1 << AXIS_BITS) - 2), float(np.abs(means).max()) * 1e-9)
    return all_low - cell / 2, cell


def alphas(opacities: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """(uint8, the least, the largest) of activated opacities."""
    return in_bytes(1 / (1 + np.exp(-np.clip(opacities.astype(np.float64), -50, 50))))


def logits(codes: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """float32, of what `alphas` gave."""
    alpha = np.clip(of_bytes(codes, low, high), 1e-6, 1 - 1e-6)
    return np.log(alpha / (1 - alpha)).astype(np.float32)


def in_bytes(x: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """(uint8, the least, the largest): even steps from the one to the other."""
    low, high = (float(np.float32(v)) for v in (x.min(), x.max()))
    span = max(high - low, 1e-9)
    return np.clip(np.rint((x - low) / span * 255), 0, 255).astype(np.uint8), low, high


def of_bytes(codes: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    return low + codes.astype(np.float64) / 255 * (high - low)
