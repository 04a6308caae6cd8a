"""The floors keep what they say, no more."""

from __future__ import annotations

import pytest
import torch

from holdall import BadInput, BudgetError
from holdall.kv import Entries, Everything, Random, Recent


def entries(b: int = 2, h: int = 3, t: int = 100, d: int = 8) -> Entries:
    torch.manual_seed(1)
    keys, values = torch.randn(2, b, h, t, d).unbind(0)
    return Entries(keys=keys, values=values)


def test_none_keeps_all_or_refuses() -> None:
    x = entries()
    for budget in (None, "100%", x.nbytes):
        y = Everything().select(x, budget)
        assert torch.equal(y.keys, x.keys) and torch.equal(y.values, x.values)
    with pytest.raises(BudgetError) as caught:
        Everything().select(x, "99%")
    assert caught.value.least == x.nbytes


def test_random_draws_differ_by_head_layer_and_seed_but_not_by_row() -> None:
    x = entries()
    y = Random().select(x, "50%").where()
    assert torch.equal(y[0], y[1]) and not torch.equal(y[0, 0], y[0, 1])
    assert torch.equal(y, Random().select(x, "50%").where())
    assert not torch.equal(y, Random(seed=7).select(x, "50%").where())
    assert not torch.equal(y, Random().select(x.but(layer=1), "50%").where())


def test_random_drops_padding_first() -> None:
    valid = torch.ones(2, 3, 100, dtype=torch.bool)
    valid[1, :, :60] = False
    assert Random().select(entries().but(valid=valid), "40%").where()[1].min() >= 60


def test_recent_keeps_sinks_and_the_latest_real_ones() -> None:
    valid = torch.ones(2, 3, 100, dtype=torch.bool)
    valid[1, :, :30] = False
    x = entries().but(valid=valid)
    y = Recent().select(x, 10 * x.each).where()
    assert y[0, 2].tolist() == [0, 1, 2, 3, 94, 95, 96, 97, 98, 99]
    assert y[1, 0].tolist() == [30, 31, 32, 33, 94, 95, 96, 97, 98, 99]
    with pytest.raises(BudgetError, match="4 sinks"):
        Recent().select(x, 4 * x.each)
    with pytest.raises(BadInput):
        Recent(sinks=-1)


def test_entries_must_be_shaped_right() -> None:
    with pytest.raises(BadInput, match="alike"):
        Entries(keys=torch.ones(1, 2, 3, 4), values=torch.ones(1, 2, 4, 4))
    wide = Entries(keys=torch.ones(1, 2, 30, 4), values=torch.ones(1, 2, 30, 6))
    assert Recent().select(wide, "50%").values.shape == (1, 2, 13, 6)
