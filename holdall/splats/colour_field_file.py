"""A field of colours and books as bytes: the table in even steps, layers and entries as float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.errors import CorruptArtefact
from holdall.splats import compact3dgs_bits
from holdall.splats.colour_field import ColourField
from holdall.splats.residual import Books

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOP = 127  # steps of the table on either side of 0


def table_codes(table: Any, threshold: float) -> tuple[Any, float]:
    """(whole numbers of a table [levels, entries, 2], a tensor; their step): 0 for what is no larger than threshold."""
    step = max(float(table.detach().abs().max()), 1e-6) / _TOP
    step = float(np.float32(step))
    codes = torch.where(table.abs() > threshold, torch.round(table / step), 0.0).clamp(-_TOP, _TOP)
    return codes, step


def table_written(table: Any, threshold: float) -> tuple[NDArray[Any], float]:
    """(bytes, the step)."""
    codes, step = table_codes(table, threshold)
    levels, entries, _ = codes.shape
    rows = (codes.numpy(force=True).reshape(-1, 2) + 128).astype(np.uint8)
    return compact3dgs_bits.written(rows, np.repeat(np.arange(levels), entries), levels), step


def layers_written(layers: Any) -> NDArray[Any]:
    return np.concatenate([p.numpy(force=True).astype(np.float16).reshape(-1) for p in layers]).view(np.uint8)


def field_read(
    table: NDArray[Any], layers: NDArray[Any], levels: int, log: int, step: float, shapes: Any, frame: Any
) -> ColourField:
    """log: entries of a level, as the power of two. shapes: of the layers."""
    groups = np.repeat(np.arange(levels), 1 << log)
    codes = compact3dgs_bits.read(table, (levels << log, 2), groups, levels)
    entries = (codes.astype(np.float32) - 128) * np.float32(step)
    return ColourField(
        torch.from_numpy(entries.reshape(levels, 1 << log, 2)),
        [torch.from_numpy(x) for x in layers_read(layers, shapes)],
        frame,
    )


def layers_read(raw: NDArray[Any], shapes: Any) -> list[NDArray[Any]]:
    sizes = [m * n for m, n in shapes]
    found = floats(raw, "<f2", sum(sizes))
    cuts = np.split(found, np.cumsum(sizes)[:-1])
    return [c.reshape(shape) for c, shape in zip(cuts, shapes, strict=True)]


def rounded(books: Books) -> tuple[Books, NDArray[Any], float]:
    """(as they decode, float16, their unit)."""
    unit = float(np.float32(max(float(np.abs(books.tables).max()), 1e-30)))
    halves = (books.tables / np.float32(unit)).astype(np.float16)
    return Books(halves.astype(np.float32) * np.float32(unit)), halves, unit


def floats(raw: NDArray[Any], kind: str, count: int) -> NDArray[Any]:
    """So many numbers, float32; CorruptArtefact for other ones."""
    width = np.dtype(kind).itemsize
    if raw.size != count * width:
        raise wrong("its tables do not have the size that its head tells")
    found = raw.copy().view(kind).astype(np.float32)
    if not (np.abs(found) < 1e9).all():
        raise wrong("its tables are not numbers")
    return found


def wrong(why: str) -> CorruptArtefact:
    return CorruptArtefact("a compact scene", why)
