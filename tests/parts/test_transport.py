"""Equal shares: Sinkhorn beside its logarithms and POT, and how even what is taken is."""

import pytest
import torch

from holdall.errors import BadInput
from holdall.parts.transport import (
    capped,
    centred,
    counts,
    entropy,
    imbalance,
    naive_placed,
    naive_shares,
    shares,
)


def skewed(points=1024, columns=16):
    """Points and columns drawn among them, most of both in one corner."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(points, 4, generator=draw).abs() ** 1.5
    return torch.cdist(x, x[torch.randperm(points, generator=draw)[:columns]]).square()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (63, 7), (2, 40, 16), (2, 3, 33, 5)])
@pytest.mark.parametrize("smoothing", [0.003, 0.01, 0.3])
def test_it_is_what_logarithms_give(shape, smoothing):
    costs = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        shares(costs, smoothing, 20), naive_shares(costs, smoothing, 20), rtol=1e-8, atol=1e-12
    )


def test_rows_are_whole_and_columns_equal():
    found = shares(skewed(), 0.05, 300)
    torch.testing.assert_close(found.sum(-1), torch.ones(1024, dtype=torch.float64))
    torch.testing.assert_close(found.sum(-2), torch.full((16,), 64.0, dtype=torch.float64), rtol=0.01, atol=0)


def test_pot_gives_the_same():
    ot = pytest.importorskip("ot")
    costs = skewed(256, 8)
    even = torch.full((256,), 1 / 256).double(), torch.full((8,), 1 / 8).double()
    plan = ot.sinkhorn(*even, centred(costs), 0.05, numItermax=2000, stopThr=1e-12)
    torch.testing.assert_close(shares(costs, 0.05, 2000), plan * 256, rtol=1e-5, atol=1e-8)


def test_a_small_smoothing_balances_what_is_taken_and_a_limit_finishes_it():
    """The card's own check: the smoothing decides. Nearest, .05, .003; then no column above its share."""
    costs = skewed()
    nearest = float(imbalance(costs.argmin(-1), 16))
    soft, sharp = (float(imbalance(shares(costs, s).argmax(-1), 16)) for s in (0.05, 0.003))
    assert nearest > soft + 0.1 > sharp + 0.2, (nearest, soft, sharp)
    codes = capped(shares(costs), 64)
    assert float(imbalance(codes, 16)) == 0 and float(entropy(codes, 16)) == pytest.approx(4)


def test_a_limit_is_kept_and_nobody_would_rather_change_places():
    draw = torch.Generator().manual_seed(2)
    wish = torch.rand(3, 50, 6, generator=draw) ** 4
    codes = capped(wish, 9)
    assert (counts(codes, 6) <= 9).all()
    for table, taken in zip(wish, codes, strict=True):
        assert torch.equal(taken, naive_placed(table, 9))
        own = table[torch.arange(50), taken]
        for k in range(6):
            envy = table[:, k] > own  # who would rather have k: it is full of points that want it more
            if envy.any():
                assert (taken == k).sum() == 9 and table[taken == k, k].min() >= table[envy, k].max()


def test_rounds_end_early_where_columns_are_near_enough():
    costs = skewed()
    few = shares(costs, 0.3, 1000, slack=0.01)
    assert (few.sum(-2) / 64 - 1).abs().max() < 0.02
    assert not torch.equal(few, shares(costs, 0.3, 1000))


def test_extremes_are_no_trouble():
    assert shares(torch.zeros(0, 4)).shape == (0, 4)
    same = shares(torch.full((12, 3), 7.0))
    torch.testing.assert_close(same, torch.full((12, 3), 1 / 3, dtype=torch.float64))
    far = skewed()
    far[0] += 1e6
    assert torch.isfinite(shares(far)).all() and torch.isfinite(shares(far, 1e-4, 5)).all()
    for wrong in (
        lambda: shares(far, 0.0), lambda: shares(far / 0), lambda: shares(far[0]), lambda: capped(far, 1),
        lambda: shares(far, rounds=0),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            wrong()
