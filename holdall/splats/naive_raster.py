"""The rasteriser's slow truth in torch: no tiles, every Gaussian on every pixel, differentiated by autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.optional import lazy
from holdall.splats.camera import NEAR, Camera
from holdall.splats.scene import C0

if TYPE_CHECKING:
    from torch import Tensor

torch = lazy("torch", extra="splats")

_LOW_PASS = 0.3
# As float32 has them, in which renderers work: of 0.99 twice it leaves a hair less than 1e-4 of the light, which ends a
# pixel; in float64 it would be a hair more.
_LEAST, _MOST, _DARK = (float(np.float32(x)) for x in (1 / 255, 0.99, 1e-4))


def naive_render(
    means: Tensor,
    scales: Tensor,
    quats: Tensor,
    opacities: Tensor,
    sh: Tensor,
    camera: Camera,
    background: Tensor,
) -> tuple[Tensor, Tensor]:
    """(colour [H, W, 3], alpha [H, W]) in the type of `means`; columns as a Scene has them."""
    shares, left, colour, _ = naive_shares(means, scales, quats, opacities, sh, camera)
    shown = torch.einsum("hwn,nc->hwc", shares, colour) + left[..., None] * background
    return shown, 1 - left


def naive_shares(
    means: Tensor, scales: Tensor, quats: Tensor, opacities: Tensor, sh: Tensor, camera: Camera
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(shares [H, W, n], light left [H, W], colours [n, 3], which of the scene [n]): n that are drawn, by depth."""
    place, cov, depth = _projected(means, scales, quats, camera)
    opacity = torch.sigmoid(opacities)
    det = cov[:, 0, 0] * cov[:, 1, 1] - cov[:, 0, 1] ** 2
    good = (
        (depth > NEAR) & (opacity >= _LEAST) & (det > 0) & torch.isfinite(det) & torch.isfinite(place).all(1)
    )
    drawn = torch.nonzero(good)[:, 0]
    drawn = drawn[torch.argsort(depth[drawn], stable=True)]
    down, across = torch.meshgrid(
        torch.arange(camera.height).to(means) + 0.5, torch.arange(camera.width).to(means) + 0.5, indexing="ij"
    )
    dx, dy = across[..., None] - place[drawn, 0], down[..., None] - place[drawn, 1]
    cov, det = cov[drawn], det[drawn]
    power = (cov[:, 1, 1] * dx * dx - 2 * cov[:, 0, 1] * dx * dy + cov[:, 0, 0] * dy * dy) / (2 * det)
    alpha = (opacity[drawn] * torch.exp(-power)).clamp(max=_MOST)
    alpha = torch.where(alpha >= _LEAST, alpha, 0.0)
    after = torch.cumprod(1 - alpha, -1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
    bright = after >= _DARK  # light never grows: once dark, always dark
    shares = torch.where(bright, alpha * before, 0.0)
    left = torch.prod(torch.where(bright, 1 - alpha, 1.0), -1)
    return shares, left, _colours(means, sh, camera)[drawn], drawn


def _projected(means: Tensor, scales: Tensor, quats: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """(places in pixels [N, 2], covariances [N, 2, 2], depths [N])."""
    turn = torch.as_tensor(camera.rotation).to(means)
    at = means @ turn.T + torch.as_tensor(camera.translation).to(means)
    depth = at[:, 2]
    z = torch.where(depth > NEAR, depth, 1.0)
    x, y = at[:, 0] / z, at[:, 1] / z
    place = torch.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], 1)
    wide, high = 0.15 * camera.width / camera.fx, 0.15 * camera.height / camera.fy
    tx = x.clamp(-camera.cx / camera.fx - wide, (camera.width - camera.cx) / camera.fx + wide)
    ty = y.clamp(-camera.cy / camera.fy - high, (camera.height - camera.cy) / camera.fy + high)
    zero = torch.zeros_like(z)
    project = torch.stack(
        [camera.fx / z, zero, -camera.fx * tx / z, zero, camera.fy / z, -camera.fy * ty / z], 1
    ).reshape(-1, 2, 3)
    spread = project @ turn @ naive_turns(quats) * torch.exp(scales)[:, None]  # [N, 2, 3]
    return place, spread @ spread.mT + _LOW_PASS * torch.eye(2).to(means), depth


def naive_turns(quats: Tensor) -> Tensor:
    w, x, y, z = (quats / quats.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).reshape(-1, 3, 3)


def _colours(means: Tensor, sh: Tensor, camera: Camera) -> Tensor:
    """[N, 3] of at least 0, from harmonics made by recurrence: another way than the kernels'."""
    way = means - torch.as_tensor(camera.place).to(means)
    basis = naive_harmonics(way / way.norm(dim=1, keepdim=True))
    return (torch.einsum("nk,nkc->nc", basis[:, : sh.shape[1]], sh) + 0.5).clamp(min=0)


def naive_harmonics(way: Tensor) -> Tensor:
    """[N, 16] of unit vectors [N, 3]: orthonormal real harmonics, order m from -l to l within degree l, each with the
    sign (-1)^m that 3DGS uses, from the recurrences of Legendre's polynomials."""
    x, y, z = way.unbind(1)
    one = torch.ones_like(x)
    turns, columns = [(one, torch.zeros_like(x))], []
    for _ in range(3):  # r^m cos and sin of m times the angle
        c, s = turns[-1]
        turns.append((x * c - y * s, x * s + y * c))
    legendre = {(m, m): one * float(np.prod(np.arange(1, 2 * m, 2))) for m in range(4)}
    for m in range(4):
        for n in range(m + 1, 4):
            low = legendre.get((n - 2, m), torch.zeros_like(x))
            legendre[n, m] = ((2 * n - 1) * z * legendre[n - 1, m] - (n + m - 1) * low) / (n - m)
    for n in range(4):
        for m in range(-n, n + 1):
            k = abs(m)
            ratio = float(np.prod(np.arange(n - k + 1, n + k + 1)))
            norm = C0 * np.sqrt((2 * n + 1) / ratio * (2 if k else 1)) * (-1) ** k
            columns.append(float(norm) * legendre[n, k] * turns[k][1 if m < 0 else 0])
    return torch.stack(columns, 1)
