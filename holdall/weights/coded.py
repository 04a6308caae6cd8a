"""Coded: one matrix as whole numbers of few bits on small grids, as the room's rounding methods make and keep it.

A matrix [O, I] is a set of bands; a band has some of the rows, one width, and one kind of grid, with `group` columns to
each of its steps. What a code q stands for is one of

    low      low + scale * q              classic min/max grids
    zero     scale * (q - zero)           whole-number zero points
    middle   scale * (q - 2**(bits - 1))  symmetric grids
    table    scale * table[q]             palettes, float formats; one table a band

scale, low and table are float16. In memory codes keep their width (`coded_tiles`); on disk they are entropy coded where
that is smaller (`holdall.parts.entropy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from holdall.errors import BadInput

WIDTHS = (1, 2, 3, 4, 5, 6, 8)
LEVELS = ("low", "zero", "middle", "table")
_HALF = 65504.0


@dataclass(frozen=True)
class Band:
    """Rows of one width. Arrays lie as kernels read them: sixteen rows a tile, padded with zeros.

    rows: int32 [R], where they belong; tiles: uint8 [R / 16, chunks, 64 * bits]; scale and low (which holds zeros,
    where `level` is "zero"): float16 [R / 16, G, 16]; table: float16 [2**bits].
    """

    rows: np.ndarray
    columns: int
    bits: int
    group: int
    level: str
    tiles: np.ndarray
    scale: np.ndarray
    low: np.ndarray | None = None
    table: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        held = (self.rows, self.tiles, self.scale, self.low, self.table)
        return sum(a.nbytes for a in held if a is not None)

    def codes(self, which: np.ndarray | None = None) -> np.ndarray:
        """uint8 [R, I], or of the rows at the places `which`."""
        from holdall.weights.coded_tiles import rows_of

        places = np.arange(len(self.rows)) if which is None else which
        return rows_of(self.tiles, self.bits, self.group, self.columns, places)

    def grids(self, which: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """(scale, low) float16 [R, G]; low is None where there is none."""
        places = np.arange(len(self.rows)) if which is None else which
        scale = self.scale[places // 16, :, places % 16]
        return scale, None if self.low is None else self.low[places // 16, :, places % 16]

    def dense(self, which: np.ndarray | None = None) -> np.ndarray:
        """float32 [R, I], or of the rows at the places `which`."""
        from holdall.weights.coded_tiles import numbers, planes

        places = np.arange(len(self.rows)) if which is None else np.ascontiguousarray(which, np.int64)
        halves = self.grids(places)
        scale = halves[0].astype(np.float32)
        low = np.zeros_like(scale) if halves[1] is None else halves[1].astype(np.float32)
        values = np.arange(1 << self.bits, dtype=np.float32)
        if self.level == "middle":
            values -= np.float32(1 << (self.bits - 1))
        out = np.empty((len(places), self.columns), np.float32)
        table = values if self.table is None else self.table.astype(np.float32)
        grid = (self.group, scale, low, table, self.level != "zero")
        numbers(self.tiles, planes(self.bits), *grid, places, out)
        return out


@dataclass(frozen=True)
class Coded:
    """A matrix of `shape` [O, I] in bands that have each of its rows once."""

    shape: tuple[int, int]
    bands: tuple[Band, ...]

    @classmethod
    def of(
        cls,
        codes: np.ndarray,
        bits: int,
        *,
        scale: np.ndarray | None = None,
        low: np.ndarray | None = None,
        zero: np.ndarray | None = None,
        table: np.ndarray | None = None,
        group: int = 0,
    ) -> Self:
        """One band with all rows.

        codes: [O, I] below 2**bits. scale, low, zero: [O, G] for G = ceil(I / group), where a last group may be
        shorter and group 0 is the whole row; [O] and what broadcasts to [O, G] will do. Of low, zero and table at most
        one is given; with none of them grids are symmetric. A table may do without a scale.
        """
        from holdall.weights.coded_tiles import tiled

        codes = np.asarray(codes)
        _check(codes, bits, group)
        if sum(a is not None for a in (low, zero, table)) > 1 or (scale is None and table is None):
            raise BadInput("a grid", "its parts", "a scale and at most one of low, zero and table")
        rows, columns = codes.shape
        group = min(group or columns, columns)
        shape = (rows, -(-columns // group))
        level = (
            "low"
            if low is not None
            else "zero"
            if zero is not None
            else "table"
            if table is not None
            else "middle"
        )
        second = low if low is not None else zero
        if table is not None and np.shape(table) != (1 << bits,):
            raise BadInput("a table", f"{np.shape(table)} values", f"{1 << bits} for {bits} bits")
        band = Band(
            np.arange(rows, dtype=np.int32), columns, bits, group, level,
            tiled(codes.astype(np.uint8), bits, group),
            _across(np.ones(1) if scale is None else scale, shape, "scale"),
            None if second is None else _across(second, shape, level),
            None if table is None else _half(np.asarray(table), "table"),
        )  # fmt: skip
        return cls((rows, columns), (band,))

    @classmethod
    def mixed(cls, parts: Sequence[tuple[np.ndarray, Coded]]) -> Self:
        """One matrix of several: rows [R] that each has in the whole, and itself. Those without rows are left out."""
        bands: list[Band] = []
        for rows, part in parts:
            rows = np.asarray(rows, np.int32)
            if len(rows) != part.shape[0]:
                raise BadInput("rows of a band", f"{len(rows)} for {part.shape[0]}", "one place for each row")
            bands += [Band(**{**vars(b), "rows": rows[b.rows]}) for b in part.bands]
        total = sum(len(b.rows) for b in bands)
        where = np.concatenate([b.rows for b in bands]) if bands else np.zeros(0, np.int32)
        if len({b.columns for b in bands}) != 1 or len(bands) > 255:
            raise BadInput("bands", f"{len(bands)} of several widths", "1 to 255 with the same columns")
        if not np.array_equal(np.sort(where), np.arange(total)):
            raise BadInput("rows of bands", "some twice or not at all", "each row of the matrix once")
        return cls((total, bands[0].columns), tuple(bands))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(b.nbytes for b in self.bands)

    @property
    def bits(self) -> float:
        """Mean width of a code."""
        return sum(b.bits * len(b.rows) for b in self.bands) / self.shape[0]

    def dense(self) -> np.ndarray:
        """The matrix that it stands for, float32 [O, I]: the truth that kernels are compared with."""
        out = np.empty(self.shape, np.float32)
        for band in self.bands:
            out[band.rows] = band.dense()
        return out

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Some rows, float32 [len(ids), I]."""
        ids = np.asarray(ids, np.int64)
        if len(self.bands) == 1:
            return self.bands[0].dense(ids)
        owner, place = self._places()
        out = np.empty((len(ids), self.shape[1]), np.float32)
        for at, band in enumerate(self.bands):
            mine = owner[ids] == at
            out[mine] = band.dense(place[ids[mine]])
        return out

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """(band, place in it) of each row."""
        owner, place = np.zeros(self.shape[0], np.int64), np.zeros(self.shape[0], np.int64)
        for at, band in enumerate(self.bands):
            owner[band.rows], place[band.rows] = at, np.arange(len(band.rows))
        return owner, place

    def sections(self, prefix: str, *, coded: bool = True) -> dict[str, np.ndarray]:
        """For a `.hold` file. coded: entropy code what gets smaller by it."""
        from holdall.weights.coded_bytes import to_bytes

        return {prefix: to_bytes(self, coded)}

    @classmethod
    def of_sections(cls, arrays: Mapping[str, Any], prefix: str) -> Coded:
        """From a `.hold` file; CorruptArtefact for what `sections` cannot have written."""
        from holdall.weights.coded_bytes import of_bytes

        return of_bytes(arrays, prefix)


