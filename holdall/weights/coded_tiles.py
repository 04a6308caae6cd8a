"""How codes lie in memory: sixteen rows side by side, 32 columns at a time, planes of 4, 2 and 1 bits.

A chunk is 16 rows x 32 columns: 64 * bits bytes. A plane of p bits has p vectors of 64 bytes; vector v holds, in byte
4 r + c, the codes of row r in columns 4 (v * 8 / p + i) + c for i = 0, 1, ... 8 / p - 1, lowest bits first. So one
vector, shifted and masked, is 8 / p times four neighbouring columns of sixteen rows: what one integer product
instruction takes. Groups of columns are padded to whole chunks.
"""

from __future__ import annotations

import numpy as np
from numba import njit

ROWS, COLUMNS = 16, 32
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


def planes(bits: int) -> np.ndarray:
    """(bits of a plane, the bit of the code that is its lowest) [P, 2]."""
    found, low = [], 0
    for plane in PLANES[bits]:
        found.append((plane, low))
        low += plane
    return np.array(found, np.int64)


def chunks_of(columns: int, group: int) -> int:
    """Chunks of a row that is cut into groups."""
    whole, rest = divmod(columns, group)
    return whole * -(-group // COLUMNS) + -(-rest // COLUMNS)


def tiled(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Codes [R, I] as tiles [ceil(R / 16), chunks, 64 * bits]; what is added is 0."""
    rows, columns = codes.shape
    shape = (-(-rows // ROWS), chunks_of(columns, group), 64 * bits)
    out = aligned(shape)
    _tile(np.ascontiguousarray(codes), planes(bits), group, out)
    return out


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zero bytes that begin at a multiple of 64, which loads of 64 are twice as fast from."""
    size = int(np.prod(shape))
    room = np.zeros(size + 64, np.uint8)
    skip = -room.ctypes.data % 64
    return room[skip : skip + size].reshape(shape)


def rows_of(tiles: np.ndarray, bits: int, group: int, columns: int, which: np.ndarray) -> np.ndarray:
    """Codes [len(which), I] of some rows."""
    out = np.zeros((len(which), columns), np.uint8)
    _rows(tiles, planes(bits), group, np.ascontiguousarray(which, np.int64), out)
    return out


@njit(nogil=True, cache=True)
def _place(plane, column):  # type: ignore[no-untyped-def]
    """(byte of row 0 within the plane's part of a chunk, shift) of a column of a chunk."""
    four, per = column // 4, 8 // plane
    return four // per * 64 + column % 4, four % per * plane


@njit(nogil=True, cache=True)
def _tile(codes, parts, group, out):  # type: ignore[no-untyped-def]
    rows, columns = codes.shape
    each = (group + COLUMNS - 1) // COLUMNS
    for r in range(rows):
        tile, lane = r // ROWS, 4 * (r % ROWS)
        for j in range(columns):
            at = j // group * each * COLUMNS + j % group
            chunk, start = at // COLUMNS, 0
            for p in range(len(parts)):
                plane, low = parts[p, 0], parts[p, 1]
                byte, shift = _place(plane, at % COLUMNS)
                value = (codes[r, j] >> low) & ((1 << plane) - 1)
                out[tile, chunk, start + byte + lane] |= np.uint8(value << shift)
                start += 64 * plane


@njit(nogil=True, cache=True)
def _chunk(tiles, tile, lane, chunk, parts, out):  # type: ignore[no-untyped-def]
    """The 32 codes of one row of a chunk."""
    out[:] = 0
    start = lane
    for p in range(len(parts)):
        plane, low = parts[p, 0], parts[p, 1]
        mask, per = (1 << plane) - 1, 8 // plane
        for v in range(plane):
            for c in range(4):
                byte = tiles[tile, chunk, start + c]
                for i in range(per):
                    out[4 * (v * per + i) + c] |= ((byte >> (i * plane)) & mask) << low
            start += 64


@njit(nogil=True, cache=True)
def _rows(tiles, parts, group, which, out):  # type: ignore[no-untyped-def]
    codes = np.empty(COLUMNS, np.uint8)
    for i in range(len(which)):
        tile, lane, chunk = which[i] // ROWS, 4 * (which[i] % ROWS), 0
        for begin in range(0, out.shape[1], group):
            end = min(begin + group, out.shape[1])
            for first in range(begin, end, COLUMNS):
                _chunk(tiles, tile, lane, chunk, parts, codes)
                some = min(COLUMNS, end - first)
                out[i, first : first + some] = codes[:some]
                chunk += 1


@njit(nogil=True, cache=True, fastmath=False)
def numbers(tiles, parts, group, scale, low, values, linear, which, out):  # type: ignore[no-untyped-def]
    """Rows `which` as floats: scale * values[code] + low, where linear, else scale * (values[code] - low).

    scale, low: float32 [len(which), G]; values: float32, one for each code.
    """
    codes = np.empty(COLUMNS, np.uint8)
    for i in range(len(which)):
        tile, row, chunk = which[i] // ROWS, which[i] % ROWS, 0
        for g in range(scale.shape[1]):
            begin, end = g * group, min((g + 1) * group, out.shape[1])
            step, start = scale[i, g], low[i, g]
            for first in range(begin, end, COLUMNS):
                _chunk(tiles, tile, 4 * row, chunk, parts, codes)
                chunk += 1
                for j in range(min(COLUMNS, end - first)):
                    value = values[codes[j]]
                    out[i, first + j] = step * value + start if linear else step * (value - start)
