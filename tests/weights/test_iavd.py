"""Iterative absolute value decomposition on plain matrices: the properties that no stub has."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from holdall.errors import BadInput
from holdall.weights.fitting import Inputs
from holdall.weights.iavd import (
    Block,
    block_bytes,
    decompose,
    factors,
    fitting_rank,
    naive_factors,
    plain_svd,
)


def _normal(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def _errors(weight, levels, rank, inputs=None, **knobs):
    """Squared error left after each block, in outputs, over the output's own size."""
    inputs = inputs or Inputs.unknown(weight.shape[1])
    whole = inputs.energy(weight).sum()
    return [
        float(inputs.energy(r).sum() / whole) for _, r in decompose(weight, levels, rank, inputs, **knobs)
    ]


def test_gaussian_energy_left_is_the_cards():
    """512 x 512 Gaussian, k = 1: 0.36, 0.13, 0.058, 0.033 after one to four blocks."""
    left = _errors(_normal(512, 512), 4, 1)
    np.testing.assert_allclose(left, [0.36, 0.13, 0.058, 0.033], rtol=0.05)


def test_blocks_add_up_to_the_weight_less_the_residual_with_the_rounded_factors():
    weight = _normal(70, 45) * 0.02
    total = torch.zeros_like(weight)
    for block, residual in decompose(weight, 3, 2, Inputs.unknown(45)):
        again = Block.from_bytes(block.to_bytes(), 70, 45, 2)
        assert again.to_bytes().tobytes() == block.to_bytes().tobytes()
        assert len(block.to_bytes()) == block_bytes(70, 45, 2) == 70 * 6 + 2 * 2 * (70 + 45)
        total += again.dense()
        torch.testing.assert_close(weight - total, residual, rtol=0, atol=1e-7)


def test_signs_are_what_makes_it_work():
    """Plain SVD in the same bytes keeps almost nothing of a Gaussian matrix (the card's ablation)."""
    weight = _normal(256, 256)
    ours = _errors(weight, 2, 4)[-1]
    other = weight - plain_svd(weight, 2 * block_bytes(256, 256, 4), Inputs.unknown(256))
    assert ours < 0.14 < 0.7 < float(other.square().sum() / weight.square().sum())


def test_magnitudes_need_the_low_rank():
    """Where rows and columns have sizes of their own, one constant magnitude would not do."""
    g = torch.Generator().manual_seed(1)
    weight = (
        _normal(96, 128)
        * torch.exp(torch.randn(96, 1, generator=g))
        * torch.exp(torch.randn(128, generator=g))
    )
    one = _errors(weight, 1, 1)[0]
    constant = weight - torch.where(weight < 0, -1.0, 1.0) * weight.abs().mean()
    assert one < 0.5 < 0.6 < float(constant.square().sum() / weight.square().sum())


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 63, 2), (63, 3, 3), (200, 90, 4), (90, 200, 16)])
def test_subspace_iteration_is_the_truncated_svd(m, n, k):
    magnitude = _normal(m, n).abs()
    fast, slow = (a @ b for a, b in (factors(magnitude, k), naive_factors(magnitude, k)))
    whole = float(magnitude.square().sum())
    best, ours = (whole - float((magnitude - x).square().sum()) for x in (slow, fast))
    assert ours >= 0.99 * best


def test_scaling_protects_the_columns_with_large_inputs():
    """At rank 1 the magnitudes fit either all columns alike or those whose inputs are large."""
    g = torch.Generator().manual_seed(3)
    weight = _normal(128, 128) * (1 + 3 * torch.rand(128, 128, generator=g) * torch.rand(128, 1, generator=g))
    scale = torch.exp(2 * torch.randn(128, generator=g))
    scaled = _errors(weight, 2, 2, Inputs(scale))[-1]
    blind = 0.0
    for _, residual in decompose(weight, 2, 2, Inputs.unknown(128)):
        blind = float(Inputs(scale).energy(residual).sum() / Inputs(scale).energy(weight).sum())
    assert scaled < blind


def test_feedback_and_refit_lower_the_error_of_correlated_outputs():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, generator=g) @ torch.randn(12, 96, generator=g) + 0.3 * torch.randn(
        2000, 96, generator=g
    )
    inputs = Inputs.measured(x.norm(dim=0), x.T @ x / 2000, 0.05)
    weight = _normal(80, 96)
    plain = _errors(weight, 2, 2, inputs)[-1]
    fed = _errors(weight, 2, 2, inputs, feedback=1.0)[-1]
    fitted = _errors(weight, 2, 2, inputs, feedback=1.0, fit=True)[-1]
    assert fed < 0.5 * plain
    assert fitted < fed


def test_error_never_grows_with_blocks():
    left = _errors(_normal(65, 130), 16, 2)
    assert all(b <= a for a, b in pairwise(left)), left


def test_huge_and_tiny_weights_stay_finite_in_half_precision():
    for size in (1e-6, 1e6):
        weight = _normal(64, 64) * size
        *_, (block, residual) = decompose(weight, 2, 2, Inputs.unknown(64))
        assert np.isfinite(block.a).all() and np.isfinite(block.b).all()
        assert float(residual.norm() / weight.norm()) < 0.45
    with pytest.raises(BadInput, match="half precision"):
        list(decompose(_normal(8, 8) * 1e12, 1, 1, Inputs.unknown(8)))


def test_rank_costs_at_most_a_quarter_of_the_signs():
    for m, n in ((576, 576), (192, 576), (1536, 576), (4096, 4096), (4096, 576), (63, 63)):
        k = fitting_rank(m, n, 0.25)
        assert 1 <= k <= 16
        assert k == 1 or 16 * k * (m + n) <= 0.25 * m * n
    assert fitting_rank(576, 576, 0.25) == 4  # the card's advice for matrices of this size
