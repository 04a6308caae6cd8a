"""The stream of a scene of anchors: a head of fixed size, then places as a tree, codes of features and forms, the one
decoder, and some places from where the scene was seen.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdall.errors import CorruptArtefact
from holdall.splats import coded_tree, compact3dgs_bits
from holdall.splats.anchored import AnchoredScene, anchored
from holdall.splats.anchors import AROUND, HEADS, Decoder, took
from holdall.splats.coded_near import AXIS_BITS, keys
from holdall.splats.colour_field_file import floats
from holdall.splats.compact3dgs_file import grid_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = ("places", "codes", "ranges", "decoder", "views")
_HEAD = struct.Struct("<I4B2H4d1f5I")
_SCALING = 8  # bits
_FAR = 0.001  # of the offsets on either side that may be cut to the next ones'
_SPARE = 4096


@dataclass
class Anchored:
    """What is stored. anchors as in `anchors`; views [V, 3]."""

    anchors: Mapping[str, Tensor]
    decoder: Decoder
    views: NDArray[Any]

    def __len__(self) -> int:
        return len(self.anchors["means"])

    def take(self, which: Any) -> Anchored:
        return replace(self, anchors=took(self.anchors, torch.as_tensor(which)))

    def scene(self, degree: int = 3) -> AnchoredScene:
        return anchored(self.anchors, self.decoder, self.views, degree)


def write(x: Anchored, bits: int, place_bits: int) -> tuple[NDArray[Any], dict[str, int]]:
    """(the stream, uint8; bytes by part). bits: of features and offsets; place_bits: of the anchors' places along the
    longest side of the middle."""
    a = {name: v.numpy(force=True) for name, v in x.anchors.items()}
    low, cell = grid_of(a["means"].astype(np.float64), place_bits)
    grid = np.floor((a["means"] - low) / cell).astype(np.int64)
    order = np.argsort(keys(grid), kind="stable")
    grid, a = grid[order], {name: v[order] for name, v in a.items()}
    deep = max(1, int(grid.max()).bit_length())
    columns, ranges = [], []
    for name, wide in (("feature", bits), ("scaling", _SCALING), ("offsets", bits)):
        codes, told = _codes(a[name].reshape(len(a[name]), -1), wide, _FAR if name == "offsets" else 0.0)
        columns.append(codes)
        ranges.append(told)
    rows = np.concatenate(columns, 1)
    params = [p.numpy(force=True).astype("<f2").reshape(-1) for p in x.decoder.params.values()]
    raw = {
        "places": coded_tree.written(grid, deep),
        "codes": compact3dgs_bits.written(rows, np.zeros(len(rows), np.int64), 1),
        "ranges": np.concatenate(ranges).astype("<f4").reshape(-1).view(np.uint8),
        "decoder": np.concatenate(params).view(np.uint8),
        "views": np.asarray(x.views, "<f4").reshape(-1).view(np.uint8),
    }
    lengths = [raw[name].size for name in PARTS]
    feature = a["feature"].shape[1]
    head = _HEAD.pack(
        len(x), deep, bits, x.decoder.offsets, feature, x.decoder.width, len(x.views), *low, cell,
        x.decoder.extent, *lengths,
    )  # fmt: skip
    stream = np.frombuffer(head + b"".join(raw[name].tobytes() for name in PARTS), np.uint8)
    spare = max(0, _smallest(len(x)) - stream.size)
    return np.append(stream, np.zeros(spare, np.uint8)), dict(zip(PARTS, lengths, strict=True))


def read(stream: NDArray[Any]) -> Anchored:
    """CorruptArtefact for what `write` cannot have written."""
    told, raw = _opened(stream)
    n, deep, bits, offsets, feature, width, views = told[:7]
    low, cell, extent = np.array(told[7:10]), told[10], told[11]
    grid = coded_tree.read(raw["places"], n, deep)
    if grid is None:
        raise _wrong("its tree does not add up")
    wide = {"feature": (feature, bits), "scaling": (6, _SCALING), "offsets": (3 * offsets, bits)}
    total = sum(w for w, _ in wide.values())
    rows = compact3dgs_bits.read(raw["codes"], (n, total), np.zeros(n, np.int64), 1)
    ranges = floats(raw["ranges"], "<f4", 2 * total).reshape(-1, 2)
    anchors, at = {"means": torch.from_numpy((low + cell * (grid + 0.5)).astype(np.float32))}, 0
    for name, (count, size) in wide.items():
        part = slice(at, at + count)
        if rows[:, part].max() >> size:
            raise _wrong("its codes are larger than they can be")
        values = ranges[part, 0] + rows[:, part] * (ranges[part, 1] / ((1 << size) - 1))
        anchors[name] = torch.from_numpy(values.astype(np.float32))
        at += count
    anchors["offsets"] = anchors["offsets"].reshape(n, offsets, 3)
    anchors["scaling"] = anchors["scaling"].clamp(-40, 40)
    return Anchored(anchors, _decoder(raw["decoder"], feature, width, offsets, extent),
                    floats(raw["views"], "<f4", 3 * views).reshape(-1, 3))  # fmt: skip


def _decoder(raw: Any, feature: int, width: int, offsets: int, extent: float) -> Decoder:
    shapes = {"first": (feature + AROUND, 3 * width), "first_bias": (3 * width,)}
    for name, count in HEADS.items():
        shapes |= {name: (width, count * offsets), f"{name}_bias": (count * offsets,)}
    flat = floats(raw, "<f2", sum(int(np.prod(s)) for s in shapes.values()))
    params, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        params[name] = torch.from_numpy(flat[at : at + size].reshape(shape).copy())
        at += size
    return Decoder(params, extent)


def _codes(values: NDArray[Any], bits: int, far: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """(uint8 [N, C], the least and the span of each column [C, 2]): even steps."""
    low, high = (np.quantile(values, q, axis=0) if far else values.min(0) if q < 0.5 else values.max(0)
                 for q in (far, 1 - far))  # fmt: skip
    span = np.maximum(high - low, 1e-9).astype(np.float32)
    low, top = low.astype(np.float32), (1 << bits) - 1
    return np.clip(np.rint((values - low) / span * top), 0, top).astype(np.uint8), np.stack([low, span], 1)


def _opened(stream: NDArray[Any]) -> tuple[tuple[Any, ...], dict[str, NDArray[Any]]]:
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size < _HEAD.size:
        raise _wrong("its head is none")
    told = _HEAD.unpack(stream[: _HEAD.size].tobytes())
    n, deep, bits, offsets, feature, width, views = told[:7]
    numbers = np.array(told[7:12])
    fine = n and 1 <= deep <= AXIS_BITS and 1 <= bits <= 8 and offsets and 1 <= feature <= 1024
    if not fine or not (1 <= width <= 1024 and views) or not (np.abs(numbers) < 1e30).all():
        raise _wrong("its head is none")
    if not (numbers[3:] > 0).all():
        raise _wrong("its head is none")
    if _smallest(n) > stream.size:
        raise _wrong("it is too short for what it says")
    ends = _HEAD.size + np.cumsum((0, *told[12:]))
    if ends[-1] > stream.size:
        raise _wrong("it is cut short")
    raw = {name: stream[a:b] for name, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)}
    return told, raw


def _wrong(why: str) -> CorruptArtefact:
    return CorruptArtefact("a scene of anchors", why)


def _smallest(count: int) -> int:
    """Bytes below which nobody believes that a stream holds so many anchors."""
    return 2 * count - _SPARE
