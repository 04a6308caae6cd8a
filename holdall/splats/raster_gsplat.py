"""The same pictures by gsplat, on a CUDA device. It holds opacities to 0.999 where this house holds them to 0.99."""

from __future__ import annotations

import torch
from torch import Tensor

from holdall.optional import need
from holdall.splats.camera import NEAR, Camera


def rasterised(
    means: Tensor,
    scales: Tensor,
    quats: Tensor,
    opacities: Tensor,
    sh: Tensor,
    camera: Camera,
    background: Tensor,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """As `raster_torch.rasterise`, of tensors on one device."""
    view = torch.eye(4).to(means)
    view[:3, :3], view[:3, 3] = (torch.as_tensor(x).to(means) for x in (camera.rotation, camera.translation))
    inner = torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]).to(means)
    colour, alpha, told = need("gsplat", extra="gsplat").rasterization(
        means, quats, scales.exp(), opacities.sigmoid(), sh, view[None], inner[None], camera.width, camera.height,
        near_plane=NEAR, sh_degree=int(sh.shape[1] ** 0.5) - 1, backgrounds=background[None], packed=False,
    )  # fmt: skip
    radii = told["radii"][0]
    info = {"seen": (radii > 0).reshape(len(means), -1).all(1).to(means)}
    if told["means2d"].requires_grad:
        told["means2d"].register_hook(lambda by: info.update(moved=by[0].norm(dim=-1)))
    return colour[0], alpha[0, ..., 0], info
