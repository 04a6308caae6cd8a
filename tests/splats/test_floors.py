"""The floors keep what they say, and no more bytes than they may."""

import numpy as np
import pytest

from holdall.errors import BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.splats.made import solids
from holdall.splats.none import Nothing
from holdall.splats.opacity import Opacity
from holdall.splats.quality import psnr, same, ssim
from holdall.splats.random import Random


def test_nothing_is_exact_and_refuses_less_than_everything():
    scene = solids(63, degree=3)
    packed = Nothing().encode(scene)
    assert same(Nothing().decode(Packed.from_bytes(packed.to_bytes())), scene)
    with pytest.raises(BudgetError) as fault:
        Nothing().encode(scene, "90%")
    assert fault.value.least == packed.nbytes


def test_random_keeps_gaussians_of_the_scene_another_lot_for_another_seed():
    scene = solids(500, degree=1)
    kept = Random().decode(Random().encode(scene, "20%"))
    half = scene.means.astype(np.float16).astype(np.float32)
    assert 100 < len(kept) < 250
    assert all((half == mean).all(1).any() for mean in kept.means)
    other = Random(seed=1).decode(Random(seed=1).encode(scene, "20%"))
    assert not np.array_equal(kept.means, other.means)


def test_opacity_keeps_exactly_the_most_opaque():
    scene = solids(500, degree=1)
    kept = Opacity().decode(Opacity().encode(scene, "20%"))
    best = np.sort(scene.opacities)[-len(kept) :].astype(np.float16)
    assert np.array_equal(np.sort(kept.opacities), best.astype(np.float32))


@pytest.mark.parametrize("method", [Random(), Opacity()])
def test_a_budget_is_filled_to_within_one_gaussian(method):
    scene = solids(500, degree=1)
    packed = method.encode(scene, "30%")
    each = 2 * scene.elements // len(scene)
    assert 0 <= scene.nbytes * 3 // 10 - packed.nbytes <= each + 8


@pytest.mark.parametrize("method", [Nothing(), Random()])
def test_columns_that_do_not_fit_each_other_are_refused(method):
    packed = method.encode(solids(20, degree=1))
    for name, array in packed.arrays.items():
        for wrong in (array[:-1], array.astype(np.float64), array.reshape(-1)[: len(array) // 2]):
            with pytest.raises(CorruptArtefact):
                method.decode(Packed({**packed.arrays, name: wrong}, packed.meta))
        left = {k: v for k, v in packed.arrays.items() if k != name}
        with pytest.raises(CorruptArtefact):
            method.decode(Packed(left, packed.meta))


def test_measures_of_pictures_say_what_is_known_of_them():
    rng = np.random.default_rng(0)
    a = rng.random((30, 40, 3))
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, 1 - a) < 0 < ssim(a, np.clip(a + 0.05 * rng.standard_normal(a.shape), 0, 1)) < 1
    assert psnr(1e-4) == pytest.approx(40)
