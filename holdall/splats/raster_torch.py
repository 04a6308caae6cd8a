"""The rasteriser for torch: what training calls. On a CUDA device it hands over to gsplat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdall.splats.camera import Camera
from holdall.splats.raster import render
from holdall.splats.raster_gradients import gradients
from holdall.splats.scene import NAMES, Scene


def rasterise(
    means: Tensor,
    scales: Tensor,
    quats: Tensor,
    opacities: Tensor,
    sh: Tensor,
    camera: Camera,
    background: Any = (0.0, 0.0, 0.0),
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(colour [H, W, 3], alpha [H, W], info) of columns as a Scene has them; gradients reach all six tensors.

    info: "seen" [N], 1 for what is in the picture; after the way back "moved" [N], the length of the gradient by the
    place in the picture, by pixel: what densification goes by.
    """
    columns = (means, scales, quats, opacities, sh)
    ground = torch.as_tensor(background, dtype=means.dtype, device=means.device)
    if means.is_cuda:
        from holdall.splats.raster_gsplat import rasterised

        return rasterised(*columns, camera, ground)
    info: dict[str, Tensor] = {}
    colour, alpha = _Rasterise.apply(*columns, ground, camera, info)
    return colour, alpha, info


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *columns, ground, camera, info = given
        scene = _scene(columns)
        needed = any(ctx.needs_input_grad)
        drawn = render(scene, camera, ground.numpy(force=True), keep=True)
        assert drawn.flat is not None
        info["seen"] = torch.zeros(len(scene))
        info["seen"][torch.from_numpy(drawn.flat.which[drawn.flat.drawn])] = 1
        if needed:
            ctx.save_for_backward(*columns, ground)
            ctx.view = camera, drawn, info
        return torch.from_numpy(drawn.colour).to(ground.dtype), torch.from_numpy(drawn.alpha).to(ground.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *columns, ground = ctx.saved_tensors
        camera, drawn, info = ctx.view
        by_colour, by_alpha = (g.numpy(force=True) for g in grads)
        found = gradients(_scene(columns), camera, drawn, by_colour, by_alpha, ground.numpy(force=True))
        info["moved"] = torch.from_numpy(found["moved"])
        passed = [torch.from_numpy(found[name]).to(ground.dtype) for name in (*NAMES, "background")]
        return (*passed, None, None)


def _scene(columns: Any) -> Scene:
    return Scene(*(c.numpy(force=True) for c in columns))
