"""Pooling that is chosen after training, beside the card's formulas written out, and on a small network."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from holdall.errors import BadInput
from holdall.vectors import arcface
from holdall.vectors.pooling import GeMPlus, RegionalGeM, ReLUP, ScaleGeM, at_scales


def maps(*shape, seed=0):
    """Behind a ReLU: half of it zeros, one channel all zeros."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()
    x[:, 0] = 0
    return x


def naive_regional(x, window, p, share):
    edge, x = window // 2, x.double().numpy()
    found = np.empty_like(x)
    high, wide = x.shape[2:]

    def mirror(i, size):
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    for (b, c, i, j), own in np.ndenumerate(x):
        around = [
            max(x[b, c, mirror(i + di, high), mirror(j + dj, wide)], 1e-8) ** p
            for di in range(-edge, edge + 1)
            for dj in range(-edge, edge + 1)
        ]
        found[b, c, i, j] = share * np.mean(around) ** (1 / p) + (1 - share) * own
    return found


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("window", "p", "share"), [(5, 2.5, 0.5), (3, 1.0, 1.0), (1, 4.0, 0.3), (5, 8.0, 0.5)]
)
def test_regional_means_are_those_of_windows_with_mirrored_edges(window, p, share):
    x = maps(2, 3, 5, 7)
    found = RegionalGeM(window, p, share)(x)
    np.testing.assert_allclose(found, naive_regional(x, window, p, share), rtol=1e-5, atol=1e-7)
    lone = torch.zeros(1, 1, 9, 9)
    lone[0, 0, 4, 4] = 1
    told = RegionalGeM()(lone)[0, 0]
    assert told[2, 2] == pytest.approx(0.5 * 25 ** (-1 / 2.5), rel=1e-4) and told[1, 4] < 1e-6
    assert told[4, 4] == pytest.approx(0.5 + 0.5 * 25 ** (-1 / 2.5), rel=1e-4)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.6, 8.0, 30.0])
def test_generalised_means_go_from_the_mean_to_the_greatest(p):
    x = maps(3, 5, 7, 3)
    wide = np.clip(x.double().numpy(), 1e-8, None)
    wanted = unit(np.mean(wide**p, axis=(2, 3)) ** (1 / p))
    np.testing.assert_allclose(GeMPlus(p)(x), wanted, rtol=1e-5, atol=1e-7)
    if p == 30:
        np.testing.assert_allclose(GeMPlus(p)(x), unit(wide.max((2, 3))), atol=0.03)


def test_scales_are_joined_by_the_greatest_or_by_a_mean_near_it():
    x = (
        torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 20, 0.1])[:, None, None]
    )
    v = unit(x.double().numpy())
    np.testing.assert_allclose(ScaleGeM()(x), unit(v.max(0)), atol=1e-6)
    least = v.min((0, 2))[:, None]
    np.testing.assert_allclose(
        ScaleGeM(10.0)(x), unit((np.mean((v - least) ** 10, 0)) ** 0.1 + least), atol=1e-6
    )
    np.testing.assert_allclose(ScaleGeM(1.0)(x), unit(v.mean(0)), atol=1e-6)
    assert torch.equal(
        ScaleGeM(10.0)(x)[:2], ScaleGeM(10.0)(x[:, :2])
    )  # an image is none of its neighbours' business


def test_relup_lets_through_what_is_above_alpha():
    x = torch.tensor([-1.0, 0.0, 0.013, 0.014, 0.5])
    assert torch.equal(ReLUP()(x), torch.tensor([0.014, 0.014, 0.014, 0.014, 0.5]))


@pytest.mark.parametrize(
    "module",
    [ReLUP(), RegionalGeM(), RegionalGeM(p=8.0), GeMPlus(), GeMPlus(30.0), ScaleGeM(), ScaleGeM(10.0)],
    ids=str,
)
def test_slopes_are_finite_where_maps_are_zero_and_those_of_differences(module):
    shape = (3, 2, 6) if isinstance(module, ScaleGeM) else (2, 3, 5, 5)
    x = maps(*shape).requires_grad_()
    module(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    inside = (torch.rand(*shape, generator=torch.Generator().manual_seed(1)) + 0.1).double().requires_grad_()
    assert torch.autograd.gradcheck(module, (inside,), atol=1e-4)
    half = maps(*shape).half()
    assert module(half).dtype == torch.float16 and torch.isfinite(module(half)).all()


def test_what_they_cannot_pool_is_named():
    for wrong in (
        lambda: RegionalGeM(4), lambda: GeMPlus(0), lambda: GeMPlus(float("nan")), lambda: ScaleGeM(31),
        lambda: RegionalGeM()(torch.ones(1, 1, 2, 9)), lambda: ScaleGeM()(torch.ones(3, 4)),
        lambda: ScaleGeM()(torch.ones(0, 2, 4)),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            wrong()


def test_the_best_p_is_not_the_one_that_the_network_was_trained_with():
    """The card's (4) on digits that two networks never saw: less than 3 is better here, and 4.6 is not."""
    images, labels = arcface.digits()
    seen = labels < 5
    found = dict.fromkeys((1.0, 2.0, arcface.TRAINED_P, 4.6, 8.0), 0.0)
    for seed in (0, 1):
        net = arcface.trained(images[seen], torch.tensor(labels[seen]), seed=seed)
        features = net.body(images[~seen])
        for p in found:
            vectors = functional.normalize(net.white(GeMPlus(p)(features)), dim=-1)
            found[p] += arcface.precision(vectors, labels[~seen]) / 2
    assert max(found, key=found.get) != arcface.TRAINED_P, found
    assert found[2.0] > found[arcface.TRAINED_P] > found[4.6] > 0.4, found  # by chance .2
    net.refine = RegionalGeM()
    several = at_scales(net, images[~seen][:10])
    assert several.shape == (3, 10, 32) and torch.allclose(several[1], net(images[~seen][:10]), atol=1e-5)
    assert not torch.allclose(several[0], several[2], atol=0.05)


def test_the_room_does_not_load_torch_for_it():
    code = "import sys, holdall.vectors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
