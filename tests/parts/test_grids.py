"""Rows by the kernels: grids, codes and bytes are those of torch, but for the rounding of sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from holdall.parts.grids import lay, pack_row, put, unpack_row
from holdall.parts.moments import moments
from holdall.parts.quant import BITS, encode, grid, naive_grid, naive_pack, width
from holdall.parts.tiles import LANES


def row(count: int) -> tuple[Any, Any]:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 3 + 1
    return x, np.pad(x.numpy(), (0, LANES))


def half(bits: int) -> float:
    return float(np.array(bits, np.uint16).view(np.float16))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 129])
def test_a_row_gets_the_grid_and_the_codes_of_the_slow_truth(bits: int, count: int) -> None:
    x, room = row(count)
    step, low, peak = lay(room, count, bits, 0)
    codes = np.empty(count + 8, np.uint8)
    put(room, count, step, low, bits, codes)
    truth = naive_grid(x, bits)
    assert (half(step), half(low)) == truth[:2] and codes[:count].tolist() == truth[2]
    assert peak == pytest.approx(max(abs(truth[0]), abs(truth[1])), rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [2, 15, 64, 200])
def test_least_squares_are_those_of_torch(bits: int, count: int) -> None:
    x, room = row(count)
    step, low, _ = lay(room, count, bits, 3)
    truth = grid(x, bits, 0, fit=3)
    assert half(step) == pytest.approx(float(truth[0]), rel=2e-3)
    assert half(low) == pytest.approx(float(truth[1]), rel=2e-3, abs=2e-3)
    codes = np.empty(count + 8, np.uint8)
    put(room, count, step, low, bits, codes)
    assert int((torch.from_numpy(codes[:count]) != encode(x, *truth, bits)).sum()) <= 0.02 * count


def test_a_row_of_nothing_has_the_least_grid() -> None:
    step, low, peak = lay(np.full(LANES, np.nan, np.float32), 0, 3, 2)
    assert half(step) == 2.0**-24 and half(low) == 0 and peak < 1e-6


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 13, 63, 64, 130, 777])
def test_bytes_are_those_of_the_slow_truth_and_come_back(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**bits, count + 8).astype(np.uint8)
    wanted, out = codes[:count].copy(), np.full(width(count, bits) + 6, 99, np.uint8)
    assert pack_row(codes, count, bits, out, 3) == width(count, bits)
    assert bytes(out[3:-3]) == naive_pack(wanted.tolist(), bits)
    assert out[:3].tolist() == out[-3:].tolist() == [99] * 3
    back = np.full(count + 8, 77, np.uint8)
    unpack_row(out, 3, count, bits, back)
    np.testing.assert_array_equal(back[:count], wanted)


def test_moments_are_sums_over_codes() -> None:
    from numba import njit

    @njit(fastmath=True)
    def found(x: Any, low: Any, each: Any, top: Any, mean: Any) -> Any:
        return moments(x, len(x), low, each, top, mean)

    x = np.random.default_rng(0).standard_normal(5 * LANES).astype(np.float32)
    f = np.float32
    q = np.clip(np.rint((x + 1) * f(3)), 0, 7).astype(np.float64)
    truth = (q.sum(), (q * q).sum(), (q * (x - 0.25)).sum())
    assert found(x, f(-1), f(3), f(7), f(0.25)) == pytest.approx(truth, rel=1e-5)
