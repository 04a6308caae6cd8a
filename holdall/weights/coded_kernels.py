"""Products of coded matrices, each with its slow truth beside it.

Tokens are rounded to whole numbers of 16 or 8 bits, a block of columns at a time (a block lies in one group of columns
and has at most 64), multiplied with codes as whole numbers, and scaled. Of 16 bits nothing is lost that float32 would
show in an answer; 8 bits are half the work, and cost what docs/weights.md says.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.weights.coded_lanes import dots_1, dots_2, dots_4, dots_8
from holdall.weights.coded_tiles import COLUMNS, ROWS
from holdall.weights.table_lanes import lookups_1, lookups_4

MOST = 2  # chunks of a block: 64 * 255 * 32767 is below 2**31, and a large number coarsens few others


class Cut:
    """How columns in groups are cut into blocks: where each begins in chunks and in columns, and its group."""

    def __init__(self, columns: int, group: int):
        self.group = group
        begins, firsts, owners, chunk = [0], [], [], 0
        for owner, start in enumerate(range(0, columns, group)):
            stop = min(start + group, columns)
            for first in range(start, stop, MOST * COLUMNS):
                last = min(first + MOST * COLUMNS, stop)
                chunk += -(-(last - first) // COLUMNS)
                begins.append(chunk)
                firsts.append(first)
                owners.append(owner)
        self.begins = np.array(begins, np.int64)
        self.owners = np.array(owners, np.int64)
        self.firsts = np.array([*firsts, columns], np.int64)
        self.width = COLUMNS * chunk


class Tokens:
    """Numbers [T, I] as the kernels take them. `take` puts others in their place."""

    def __init__(self, x: np.ndarray, cut: Cut, eight: bool = False):
        self.cut = cut
        self.x = np.zeros((len(x), cut.width), np.int8 if eight else np.int16)
        self.xs = np.empty((len(x), len(cut.owners)), np.float32)
        self.sums = np.empty_like(self.xs)
        self.take(x)

    def take(self, x: np.ndarray) -> None:
        rounded(x, self.cut.begins, self.cut.firsts, self.x, self.xs, self.sums, 0, len(x))


def naive_rounded(x: np.ndarray, cut: Cut, eight: bool) -> np.ndarray:
    """What rounding leaves of numbers [T, I]."""
    top, out = 127 if eight else 32767, np.zeros(x.shape)
    for t in range(len(x)):
        for first, last in zip(cut.firsts, cut.firsts[1:], strict=False):
            part = x[t, first:last].astype(np.float64)
            size = np.float64(np.float32(np.abs(part).max()) / np.float32(top)) or 1.0
            out[t, first:last] = np.rint(part / size) * size
    return out


@njit(nogil=True, cache=True)
def taken(token, tokens):  # type: ignore[no-untyped-def]
    """(the first of those that a token is taken with, how many these are)."""
    lead, together = 0, 8
    while True:
        if lead + together > tokens:
            together //= 2
        elif token < lead + together:
            return lead, together
        else:
            lead += together


@njit(nogil=True, cache=True, fastmath={"nsz", "contract", "arcp"})
def rounded(x, begins, firsts, out, sizes, sums, start, stop):  # type: ignore[no-untyped-def]
    """Tokens [start, stop) of x [T, I] as whole numbers [T, K], their steps [T, N], and what these sum up to.

    Tokens are taken by eight, and what is left by four, two, one; those taken together have their numbers for a word
    of codes side by side: four of 8 bits, or two of 16 bits, which then stand in the order 0, 2, 1, 3 in every four.
    """
    flat, width = out.reshape(-1), out.shape[1]
    eight = out.itemsize == 1
    top = np.float32(127 if eight else 32767)
    for t in range(start, stop):
        lead, together = taken(t, len(x))
        for n in range(len(begins) - 1):
            first, last = firsts[n], firsts[n + 1]
            base = lead * width + begins[n] * COLUMNS * together
            peak = np.float32(0)
            for j in range(first, last):
                peak = max(peak, abs(x[t, j]))
            size = peak / top
            each = np.float32(1) / size if size > 0 else np.float32(0)
            total = np.int32(0)
            for j in range(first, last):
                q = np.int32(np.rint(x[t, j] * each))
                total += q
                at = j - first
                if eight:
                    flat[base + (at >> 2) * 4 * together + (t - lead) * 4 + (at & 3)] = q
                else:
                    pair = (at >> 2) * 2 + (at & 1)
                    flat[base + pair * 2 * together + (t - lead) * 2 + ((at >> 1) & 1)] = q
            sizes[t, n] = size
            sums[t, n] = size * np.float32(total)


def naive_products(dense: np.ndarray, x: np.ndarray, cut: Cut, eight: bool) -> np.ndarray:
    """x W^T [T, O] for the rounded x."""
    return naive_rounded(x, cut, eight) @ dense.astype(np.float64).T


@njit(nogil=True, cache=True)
def products(width, tiles, scale, low, mix, begins, owners, x, xs, sums, rows, y, first, last):  # type: ignore[no-untyped-def]
    """Tiles [first, last) of `naive_products` into y [T, O] at columns `rows`; see `coded_lanes` for what comes in."""
    vectors, grids = tiles.shape[1] * len(width), scale.shape[1]
    found = np.empty((8, ROWS), np.float32)
    for tile in range(first, last):
        some = min(ROWS, len(rows) - tile * ROWS)
        start, grid, t = tile * vectors, tile * grids, 0
        while t < len(x):
            left = len(x) - t
            if left >= 8:
                dots_8(width, tiles, start, scale, low, grid, mix, begins, owners, x, xs, sums, t, found)
                done = 8
            elif left >= 4:
                dots_4(width, tiles, start, scale, low, grid, mix, begins, owners, x, xs, sums, t, found)
                done = 4
            elif left >= 2:
                dots_2(width, tiles, start, scale, low, grid, mix, begins, owners, x, xs, sums, t, found)
                done = 2
            else:
                dots_1(width, tiles, start, scale, low, grid, mix, begins, owners, x, xs, sums, t, found)
                done = 1
            for i in range(done):
                for r in range(some):
                    y[t + i, rows[tile * ROWS + r]] = found[i, r]
            t += done


def naive_looked_up(dense: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x W^T [T, O]."""
    return x.astype(np.float64) @ dense.astype(np.float64).T