def _check(codes: np.ndarray, bits: int, group: int) -> None:
    if bits not in WIDTHS:
        raise BadInput("bits of codes", bits, f"one of {', '.join(map(str, WIDTHS))}")
    if codes.ndim != 2 or not codes.size or group < 0:
        raise BadInput(
            "codes", f"{codes.shape} in groups of {group}", "[O, I] of at least one number, and group >= 0"
        )
    if codes.dtype.kind not in "iu" or int(codes.min()) < 0 or int(codes.max()) >= 1 << bits:
        raise BadInput("codes", f"{codes.dtype} up to {codes.max()}", f"whole numbers below {1 << bits}")


def _across(values: np.ndarray, shape: tuple[int, int], what: str) -> np.ndarray:
    """[R, G] as float16 [R / 16, G, 16]."""
    half = _half(np.asarray(values), what)
    half = np.broadcast_to(half[:, None] if half.ndim == 1 else half, shape)
    padded = np.zeros((-(-shape[0] // 16) * 16, shape[1]), np.float16)
    padded[: shape[0]] = half
    return np.ascontiguousarray(padded.reshape(-1, 16, shape[1]).transpose(0, 2, 1))


def _half(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all() or (values.size and np.abs(values).max() > _HALF):
        raise BadInput(what, "a value that is not finite in half precision", "values of at most 65504")
    return values.astype(np.float16)
