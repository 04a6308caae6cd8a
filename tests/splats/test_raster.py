"""The rasteriser against its slow truth in float64, at odd sizes and on awkward scenes."""

from typing import Any

import numpy as np
import pytest
import torch

from holdall.errors import BadInput
from holdall.splats.camera import Camera, around, looking
from holdall.splats.made import solids
from holdall.splats.naive_raster import naive_render, naive_shares
from holdall.splats.quality import specimens
from holdall.splats.raster import render, significance
from holdall.splats.scene import NAMES, Scene
from holdall.splats.significance import KINDS, contributions, lightgaussian, volume_term

GROUND = (1.0, 0.5, 0.2)


def columns(scene: Scene) -> list[torch.Tensor]:
    return [torch.tensor(getattr(scene, name), dtype=torch.float64) for name in NAMES]


def truth(scene: Scene, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    colour, alpha = naive_render(*columns(scene), camera, torch.tensor(GROUND, dtype=torch.float64))
    return colour.numpy(), alpha.numpy()


def one(**changes: Any) -> Scene:
    """One Gaussian at the origin; columns can be changed."""
    rows = {
        "means": [[0, 0, 0]], "scales": [[-1.5, -2, -2.5]], "quats": [[1, 0.3, 0.2, 0.1]], "opacities": [2.0],
        "sh": [[[1.0, 0.2, -0.5]]],
    }  # fmt: skip
    return Scene(**{name: np.array(changes.get(name, row), np.float32) for name, row in rows.items()})


AHEAD = looking((0, 0, -3), (0, 0, 0), width=37, height=23)
AWKWARD = {
    "one": one(),
    "behind": one(means=[[0, 0, -6]]),
    "too near": one(means=[[0, 0, -2.995]]),
    "near": one(means=[[0.01, 0, -2.9]], scales=[[-4, -4, -4]]),
    "beside": one(means=[[3.5, 0, -1]], scales=[[0, 0, 0]]),
    "huge": one(scales=[[6, 5, 4]]),
    "tiny": one(scales=[[-14, -14, -14]]),
    "needle": one(scales=[[2, -9, -9]]),
    "plate": one(scales=[[1, 1, -20]], quats=[[3, 1, 1, 2]]),
    "opaque": one(opacities=[40.0]),
    "hardly there": one(opacities=[-5.5]),
    "not there": one(opacities=[-6.0]),
    "dark": one(sh=[[[-9, -9, 9]]]),
    "alike": solids(9, degree=1).take(np.zeros(30, int)),
}


@pytest.mark.parametrize("degree", range(4))
def test_pictures_are_the_slow_truths(degree: int) -> None:
    scene = solids(300, degree=degree, seed=degree)
    views = [*around(scene, 2, width=37, height=23)]
    views += [looking((0.3, 0.5, 0.2), (1, 0, 0), width=50, height=17, degrees=80)]  # from within
    for camera in views:
        drawn, (colour, alpha) = render(scene, camera, GROUND), truth(scene, camera)
        assert alpha.mean() > 0.15
        np.testing.assert_allclose(drawn.colour, colour, atol=2e-6)
        np.testing.assert_allclose(drawn.alpha, alpha, atol=2e-6)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_gaussians(name: str) -> None:
    scene = AWKWARD[name]
    colour, alpha = truth(scene, AHEAD)
    drawn = render(scene, AHEAD, GROUND)
    np.testing.assert_allclose(drawn.colour, colour, atol=1e-5)
    np.testing.assert_allclose(drawn.alpha, alpha, atol=1e-5)
    empty = name in ("behind", "too near", "not there")
    assert bool((drawn.alpha == 0).all()) == empty


def test_light_that_is_used_up_hides_what_is_behind() -> None:
    wall = solids(9, degree=0).take([0] * 5)
    means = np.zeros((5, 3), np.float32)
    means[:, 2] = np.arange(5)
    for logit, shown in ((9.0, 1), (3.9, 2), (1.5, 5)):
        scene = Scene(means, np.full((5, 3), 4.0), wall.quats, np.full(5, logit), wall.sh)
        seen = significance(scene, [AHEAD], "hits")
        assert (seen == [37 * 23] * shown + [0] * (5 - shown)).all()
        assert (seen == counted(scene, AHEAD)[:, 1]).all()


def counted(scene: Scene, camera: Camera) -> np.ndarray:
    shares, _, _, drawn = naive_shares(*columns(scene), camera)
    found = np.zeros((len(scene), 3))
    for i, share in zip(drawn.numpy(), shares.numpy().reshape(-1, len(drawn)).T, strict=True):
        found[i] = share.sum(), (share > 0).sum(), share.max()
    return found


def test_significance_is_what_the_slow_truth_adds_up() -> None:
    scene = solids(300, degree=0)
    views = around(scene, 3, width=37, height=23)
    wanted = [counted(scene, camera) for camera in views]
    found = contributions(scene, views)
    np.testing.assert_allclose(found[:, 0], sum(w[:, 0] for w in wanted), atol=1e-5)
    assert np.abs(found[:, 1] - sum(w[:, 1] for w in wanted)).max() <= 1
    np.testing.assert_allclose(found[:, 2], np.max([w[:, 2] for w in wanted], 0), atol=1e-6)
    for k, kind in enumerate(KINDS):
        assert (significance(scene, views, kind) == found[:, k]).all()
    light = sum(float(render(scene, camera).alpha.astype(np.float64).sum()) for camera in views)
    assert abs(found[:, 0].sum() / light - 1) < 1e-6  # nothing is lost, nothing counted twice


def test_the_same_bits_on_one_thread_and_two() -> None:
    scene = solids(500, degree=1)
    camera = around(scene, 1, width=61, height=47)[0]
    first = render(scene, camera, threads=1)
    for _ in range(3):
        again = render(scene, camera, threads=2)
        assert (
            again.colour.tobytes() == first.colour.tobytes()
            and again.alpha.tobytes() == first.alpha.tobytes()
        )
    sums = [contributions(scene, [camera], threads=n).tobytes() for n in (1, 2, 2)]
    assert len(set(sums)) == 1


def test_volumes_count_up_to_the_ninetieth_percentile() -> None:
    scene = solids(200, degree=0)
    term = volume_term(scene)
    volumes = np.exp(scene.scales.astype(np.float64).sum(1))
    assert (term == 1).sum() == 20
    np.testing.assert_allclose(term, np.minimum(volumes / np.sort(volumes)[-20], 1) ** 0.1, rtol=2e-2)
    np.testing.assert_allclose(lightgaussian(scene, np.full(200, 3.0), beta=0), 3)


@pytest.mark.parametrize("scene", specimens().values(), ids=specimens())
def test_every_specimen_is_drawn(scene: Scene) -> None:
    for camera in around(scene, 2, width=37, height=23):
        drawn, (colour, alpha) = render(scene, camera, GROUND), truth(scene, camera)
        np.testing.assert_allclose(drawn.alpha, alpha, atol=1e-5)
        np.testing.assert_allclose(drawn.colour, colour, atol=1e-5 * max(1, abs(colour).max()))


def test_mistakes_are_told() -> None:
    with pytest.raises(BadInput, match="background"):
        render(one(), AHEAD, (1, 2))
    with pytest.raises(BadInput, match="cameras"):
        significance(one(), [])
    with pytest.raises(BadInput, match="kind"):
        significance(one(), [AHEAD], "volume")
