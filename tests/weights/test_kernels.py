"""The fast kernels beside their slow truth, at odd sizes."""

import numpy as np
import pytest
import torch

from holdall.parts.rows import by_rows
from holdall.weights import kernels
from holdall.weights.fitting import Inputs, choose_signs

SIZES = [(1, 1, 1, 1), (3, 3, 1, 2), (5, 63, 3, 2), (64, 65, 6, 1), (17, 130, 7, 4), (2, 16, 16, 3)]


def _blocks(m, n, k, levels, seed=0):
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 256, (levels, m, -(-n // 8))).astype(np.uint8)
    a, b = (
        rng.normal(size=(levels, m, k)).astype(np.float32),
        rng.normal(size=(levels, k, n)).astype(np.float32),
    )
    return signs, a, b, rng.normal(size=n).astype(np.float32)


def _tokens(n, tokens, seed=1):
    """x [T, n], and the same with columns of nothing up to a multiple of 16."""
    x = np.random.default_rng(seed).normal(size=(tokens, n)).astype(np.float32)
    return x, np.pad(x, ((0, 0), (0, -n % 16)))


@pytest.mark.parametrize(("m", "n", "k", "levels"), SIZES)
def test_rebuild_is_its_naive_form(m, n, k, levels):
    signs, a, b, _ = _blocks(m, n, k, levels)
    out = np.full((m, n), np.nan, np.float32)
    kernels.rebuild(kernels.to_words(signs), a, kernels.widen(b), out, 0, 0, m)
    np.testing.assert_allclose(out, kernels.naive_rebuild(signs, a, b), rtol=1e-5, atol=1e-5)


def test_rebuild_takes_rows_from_the_middle():
    signs, a, b, _ = _blocks(23, 40, 3, 2)
    out = np.full((9, 40), np.nan, np.float32)
    kernels.rebuild(kernels.to_words(signs), a, kernels.widen(b), out, 11, 2, 9)
    assert np.isnan(out[:2]).all()
    np.testing.assert_allclose(out[2:], kernels.naive_rebuild(signs, a, b)[13:20], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "n", "k", "levels"), SIZES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 17])
def test_products_are_their_naive_form(m, n, k, levels, tokens):
    signs, a, b, _ = _blocks(m, n, k, levels)
    x, wide = _tokens(n, tokens)
    y = np.full((tokens, m + 5), np.nan, np.float32)
    kernels.products(kernels.to_words(signs), a, kernels.widen(b), wide, y, 3, 0, m)
    truth = kernels.naive_products(signs, a, b, x)
    scale = np.abs(kernels.naive_rebuild(signs, a, b)).sum(1).max()
    np.testing.assert_allclose(y[:, 3 : 3 + m], truth, rtol=1e-4, atol=1e-5 * scale)
    assert np.isnan(y[:, :3]).all() and np.isnan(y[:, 3 + m :]).all()  # beside them nothing is written


@pytest.mark.parametrize(("m", "n"), [(1, 16), (3, 48), (4, 64), (66, 144), (130, 576)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_times_a_dense_matrix(m, n, tokens, dtype):
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    x, _ = _tokens(n, tokens)
    y = np.full((tokens, m), np.nan, np.float32)
    held = w.numpy() if dtype == torch.float32 else w.view(torch.uint16).numpy()
    kernels.few(held, x, y, 0, m)
    np.testing.assert_allclose(y, kernels.naive_few(w.float().numpy(), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 6])
def test_stray_bits_behind_the_last_column_change_nothing(tokens):
    signs, a, b, _ = _blocks(4, 13, 2, 2)
    clean = signs.copy()
    clean[..., -1] &= 0b00011111
    results = []
    for s in (signs, clean):
        y = np.zeros((tokens, 4), np.float32)
        kernels.products(kernels.to_words(s), a, kernels.widen(b), _tokens(13, tokens)[1], y, 0, 0, 4)
        results.append(y)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 63), (7, 64), (5, 65), (4, 200)])
@pytest.mark.parametrize(("levels", "strength"), [(1, 0.5), (1, 1.0), (3, 1.0)])
def test_feedback_in_panels_is_feedback_column_by_column(m, n, levels, strength):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(4 * n, n, generator=g) @ torch.randn(n, n, generator=g)
    inputs = Inputs.measured(torch.ones(n), x.T @ x / len(x), 0.01)
    work, sizes = torch.randn(m, n, generator=g), torch.rand(levels, m, n, generator=g)
    fast = choose_signs(work, sizes, inputs, strength).numpy()
    slow = kernels.naive_feedback_signs(work.numpy(), sizes.numpy(), inputs.upper.numpy(), strength)
    assert (fast != slow).mean() <= 0.02  # a sum near zero may round to the other side, once in a while
    assert fast.any() or m * n < 4


def test_rows_on_several_threads_are_the_rows_of_one(monkeypatch):
    signs, a, b, _ = _blocks(37, 48, 3, 2)
    args = (kernels.to_words(signs), a, kernels.widen(b), _tokens(48, 5)[1])
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        y = np.full((5, 37), np.nan, np.float32)
        by_rows(kernels.products, 37, 1.0, *args, y, 0)
        results.append(y)
    np.testing.assert_array_equal(*results)
