"""Tiles of a product, the largest of a row and its powers, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from holdall.parts.tiles import COLUMNS, LANES, ROWS, naive_tile, peak, powers, span, tile


@njit(fastmath=True)
def product(x: Any, panel: Any, out: Any, to: int) -> None:
    tile(x, 0, x.shape[1], panel, 0, out, to, out.shape[1])


@njit(fastmath=True)
def softened(row: Any) -> Any:
    top = peak(row, len(row))
    return top, powers(row, len(row), top)


@njit(fastmath=True)
def ends(row: Any) -> Any:
    return span(row, len(row))


@pytest.mark.parametrize("count", [LANES, 3 * LANES])
def test_the_span_of_a_row(count: int) -> None:
    x = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    assert ends(x) == (x.min(), x.max())


@pytest.mark.parametrize("depth", [1, 2, 7, 64, 81])
def test_a_tile_is_the_product(depth: int) -> None:
    lot = np.random.default_rng(depth)
    x, panel = (lot.standard_normal(shape).astype(np.float32) for shape in ((ROWS, depth), (depth, COLUMNS)))
    out = np.full((ROWS, COLUMNS + 9), 7, np.float32)
    product(x, panel, out, 5)
    np.testing.assert_allclose(out[:, 5 : COLUMNS + 5], naive_tile(x, panel), atol=1e-5)
    assert (out[:, :5] == 7).all() and (out[:, COLUMNS + 5 :] == 7).all()


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_a_row_becomes_powers_under_its_largest(tiles: int) -> None:
    row = np.random.default_rng(tiles).standard_normal(tiles * COLUMNS).astype(np.float32) * 30
    row[LANES] = -1e30
    largest = row.max()
    truth = np.exp((row - largest).astype(np.float64))
    top, whole = softened(row)
    assert top == largest and row[LANES] == 0
    np.testing.assert_allclose(row, truth, rtol=3e-7, atol=1e-37)
    assert whole == pytest.approx(truth.sum(), rel=1e-6)
