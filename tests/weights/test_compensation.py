"""Error compensation against its slow truth, and what it is for: outputs change less than by rounding alone."""

import numpy as np
import pytest
import torch

from holdall.errors import BadInput
from holdall.weights.clipping import clipped, laid, spans, zeros
from holdall.weights.compensation import Grid, compensated, factor, naive_compensated, output_error


def drawn(rows, columns, seed=0, tokens=400):
    """Weights, and second moments of inputs that go together, one channel of them far larger than the others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g) @ (
        torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=g)
    )
    x[:, 0] *= 8
    return torch.randn(rows, columns, generator=g).numpy(), x.T @ x / tokens


@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(1, 1, 1), (3, 63, 63), (5, 64, 16), (7, 130, 64), (2, 200, 48)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_does_what_the_loop_over_numbers_does(rows, columns, group, bits):
    w, gram = drawn(rows, columns)
    grid, upper = laid(*spans(w, group), bits, group), factor(gram, 0.05)
    fast, slow = compensated(w, grid, upper), naive_compensated(w, grid, upper.numpy())
    assert fast.dtype == np.uint8 and np.mean(fast != slow) < 0.01  # what lies halfway may go the other way
    a, b = (output_error(grid.values(c) - w, gram).sum() for c in (fast, slow))
    assert a == pytest.approx(b, rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_change_less_than_by_rounding_alone(bits):
    w, gram = drawn(40, 128)
    grid = laid(*spans(w, 32), bits, 32)
    alone = output_error(grid.values(grid.nearest(w)) - w, gram).sum()
    together = output_error(grid.values(compensated(w, grid, factor(gram, 0.01))) - w, gram).sum()
    assert together < 0.6 * alone
    np.testing.assert_array_equal(compensated(w, grid, None), grid.nearest(w))


def test_what_a_column_spoils_is_foretold_by_the_factor():
    """Without clipping, errors are even within a step: tr(E H E^T) = sum of step^2 / 12 / U[j, j]^2."""
    w, gram = drawn(300, 96)
    upper = factor(gram, 1e-6)
    step = np.full((300, 1), 0.1, np.float32)
    grid = Grid(step, -128 * step, 255, 96)
    got = output_error(grid.values(compensated(w, grid, upper)) - w, gram).mean()
    told = float((0.1**2 / 12 / upper.diagonal().square()).sum())
    assert got == pytest.approx(told, rel=0.05)


def test_rows_do_not_know_of_each_other():
    w, gram = drawn(9, 70)
    grid, upper = laid(*spans(w, 35), 3, 35), factor(gram, 0.01)
    some = np.array([7, 0, 4])
    np.testing.assert_array_equal(
        compensated(w, grid, upper)[some], compensated(w[some], grid.of_rows(some), upper)
    )


def test_second_moments_of_little_data_are_damped_until_they_have_a_factor():
    x = torch.zeros(2, 40)
    x[:, :3] = 1e-3
    assert bool(torch.isfinite(factor(x.T @ x, 0.0)).all())
    assert bool(torch.isfinite(factor(torch.zeros(5, 5), 0.01)).all())
    for wrong in (torch.zeros(2, 3), torch.full((3, 3), float("nan"))):
        with pytest.raises(BadInput):
            factor(wrong, 0.01)
    with pytest.raises(BadInput):
        compensated(np.zeros((2, 4), np.float32), laid(*spans(np.ones((2, 4)), 4), 4, 4), torch.eye(3))


def test_clipping_serves_the_outputs_and_never_a_row_worse_than_it_was():
    w, gram = drawn(60, 128)
    w[::7, 5] = 9.0
    plain, cut = (clipped(w, 3, 32, gram, clip) for clip in (False, True))
    a, b = (output_error(g.values(g.nearest(w)) - w, gram) for g in (plain, cut))
    assert bool((b <= a * (1 + 1e-6)).all()) and b.sum() < 0.95 * a.sum()
    assert bool((cut.step <= plain.step).all()) and bool((cut.step >= 0.79 * plain.step).all())


@pytest.mark.parametrize("sign", [1, -1])
def test_groups_on_one_side_of_zero_are_held(sign):
    w = sign * (5 + np.random.default_rng(0).random((4, 32)))
    grid = laid(*spans(w, 16), 4, 16)
    assert np.abs(grid.values(grid.nearest(w)) - w).max() <= grid.step.max() / 2 * 1.01
    assert set(np.unique(zeros(grid))) == ({0.0} if sign > 0 else {15.0})
