"""none, random and round to nearest: exact, at equal bytes, and the classic grid."""

import numpy as np
import pytest
import torch

from holdall import BadInput, BudgetError
from holdall.weights import Model, Nothing, Random, RoundToNearest, quality


def _model():
    g = torch.Generator().manual_seed(0)
    return Model(
        {"w": torch.randn(70, 130, generator=g), "b": torch.randn(9, generator=g), "n": torch.arange(4)}
    )


def test_none_is_exact_in_every_type_and_refuses_to_shrink():
    for name, x in quality.specimens().items():
        assert quality.same(x, Nothing().decode(Nothing().encode(x))), name
    with pytest.raises(BudgetError) as caught:
        Nothing().encode(_model(), "90%")
    assert caught.value.least > _model().nbytes


def test_random_keeps_the_drawn_share_exactly_and_nothing_else():
    x = _model()
    packed = Random().encode(x, "30%")
    back = Random().decode(packed).state["w"]
    kept = back != 0
    torch.testing.assert_close(back[kept], x.state["w"][kept], rtol=1e-3, atol=1e-6)
    assert int(kept.sum()) == packed.meta["kept"]
    assert packed.nbytes <= 0.3 * x.nbytes
    assert not torch.equal(kept, Random(seed=1).decode(Random(seed=1).encode(x, "30%")).state["w"] != 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (5, 64), (7, 65), (2, 576)])
def test_rounding_is_at_most_half_a_step_away(bits, shape):
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(bits))
    method = RoundToNearest(bits=bits)
    back = method.decode(method.encode(Model({"w": w}))).state["w"]
    for start in range(0, shape[1], 64):
        part, got = w[:, start : start + 64], back[:, start : start + 64]
        step = (part.amax(1) - part.amin(1)) / ((1 << bits) - 1)
        slack = 2e-3 * part.abs().amax(1) + 1e-6  # scale and minimum are half precision
        assert bool(((part - got).abs().amax(1) <= step / 2 * 1.002 + slack).all())


def test_rounding_takes_bits_and_half_a_byte_pair_a_group():
    x = Model({"w": torch.randn(128, 256, generator=torch.Generator().manual_seed(0))})
    sizes = {b: RoundToNearest(bits=b, entropy=False).encode(x).nbytes for b in (2, 3, 4, 5, 6, 8)}
    assert sizes[4] - sizes[3] == sizes[3] - sizes[2] == sizes[6] - sizes[5] == 128 * 256 // 8
    assert abs(sizes[2] - 128 * 256 * 2.5 / 8) < 700  # 2 bits and 32 bits a group of 64, and the header


@pytest.mark.parametrize("group", [0, 64])
def test_entropy_coding_saves_bytes_and_changes_no_weight(group):
    x = Model({"w": torch.randn(128, 256, generator=torch.Generator().manual_seed(0))})
    fixed, coded = (RoundToNearest(bits=4, group=group, entropy=e) for e in (False, True))
    a, b = fixed.encode(x), coded.encode(x)
    assert b.nbytes < (0.89 if group == 0 else 0.96) * a.nbytes
    assert torch.equal(fixed.decode(a).state["w"], coded.decode(b).state["w"])


def test_a_budget_takes_the_widest_grid_that_fits():
    x = Model({"w": torch.randn(256, 256, generator=torch.Generator().manual_seed(0))})
    for share, bits in (("9%", 2), ("12%", 3), ("15%", 4), ("17%", 5), ("30%", 8)):
        packed = RoundToNearest().encode(x, share)
        assert packed.meta["bits"] == bits and packed.nbytes <= int(share[:-1]) / 100 * x.nbytes
    with pytest.raises(BudgetError, match="2 bits"):
        RoundToNearest().encode(x, "5%")


def test_bad_grids_and_bad_weights_are_refused():
    with pytest.raises(BadInput):
        RoundToNearest(bits=7)
    with pytest.raises(BadInput, match="tensor w"):
        RoundToNearest().encode(Model({"w": torch.full((4, 4), float("nan"))}))
    assert np.isfinite(quality.loss(_model(), RoundToNearest().decode(RoundToNearest().encode(_model()))))