@njit(nogil=True, cache=True)
def spread(x, begins, firsts, out, sums):  # type: ignore[no-untyped-def]
    """Tokens [T, I] as `looked_up` takes them, in zeros [T, K]: four at a time side by side, the rest one by one; and
    the sums of their blocks [T, N]."""
    flat, width = out.reshape(-1), out.shape[1]
    for t in range(len(x)):
        together = 4 if t < len(x) // 4 * 4 else 1
        lead = t - t % together
        for n in range(len(begins) - 1):
            base = lead * width + begins[n] * COLUMNS * together + t - lead
            total = np.float32(0)
            for j in range(firsts[n], firsts[n + 1]):
                flat[base + (j - firsts[n]) * together] = x[t, j]
                total += x[t, j]
            sums[t, n] = total


@njit(nogil=True, cache=True)
def looked_up(width, tiles, scale, low, mix, table, begins, owners, x, sums, rows, y, first, last):  # type: ignore[no-untyped-def]
    """Tiles [first, last) of `naive_looked_up` into y [T, O] at columns `rows`; see `table_lanes`."""
    vectors, grids = tiles.shape[1] * len(width), scale.shape[1]
    found = np.empty((4, ROWS), np.float32)
    for tile in range(first, last):
        some = min(ROWS, len(rows) - tile * ROWS)
        start, grid, t = tile * vectors, tile * grids, 0
        while t < len(x):
            if len(x) - t >= 4:
                lookups_4(
                    width, tiles, start, scale, low, grid, mix, table, begins, owners, x, sums, t, found
                )
                done = 4
            else:
                lookups_1(
                    width, tiles, start, scale, low, grid, mix, table, begins, owners, x, sums, t, found
                )
                done = 1
            for i in range(done):
                for r in range(some):
                    y[t + i, rows[tile * ROWS + r]] = found[i, r]
            t += done


def mix_of(level: str, bits: int) -> np.ndarray:
    """What turns a grid's second number into where it starts; see `coded_lanes`."""
    middle = float(1 << (bits - 1))
    told = {"low": (1, 0, 0), "zero": (0, -1, 0), "middle": (0, 0, -middle), "table": (0, 0, 0)}
    return np.array(told[level], np.float32)
