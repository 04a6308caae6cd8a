"""Codes: packed and unpacked exactly at odd sizes, grids as the slow truth lays them, nothing odd accepted."""

from __future__ import annotations

import pytest
import torch

from holdall import BadInput
from holdall.parts.quant import BITS, decode, encode, grid, naive_grid, naive_pack, pack, unpack, width


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 13, 63, 64])
def test_codes_come_back_from_the_bytes_of_the_slow_truth(bits: int, count: int) -> None:
    lot = torch.Generator().manual_seed(count)
    codes = torch.randint(0, 2**bits, (2, 5, count), generator=lot, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 5, width(count, bits))
    assert bytes(packed[1, 3].tolist()) == naive_pack(codes[1, 3].tolist(), bits)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_a_byte_is_full() -> None:
    assert [width(64, b) for b in BITS] == [8, 16, 24, 32, 64]
    assert pack(torch.full((8,), 7, dtype=torch.uint8), 3).tolist() == [255, 255, 255]
    with pytest.raises(BadInput, match="bits"):
        width(64, 5)
    with pytest.raises(BadInput, match="packed codes"):
        unpack(torch.zeros(7, dtype=torch.uint8), 2, 32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 17, 64])
def test_grids_are_those_of_the_slow_truth(bits: int, count: int) -> None:
    x = torch.randn(3, count, 5, generator=torch.Generator().manual_seed(count)) * 3 + 1
    step, low = grid(x, bits, 1)
    codes = encode(x, step, low, bits)
    for row in range(3):
        for column in range(5):
            a, b, truth = naive_grid(x[row, :, column], bits)
            assert (float(step[row, 0, column]), float(low[row, 0, column])) == (a, b)
            assert codes[row, :, column].tolist() == truth
    error = (decode(codes, step, low) - x).abs()
    assert (error <= step.float() * 0.51 + 2e-3).all()


def test_least_squares_lay_better_grids_than_the_extremes() -> None:
    x = torch.randn(20, 200, generator=torch.Generator().manual_seed(0))
    for bits, gain in ((1, 0.2), (2, 0.6), (3, 0.85), (4, 0.97)):
        loss = [
            float((decode(encode(x, *g, bits), *g) - x).square().mean())
            for g in (grid(x, bits, 1), grid(x, bits, 1, fit=6))
        ]
        assert loss[1] < gain * loss[0]


def test_what_is_all_alike_or_nothing_stays_what_it_is() -> None:
    for fit in (0, 4):
        for value in (0.0, 3.0, -7.25):
            x = torch.full((2, 9), value)
            g = grid(x, 2, 1, fit=fit)
            torch.testing.assert_close(decode(encode(x, *g, 2), *g), x, atol=1e-6, rtol=0)
        assert grid(torch.zeros(2, 0, 3), 2, 1, fit=fit)[0].shape == (2, 1, 3)


@pytest.mark.parametrize("fit", [0, 4])
def test_the_hidden_have_no_say(fit: int) -> None:
    x = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.full((2, 7, 4), torch.nan), x], 1)
    shown = (torch.arange(37) >= 7)[None, :, None].expand(2, 37, 1)
    for a, b in zip(grid(x, 3, 1, fit=fit), grid(padded, 3, 1, fit=fit, shown=shown), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.isfinite(torch.stack(grid(padded, 3, 1, fit=fit, shown=shown & False))).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e6])
def test_what_has_no_place_on_a_grid_is_refused(bad: float) -> None:
    x = torch.zeros(3, 4)
    x[1, 2] = bad
    with pytest.raises(BadInput, match="quantise"):
        grid(x, 4, 1)
