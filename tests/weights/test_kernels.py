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


@pytest.mark.parametrize(("m", "n", "k", "levels"), SIZES)
def test_rebuild_and_product_are_their_naive_forms(m, n, k, levels):
    signs, a, b, x = _blocks(m, n, k, levels)
    words, wide = kernels.to_words(signs), kernels.widen(b)
    out, y = np.full((m, n), np.nan, np.float32), np.full(m, np.nan, np.float32)
    kernels.rebuild(words, a, wide, out, 0, m)
    kernels.product(words, a, wide, x, y, 0, m)
    truth = kernels.naive_rebuild(signs, a, b)
    np.testing.assert_allclose(out, truth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        y, truth.astype(np.float64) @ x, rtol=1e-4, atol=1e-4 * np.abs(truth).sum(1).max()
    )


def test_stray_bits_behind_the_last_column_change_nothing():
    signs, a, b, x = _blocks(4, 13, 2, 2)
    clean = signs.copy()
    clean[..., -1] &= 0b00011111
    results = []
    for s in (signs, clean):
        y = np.zeros(4, np.float32)
        kernels.product(kernels.to_words(s), a, kernels.widen(b), x, y, 0, 4)
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
    signs, a, b, x = _blocks(37, 48, 3, 2)
    args = (kernels.to_words(signs), a, kernels.widen(b), x)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        y = np.full(37, np.nan, np.float32)
        by_rows(kernels.product, 37, 1.0, *args, y)
        results.append(y)
    np.testing.assert_array_equal(*results)
