"""Every gradient of the rasteriser against autograd through its slow truth in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from holdall.errors import BadInput
from holdall.splats.camera import Camera, around, looking
from holdall.splats.made import solids
from holdall.splats.naive_raster import naive_render
from holdall.splats.raster import render
from holdall.splats.raster_gradients import gradients
from holdall.splats.raster_torch import rasterise
from holdall.splats.scene import NAMES, Scene
from tests.splats.test_raster import AHEAD, AWKWARD, GROUND, one

ALL = (*NAMES, "background")


def weights(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(camera.width)
    shape = (camera.height, camera.width)
    return torch.randn(*shape, 3, generator=draw), torch.randn(shape, generator=draw)


def grads(drawer: Any, scene: Scene, camera: Camera, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in (*scene.arrays().values(), GROUND)]
    by_colour, by_alpha = weights(camera)
    colour, alpha = drawer(*rows[:5], camera, rows[5])[:2]
    ((colour * by_colour).sum() + (alpha * by_alpha).sum()).backward()
    return {name: row.grad.double() for name, row in zip(ALL, rows, strict=True)}


def agree(scene: Scene, camera: Camera, near: float) -> dict[str, torch.Tensor]:
    """Within `near` of a column's largest, and a millionth of the largest of all: some are sums that cancel to 0."""
    found = grads(rasterise, scene, camera, torch.float32)
    truth = grads(naive_render, scene, camera, torch.float64)
    noise = 1e-6 * max(float(g.abs().max()) for g in truth.values())
    for name, wanted in truth.items():
        off, most = (found[name] - wanted).abs().max(), wanted.abs().max()
        assert off <= near * most + noise, f"{name}: {off:.2g} of {most:.2g}"
    return found


@pytest.mark.parametrize("degree", range(4))
def test_gradients_are_the_slow_truths(degree: int) -> None:
    scene = solids(200, degree=degree, seed=degree)
    views = around(scene, 1, width=37, height=23)
    views += [looking((0.3, 0.5, 0.2), (1, 0, 0), width=50, height=17, degrees=80)]  # from within
    for camera in views:
        found = agree(scene, camera, 2e-5)
        assert all(found[name].abs().max() > 1e-3 for name in ALL)


@pytest.mark.parametrize("name", AWKWARD)
def test_gradients_of_awkward_gaussians(name: str) -> None:
    found = agree(AWKWARD[name], AHEAD, 1e-4)
    assert all(torch.isfinite(g).all() for g in found.values())


def test_the_same_bits_on_one_thread_and_two() -> None:
    scene = solids(400, degree=2)
    camera = around(scene, 1, width=61, height=47)[0]
    by_colour, by_alpha = (w.numpy() for w in weights(camera))
    drawn = render(scene, camera, GROUND, keep=True)
    tries = [gradients(scene, camera, drawn, by_colour, by_alpha, GROUND, threads=n) for n in (1, 2, 2, 2)]
    for name, first in tries[0].items():
        assert all(again[name].tobytes() == first.tobytes() for again in tries), name


def test_how_much_a_place_in_the_picture_wants_to_move() -> None:
    scene = one(scales=[[-2, -1, -1.5]])
    rows = [torch.tensor(a, dtype=torch.float64) for a in scene.arrays().values()]
    ground = torch.tensor(GROUND, dtype=torch.float64)
    inner = naive_render(*rows, AHEAD, ground)[1] > 0.05  # no pixel comes or goes while it moves
    by_colour, _ = weights(AHEAD)

    def value(**moved: float) -> float:
        colour, _ = naive_render(*rows, replace(AHEAD, **moved), ground)
        return float((colour * by_colour)[inner].sum())

    step = 1e-4
    slopes = [
        (value(**{k: getattr(AHEAD, k) + step}) - value(**{k: getattr(AHEAD, k) - step})) / (2 * step)
        for k in ("cx", "cy")
    ]
    columns = [torch.tensor(a, requires_grad=True) for a in scene.arrays().values()]
    colour, _, info = rasterise(*columns, AHEAD, GROUND)
    (colour * by_colour)[inner].sum().backward()
    assert abs(info["moved"][0].item() / np.hypot(*slopes) - 1) < 1e-4 and info["seen"].tolist() == [1]
    behind = [torch.tensor(a) for a in AWKWARD["behind"].arrays().values()]
    assert rasterise(*behind, AHEAD, GROUND)[2]["seen"].tolist() == [0]


def test_a_picture_alone_has_no_way_back() -> None:
    drawn = render(one(), AHEAD)
    with pytest.raises(BadInput, match="keep=True"):
        gradients(one(), AHEAD, drawn, drawn.colour, drawn.alpha)
