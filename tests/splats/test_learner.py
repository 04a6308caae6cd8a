"""Gaussians learn a picture, keep their moments when others go, and come where the picture wants more."""

from dataclasses import replace

import numpy as np
import torch

from holdall.splats.camera import around
from holdall.splats.learner import Learner, beginning
from holdall.splats.likeness import psnr, ssim
from holdall.splats.made import solids
from holdall.splats.raster import render

WHITE = (1.0, 1.0, 1.0)


def taught(scene, count=6, size=48):
    cameras = around(scene, count, width=size, height=size)
    return [(c, render(scene, c, WHITE).colour) for c in cameras]


def trained(learner, views, steps):
    for i in range(steps):
        learner.step(learner.loss(*views[i % len(views)]))
    return learner


def likeness(scene, views):
    return np.mean([psnr(render(scene, c, WHITE).colour, wanted) for c, wanted in views])


def test_a_spoilt_scene_is_recovered_and_again_to_the_same_bits():
    truth = solids(300, degree=1)
    views, held = taught(truth)[::2], taught(truth)[1::2]
    draw = np.random.default_rng(0)
    dull = truth.sh.copy()
    dull[:, 0] *= 0.5
    faint = truth.opacities - 1 + 0.5 * draw.standard_normal(len(truth)).astype(np.float32)
    spoilt, rates = replace(truth, sh=dull, opacities=faint), {"base": 0.02, "opacities": 0.1}
    found = [trained(Learner(spoilt, rates=rates), views, 30).scene() for _ in range(2)]
    assert likeness(found[0], held) > likeness(spoilt, held) + 2
    assert all(np.array_equal(a, b) for a, b in zip(*(f.arrays().values() for f in found), strict=True))


def test_a_rate_of_zero_leaves_its_numbers_alone():
    scene = solids(100, degree=1)
    learner = trained(Learner(scene, rates={"means": 0, "rest": 0}), taught(solids(100, degree=1, seed=5)), 3)
    after = learner.scene()
    assert np.array_equal(after.means, scene.means) and np.array_equal(after.sh[:, 1:], scene.sh[:, 1:])
    assert not np.array_equal(after.sh[:, :1], scene.sh[:, :1])


def test_who_stays_learns_on_as_if_nobody_had_gone():
    """Gaussians far behind the cameras never show: without them each step is what it would have been."""
    scene = solids(120, degree=0)
    shown, views = np.arange(120) < 100, taught(scene.take(np.arange(100)), 3)
    means = scene.means.copy()
    means[100:] = 1e6
    both = Learner(replace(scene, means=means), rates={"means": 0})
    alone = Learner(scene.take(shown), rates={"means": 0})
    for learner in (both, alone):
        trained(learner, views, 4)
    both.prune(torch.from_numpy(shown))
    assert len(both) == 100 == len(both.moved)
    for learner in (both, alone):
        trained(learner, views, 4)
    for a, b in zip(both.scene().arrays().values(), alone.scene().arrays().values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_small_ones_are_doubled_large_ones_split_and_faint_ones_go():
    scene = solids(60, degree=0)
    scales, opacities = np.full((60, 3), -9.0), np.full(60, 2.0)
    scales[:10], opacities[20:25] = -1.0, -9.0
    learner = Learner(replace(scene, scales=scales, opacities=opacities))
    learner.seen += 1
    learner.moved[:15] = 1.0  # ten large ones, five small ones
    learner.grow(above=0.5)
    assert len(learner) == 60 - 10 + 20 + 5 - 5
    after = learner.scene()
    assert (after.scales[:, 0] > -2).sum() == 20 and np.isclose(after.scales.max(), -1 - np.log(1.6))
    learner.moved[:], learner.seen[:] = 1.0, 1.0
    learner.grow(above=0.5, most=72)
    assert len(learner) <= 72


def test_a_beginning_from_points_has_their_colours_and_learns():
    truth = solids(200, degree=0)
    views = taught(truth)
    start = beginning(truth.means, 0.5 + 0.28209479 * truth.sh[:, 0])
    assert np.allclose(start.sh[:, 0], truth.sh[:, 0], atol=1e-5) and (start.scales[:, 0] < 0).all()
    assert likeness(trained(Learner(start), views, 40).scene(), views) > likeness(start, views) + 2


def test_likeness_is_one_for_equals_and_falls_with_structure():
    a = torch.from_numpy(taught(solids(300))[0][1])
    assert float(ssim(a, a)) == 1 and psnr(a, a) >= 120
    assert float(ssim(a, a + 0.02)) > float(ssim(a, a.flip(0))) + 0.1
