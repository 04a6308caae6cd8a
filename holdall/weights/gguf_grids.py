"""Coded matrices as blocks of GGUF's classic types: which type holds a grid exactly, and its bytes.

A block has 32 columns, a half-precision step d and, in the types that end in 1, a half-precision minimum m: it stands
for d * q + m, or for d * (q - middle). So `Coded` grids of whole numbers fit whose groups are multiples of 32 columns.
"""

from __future__ import annotations

import numpy as np

from holdall.weights.coded import Band, Coded

BLOCK = 32
_NOTHING = np.zeros((), np.float16)
_AFFINE = (("Q4_1", 15), ("Q5_1", 31))  # (type, largest code)
_CENTRED = (("Q4_0", 8), ("Q5_0", 16), ("Q8_0", 128))  # (type, what is added to codes)


def fitted(coded: Coded, order: np.ndarray | None = None) -> tuple[str, np.ndarray] | None:
    """(type, uint8 [O, bytes of a row]) of blocks that stand for the very same numbers; None where no type does.

    order: [O], the row of the matrix that each row of the result is.
    """
    rows, columns = coded.shape
    if columns % BLOCK or any(b.level == "table" or b.group % BLOCK for b in coded.bands):
        return None
    shape = (rows, columns // BLOCK)
    codes = np.empty((rows, columns), np.int16)
    step, low = np.empty(shape, np.float16), np.empty(shape, np.float16)
    affine = any(b.level == "low" for b in coded.bands)
    for band in coded.bands:
        part = _lows(band) if affine else _whole(band)
        if part is None:
            return None
        codes[band.rows], low[band.rows] = part
        step[band.rows] = _each(band, band.grids()[0])
    kind = _kind(codes, affine)
    if kind is None:
        return None
    if order is not None:
        codes, step, low = codes[order], step[order], low[order]
    return kind, _blocks(kind, codes, step, low if affine else None)


def _each(band: Band, grid: np.ndarray) -> np.ndarray:
    """[R, G] as [R, I / 32]."""
    return grid[:, np.arange(band.columns // BLOCK) * BLOCK // band.group]


def _lows(band: Band) -> tuple[np.ndarray, np.ndarray] | None:
    """(codes, minima) of a band beside bands with minima; None for zero points, whose minima halves may not hold."""
    if band.level == "zero":
        return None
    step, low = band.grids()
    if low is None:
        with np.errstate(over="ignore"):
            low = -step * np.float16(1 << band.bits - 1)
        if not np.isfinite(low).all():
            return None
    return band.codes().astype(np.int16), _each(band, low)


def _whole(band: Band) -> tuple[np.ndarray, np.ndarray] | None:
    """(codes around zero, nothing) of a band whose numbers are multiples of its steps."""
    codes = band.codes().astype(np.int16)
    zero = band.grids()[1]
    if zero is None:
        return codes - np.int16(1 << band.bits - 1), _NOTHING
    if (zero != np.rint(zero)).any() or np.abs(zero).max() > 16384:
        return None
    return codes - np.repeat(_each(band, zero).astype(np.int16), BLOCK, axis=1), _NOTHING


def _kind(codes: np.ndarray, affine: bool) -> str | None:
    low, high = int(codes.min()), int(codes.max())
    if affine:
        return next((kind for kind, top in _AFFINE if high <= top), None)
    return next((kind for kind, middle in _CENTRED if -middle <= low and high < middle), None)


def _blocks(kind: str, codes: np.ndarray, step: np.ndarray, low: np.ndarray | None) -> np.ndarray:
    """uint8 [O, bytes]: step, minimum, fifth bits, and codes two in a byte, column j beside column j + 16."""
    cut = codes.reshape(*step.shape, BLOCK)
    parts = [_raw(step)] if low is None else [_raw(step), _raw(low)]
    if kind == "Q8_0":
        parts.append(cut.astype(np.int8).view(np.uint8))
    else:
        whole = (cut + dict(_CENTRED).get(kind, 0)).astype(np.uint8)
        if kind.startswith("Q5"):
            parts.append(np.packbits(whole >> 4, axis=-1, bitorder="little"))
        four = whole & 15
        parts.append(four[..., :16] | four[..., 16:] << 4)
    return np.concatenate(parts, axis=-1).reshape(len(codes), -1)


def _raw(halves: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(halves)[..., None].view(np.uint8)
