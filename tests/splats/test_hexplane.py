"""Planes and layers move Gaussians: as torch does it, and only what fits together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from holdall.errors import BadInput
from holdall.splats.hexplane import HEADS, looked_up
from holdall.splats.hexplane_learn import Hexes, framed, fresh
from holdall.splats.made import solids
from holdall.splats.quality_moving import waving
from holdall.splats.scene import NAMES


def test_numpy_and_torch_move_alike_at_odd_sizes():
    x = waving(solids(63, degree=1), 3, ((7, 5, 9, 3), (11, 1, 13, 2)), HEADS, size=1.0)
    x = replace(x, clock=(-0.4, 1.0))
    columns = [torch.from_numpy(a) for a in x.still.arrays().values()]
    for t in (0.0, 0.37, 1.0):
        moved = Hexes(x).moved(columns, t)
        shown = x.at(t).arrays()
        for name, other in zip(NAMES, moved, strict=True):
            assert np.abs(shown[name] - other.detach().numpy()).max() < 2e-4, name
        assert np.abs(shown["means"] - x.still.means).max() > 0.05


def test_features_are_products_of_what_lies_between_points():
    plane = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    found = looked_up(plane, np.array([-1, 0, 0.5, 3.0]), np.array([-1, 0, 1, -9.0]))
    assert np.allclose(found[:, 0], [0, 2.5, 4.5, 2])
    x = waving(solids(20, degree=0), 2, ((4, 4, 4, 3),))
    at = x.placed(0.3)
    pairs = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    wanted = np.prod(
        [looked_up(p, at[:, a], at[:, b]) for (a, b), p in zip(pairs, x.planes[0], strict=True)], 0
    )
    assert np.allclose(x.features(0.3), wanted, atol=1e-6)


def test_main_axes_waste_less_room_than_the_worlds():
    rng = np.random.default_rng(0)
    long = rng.uniform(-1, 1, (400, 3)) * [3, 0.3, 0.1]
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    points = long @ turn.T + 5
    own, worlds = (np.abs(framed(points, turned)[12:]).prod() for turned in (True, False))
    assert own < worlds / 4
    x = fresh(solids(50, degree=0), features=1, base=3, times=2)
    x = replace(x, still=replace(solids(400, degree=0), means=points), frame=framed(points))
    assert np.abs(x.placed(0.0)[:, :3]).max() <= 1


def test_planes_and_layers_that_do_not_fit_are_refused():
    x = waving(solids(20, degree=0), 2, ((4, 5, 6, 3),))
    six = x.planes[0]
    with pytest.raises(BadInput, match="six of each scale"):
        replace(x, planes=(six[:5],))
    with pytest.raises(BadInput, match="same points along an axis"):
        replace(x, planes=((six[0][:, :, :3], *six[1:]),))
    with pytest.raises(BadInput, match="layer means/0"):
        replace(x, layers={**x.layers, "means/0/w": np.zeros((3, 5))})
    with pytest.raises(BadInput, match="trunk"):
        replace(x, layers={k: v for k, v in x.layers.items() if not k.startswith("trunk")})
    with pytest.raises(BadInput, match="NaN"):
        replace(x, frame=np.full(15, np.nan)).checked()
