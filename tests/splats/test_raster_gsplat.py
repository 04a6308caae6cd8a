"""What gsplat is asked for, on any machine; on a CUDA device, whether it draws the same."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from holdall.errors import NeedsExtra
from holdall.splats.camera import Camera, around
from holdall.splats.made import solids
from holdall.splats.naive_raster import naive_render
from holdall.splats.raster_gsplat import rasterised
from holdall.splats.raster_torch import rasterise

SCENE = solids(150, degree=2)
VIEW = around(SCENE, 1, width=37, height=23)[0]
GROUND = torch.tensor([1, 0.5, 0.2], dtype=torch.float64)


def rasterization(
    means: Any, quats: Any, scales: Any, opacities: Any, colors: Any, viewmats: Any, Ks: Any, width: int, height: int,
    *, near_plane: float, sh_degree: int, backgrounds: Any, packed: bool,
) -> Any:  # fmt: skip
    """gsplat's own signature, by the slow truth: for one camera, activated columns, harmonics as colours."""
    assert near_plane == 0.01 and (sh_degree + 1) ** 2 == colors.shape[1] and not packed
    view, inner = viewmats[0].numpy(), Ks[0].numpy()
    assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3) and (view[3] == [0, 0, 0, 1]).all()
    camera = Camera(
        view[:3, :3],
        view[:3, 3],
        *(float(inner[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))),
        width,
        height,
    )
    columns = means, scales.log(), quats, opacities.logit(), colors
    colour, alpha = naive_render(*columns, camera, backgrounds[0])
    radii = torch.ones(1, len(means), 2, dtype=torch.int32)
    radii[0, 3] = 0
    return colour[None], alpha[None, ..., None], {"radii": radii, "means2d": 2 * means[None, :, :2]}


def test_gsplat_is_asked_for_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=rasterization))
    columns = [torch.tensor(a, dtype=torch.float64) for a in SCENE.arrays().values()]
    columns[0].requires_grad_()
    found, wanted = rasterised(*columns, VIEW, GROUND), naive_render(*columns, VIEW, GROUND)
    for a, b in zip(found[:2], wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert found[2]["seen"].tolist() == [0.0 if i == 3 else 1.0 for i in range(len(SCENE))]


def test_without_gsplat_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", None)
    columns = [torch.tensor(a) for a in SCENE.arrays().values()]
    with pytest.raises(NeedsExtra, match="gsplat"):
        rasterised(*columns, VIEW, GROUND)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gsplat_draws_what_the_rasteriser_draws() -> None:
    pytest.importorskip("gsplat", reason="needs gsplat")
    shown = []
    for device in ("cpu", "cuda"):
        columns = [torch.tensor(a, device=device, requires_grad=True) for a in SCENE.arrays().values()]
        colour, _, info = rasterise(*columns, VIEW, (1, 0.5, 0.2))
        colour.square().sum().backward()
        shown.append([x.detach().cpu().numpy() for x in (colour, info["moved"], *(c.grad for c in columns))])
    np.testing.assert_allclose(shown[1][0], shown[0][0], atol=0.02)  # it holds opacities to 0.999
    for a, b in zip(*shown, strict=True):
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()
