"""Products of coded matrices beside their slow truth: every width and grid, odd sizes, exact where numbers are."""

import numpy as np
import pytest
import torch
from weights.test_coded import SIZES, draw

from holdall.weights import Coded, coded_lanes
from holdall.weights.coded import WIDTHS
from holdall.weights.coded_kernels import (
    Cut,
    Tokens,
    naive_looked_up,
    naive_products,
)
from holdall.weights.coded_linear import CodedMatrix, Inputs, _Running


def _multiplied(coded, x, eight):
    running = _Running(coded.bands[0])
    tokens, out = Tokens(x, running.cut, eight), torch.full((len(x), coded.shape[0]), torch.nan)
    running.multiply(tokens, out.numpy())
    return out.numpy(), running.cut


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("eight", [True, False])
def test_products_are_their_naive_form(bits, eight):
    for rows, columns, group in SIZES:
        for level in ("low", "zero", "middle"):
            coded, truth = draw(rows, columns, bits, level, group)
            for tokens in (1, 2, 3, 7, 13):
                x = np.random.default_rng(tokens).normal(size=(tokens, columns)).astype(np.float32)
                out, cut = _multiplied(coded, x, eight)
                wanted = naive_products(truth, x, cut, eight)
                # a number halfway between two whole ones may go to the other, which is a 65,000th
                np.testing.assert_allclose(
                    out, wanted, rtol=1e-5, atol=3e-5 * np.abs(x).max() * np.abs(truth).max()
                )


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("eight", [True, False])
@pytest.mark.parametrize("columns", [1, 30, 64, 97])
def test_whole_numbers_are_multiplied_exactly(bits, eight, columns):
    """Largest codes and largest numbers, steps of one: every sum is a whole number, and is met to the bit."""
    top = 127 if eight else 255  # float32 has 24 bits to say the sum in
    rng = np.random.default_rng([bits, columns])
    codes = rng.integers(0, 1 << bits, (21, columns))
    codes[0] = (1 << bits) - 1
    coded = Coded.of(codes, bits, scale=np.ones((21, 1)), zero=np.zeros((21, 1)), group=64)
    running = _Running(coded.bands[0])
    tokens = Tokens(np.ones((9, columns), np.float32), running.cut, eight)
    x = rng.integers(-top, top + 1, (9, columns))
    x[0] = -top
    _lay(x, tokens, running.cut, eight)
    out = torch.full((9, 21), torch.nan)
    running.multiply(tokens, out.numpy())
    np.testing.assert_array_equal(out.numpy(), (x @ codes.T).astype(np.float32))


def _lay(x, tokens, cut, eight):
    """Whole numbers as they are, without rounding; test_products_are_their_naive_form sees to that."""
    top = 127 if eight else 32767
    for n, (first, last) in enumerate(zip(cut.firsts, cut.firsts[1:], strict=False)):
        tokens.xs[:, n], tokens.sums[:, n] = 1, x[:, first:last].sum(1)
    flat, width = tokens.x.reshape(-1), tokens.x.shape[1]
    flat[:] = 0
    lead = 0
    while lead < len(x):
        together = next(k for k in (8, 4, 2, 1) if lead + k <= len(x))
        for t in range(lead, lead + together):
            for n, (first, last) in enumerate(zip(cut.firsts, cut.firsts[1:], strict=False)):
                for j in range(first, last):
                    at = int(cut.begins[n]) * 32 + j - first
                    order = (0, 1, 2, 3) if eight else (0, 2, 1, 3)
                    each = 4 if eight else 2
                    place = at // 4 * 4 + order[at % 4]
                    flat[
                        lead * width + place // each * each * together + (t - lead) * each + place % each
                    ] = x[t, j]
        lead += together
    assert np.abs(x).max() <= top


@pytest.mark.parametrize("how", ["vnni", "avx2", "plain"])
@pytest.mark.parametrize("eight", [True, False])
def test_every_processor_gets_the_same_numbers(how, eight):
    """The instructions of newer processors and what stands in for them elsewhere."""
    from llvmlite import binding
    from numba import njit

    if how != "plain" and not binding.get_host_cpu_features().get(
        {"vnni": "avx512vnni", "avx2": "avx2"}[how]
    ):
        pytest.skip(f"this processor has no {how}")
    coded, _ = draw(16, 96, 4, "low", 32)
    running = _Running(coded.bands[0])
    tokens = Tokens(np.random.default_rng(0).normal(size=(2, 96)).astype(np.float32), running.cut, eight)
    dots = coded_lanes._dots(2, how)

    @njit
    def run(width, tiles, scale, low, mix, begins, owners, x, xs, sums, out):
        dots(width, tiles, 0, scale, low, 0, mix, begins, owners, x, xs, sums, 0, out)

    out, wanted = np.zeros((2, 16), np.float32), torch.zeros(2, 16)
    cut, band = running.cut, running.band
    run(
        running.width, band.tiles, running.scale, running.low, running.mix, cut.begins, cut.owners,
        tokens.x, tokens.xs, tokens.sums, out,
    )  # fmt: skip
    running.multiply(tokens, wanted.numpy())
    np.testing.assert_allclose(out, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("level", ["low", "zero", "middle", "table"])
def test_lookups_are_their_naive_form(bits, level):
    for rows, columns, group in SIZES:
        coded, truth = draw(rows, columns, bits, level, group)
        for tokens in (1, 3, 4, 9, 40):
            x = np.random.default_rng(tokens).normal(size=(tokens, columns)).astype(np.float32)
            y = np.full((tokens, rows), np.nan, np.float32)
            _Running(coded.bands[0]).into(Inputs(x), y, 32)
            atol = 2e-6 * columns * np.abs(truth).max()
            np.testing.assert_allclose(y, naive_looked_up(truth, x), rtol=1e-5, atol=atol)


def test_sixteen_bits_lose_next_to_nothing_and_eight_bits_little():
    coded, truth = draw(64, 576, 4, "low", 64)
    x = np.random.default_rng(0).normal(size=(5, 576)).astype(np.float32)
    wanted = x @ truth.T
    away = [
        np.linalg.norm(_multiplied(coded, x, eight)[0] - wanted) / np.linalg.norm(wanted)
        for eight in (False, True)
    ]
    assert away[0] < 3e-5 and 1e-3 < away[1] < 2e-2


def test_zeros_and_one_large_number_are_no_trouble():
    coded, truth = draw(20, 70, 3, "low", 0)
    x = np.zeros((3, 70), np.float32)
    x[1, 69], x[2, 3] = 1e30, 1e-30
    out, _ = _multiplied(coded, x, False)
    np.testing.assert_allclose(out, x @ truth.T.astype(np.float32), rtol=1e-4)


def test_threads_change_nothing(monkeypatch):
    coded, _ = draw(130, 96, 4, "low", 32)
    both = Coded.mixed([(np.arange(130)[::-1].copy(), coded)])
    x, found = torch.randn(9, 96, generator=torch.Generator().manual_seed(0)), []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr("holdall.weights.coded_linear._WORTH", 1)
        found.append(CodedMatrix(both).multiply(x))
    assert torch.equal(*found)


def test_blocks_lie_in_one_group_and_cover_the_columns():
    for columns, group in ((1, 1), (63, 63), (576, 64), (1536, 1536), (200, 48), (31, 7)):
        cut = Cut(columns, group)
        assert cut.firsts[0] == 0 and cut.firsts[-1] == columns and (np.diff(cut.firsts) > 0).all()
        for first, last, owner in zip(cut.firsts, cut.firsts[1:], cut.owners, strict=False):
            assert first // group == (last - 1) // group == owner and last - first <= 64
