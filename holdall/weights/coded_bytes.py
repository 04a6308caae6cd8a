"""Coded matrices as bytes, and back with distrust.

int32 words (version, O, I, bands, bytes of `owners`), for each band eight more (bits, group, level, rows, and the bytes
of codes, scale, low, table; 0 where there is none, which for a scale means ones), then those streams in that order.
`owners` tells the band of each row, and is there when there are several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.weights.coded import LEVELS, WIDTHS, Band, Coded, _across

_VERSION, _HEAD, _EACH = 1, 5, 8
_MOST = 1 << 36  # numbers of a matrix; a file that claims more is hostile


def to_bytes(x: Coded, coded: bool) -> np.ndarray:
    from holdall.parts.entropy import pack_codes

    owners, streams, words = np.zeros(0, np.uint8), [], []
    if len(x.bands) > 1:
        owners = pack_codes(x._places()[0].astype(np.uint8), 8, coded=coded)
    for band in x.bands:
        order = np.argsort(band.rows, kind="stable")
        scale, low = band.grids(order)
        plain = band.table is not None and bool((scale == 1).all())
        mine = [
            pack_codes(band.codes(order), band.bits, coded=coded),
            _nothing() if plain else _pack_halves(scale, coded),
            _nothing() if low is None else _pack_halves(low, coded),
            _nothing() if band.table is None else band.table.view(np.uint8),
        ]
        words += [band.bits, band.group, LEVELS.index(band.level), len(order), *(len(s) for s in mine)]
        streams += mine
    head = [_VERSION, *x.shape, len(x.bands), len(owners)]
    return np.concatenate([np.array([*head, *words], "<i4").view(np.uint8), owners, *streams])


def _nothing() -> np.ndarray:
    return np.zeros(0, np.uint8)


def _pack_halves(x: np.ndarray, coded: bool) -> np.ndarray:
    """The bytes of the first stream (uint32), upper bytes and lower bytes."""
    from holdall.parts.entropy import pack_codes

    bits = np.ascontiguousarray(x).view(np.uint16).reshape(-1)
    upper, lower = (pack_codes(part.astype(np.uint8), 8, coded=coded) for part in (bits >> 8, bits & 255))
    return np.concatenate([np.array([len(upper)], "<u4").view(np.uint8), upper, lower])


def _unpack_halves(stream: np.ndarray, count: int) -> np.ndarray:
    from holdall.parts.entropy import unpack_codes

    if stream.size < 4:
        raise CorruptArtefact("the grids of a matrix", "they are cut short")
    cut = 4 + int(stream[:4].copy().view("<u4")[0])
    upper, lower = (unpack_codes(s, count, 8).astype(np.uint16) for s in (stream[4:cut], stream[cut:]))
    found = ((upper << 8) | lower).view(np.float16)
    if not np.isfinite(found).all():
        raise CorruptArtefact("the grids of a matrix", "NaN or infinity")
    return found


def held_bytes(stream: np.ndarray) -> int:
    """Bytes that the matrix will take in memory, from its first words; checked as `of_bytes` checks them."""
    from holdall.weights.coded_tiles import chunks_of

    (_, columns), bands, _ = _told(stream)
    total = 0
    for bits, group, level, rows, *_ in bands:
        tiles = -(-rows // 16)
        grids = -(-columns // group) * (2 if LEVELS[level] in ("low", "zero") else 1)
        total += 4 * rows + tiles * (chunks_of(columns, group) * 64 * bits + 32 * grids)
        total += 2 << bits if LEVELS[level] == "table" else 0
    return total


def of_bytes(arrays: Mapping[str, Any], name: str) -> Coded:
    if name not in arrays:
        raise CorruptArtefact("the file", f"section {name} is not there")
    stream = arrays[name]
    shape, bands, at = _told(stream)
    owned = int(_words(stream, _HEAD)[4])
    places = _owners(stream[at : at + owned], shape[0], [b[3] for b in bands])
    at += owned
    made = []
    for (bits, group, level, _, *lengths), place in zip(bands, places, strict=True):
        ends = at + np.cumsum(lengths)
        codes, scale, low, table = (stream[e - n : e] for e, n in zip(ends, lengths, strict=True))
        made.append(_band(bits, group, LEVELS[level], place, shape[1], (codes, scale, low, table)))
        at = int(ends[-1])
    return Coded(shape, tuple(made))


def _words(stream: np.ndarray, count: int) -> np.ndarray:
    return stream[: 4 * count].copy().view("<i4").astype(np.int64)


def _told(stream: Any) -> tuple[tuple[int, int], list[list[int]], int]:
    """(shape, words of each band, where the streams begin)."""
    if getattr(stream, "dtype", None) != np.uint8 or stream.ndim != 1 or stream.size < 4 * _HEAD:
        raise CorruptArtefact("a coded matrix", "it is cut short")
    version, rows, columns, count, owned = (int(w) for w in _words(stream, _HEAD))
    start = 4 * (_HEAD + _EACH * count)
    if (
        version != _VERSION
        or not 1 <= count <= 255
        or min(rows, columns, owned + 1) < 1
        or stream.size < start
    ):
        raise CorruptArtefact("a coded matrix", f"version {version}, {rows} x {columns} in {count} bands")
    bands = _words(stream, _HEAD + _EACH * count)[_HEAD:].reshape(count, _EACH).tolist()
    for bits, group, level, some, *lengths in bands:
        if bits not in WIDTHS or not 1 <= group <= columns or not 0 <= level < len(LEVELS) or some < 1:
            raise CorruptArtefact("a coded matrix", f"a band of {bits} bits in groups of {group}")
        if min(lengths) < 0:
            raise CorruptArtefact("a coded matrix", "a stream of negative length")
    if sum(b[3] for b in bands) != rows or rows * columns > _MOST:
        raise CorruptArtefact("a coded matrix", "its bands do not have its rows")
    if stream.size != start + owned + sum(sum(b[4:]) for b in bands):
        raise CorruptArtefact("a coded matrix", "its streams do not add up")
    return (rows, columns), bands, start


def _owners(stream: np.ndarray, rows: int, counts: list[int]) -> list[np.ndarray]:
    """The rows of each band."""
    from holdall.parts.entropy import unpack_codes

    if len(counts) == 1:
        if stream.size:
            raise CorruptArtefact("a coded matrix", "one band, and a list of owners")
        return [np.arange(rows, dtype=np.int32)]
    owner = unpack_codes(stream, rows, 8)
    if np.bincount(owner, minlength=len(counts)).tolist() != counts:
        raise CorruptArtefact("a coded matrix", "its rows do not belong to its bands")
    return [np.flatnonzero(owner == at).astype(np.int32) for at in range(len(counts))]


def _band(
    bits: int, group: int, level: str, rows: np.ndarray, columns: int, streams: tuple[np.ndarray, ...]
) -> Band:
    from holdall.parts.entropy import unpack_codes
    from holdall.weights.coded_tiles import tiled

    codes, scale, low, table = streams
    shape = (len(rows), -(-columns // group))
    if (low.size > 0) != (level in ("low", "zero")) or table.size != (2 << bits if level == "table" else 0):
        raise CorruptArtefact("a coded matrix", f"a grid of kind {level} with other parts")
    if not scale.size and level != "table":
        raise CorruptArtefact("a coded matrix", "a grid without steps")
    if table.size and not np.isfinite(table.copy().view(np.float16)).all():
        raise CorruptArtefact("the table of a matrix", "NaN or infinity")
    ones = np.ones(shape, np.float16)
    steps = _unpack_halves(scale, ones.size).reshape(shape) if scale.size else ones
    starts = _unpack_halves(low, ones.size).reshape(shape) if low.size else None
    return Band(
        rows, columns, bits, group, level,
        tiled(unpack_codes(codes, len(rows) * columns, bits).reshape(len(rows), columns), bits, group),
        _across(steps, shape, "scale"),
        None if starts is None else _across(starts, shape, "low"),
        table.copy().view(np.float16) if table.size else None,
    )  # fmt: skip
