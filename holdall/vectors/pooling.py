"""SuperGlobal's first stage: from a feature map to one vector, better than the network was trained to. Needs torch.

Nothing is learned: the modules go where a trained network has its ReLU and its GeM pooling, and what comes out is fit
for `rerank` and `vectors.superglobal`. Feature maps [B, C, H, W] come behind a ReLU, so they are not negative.

    y = GeMPlus()(RegionalGeM()(features))       # [B, C], of length one; then the network's own whitening
    y = ScaleGeM()(torch.stack([network(images_at_scale) for images_at_scale in ...]))  # [B, C]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdall.errors import BadInput

_LEAST = 1e-8  # below it numbers are taken for it, so that roots have slopes
_MOST = 30.0  # a higher power of `_LEAST` is no number of 64 bits


class ReLUP(nn.Module):
    """max(x, alpha) in a ReLU's place, at the outputs of residual blocks but for the last stage's: [...] to [...]."""

    def __init__(self, alpha: float = 0.014):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.alpha)


class RegionalGeM(nn.Module):
    """Half of each number and half of the generalised mean around it: [B, C, H, W] to the same.

    window: odd, and its half below H and W, whose edges are mirrored. p: of the mean. share: of the mean in the sum.
    """

    def __init__(self, window: int = 5, p: float = 2.5, share: float = 0.5):
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise BadInput("window", window, "an odd number")
        self.window, self.p, self.share = window, _power(p), share

    def forward(self, x: Tensor) -> Tensor:
        edge = self.window // 2
        if x.ndim != 4 or min(x.shape[2:]) <= edge:
            raise BadInput(
                "feature map", str(tuple(x.shape)), f"[B, C, H, W], more than {edge} high and wide"
            )
        # powers of small numbers are too small for 32 bits, and slopes would be NaN
        wide = functional.pad(x.double().clamp(min=_LEAST), (edge,) * 4, mode="reflect")
        around = functional.avg_pool2d(wide**self.p, self.window, stride=1) ** (1 / self.p)
        return self.share * around.to(x.dtype) + (1 - self.share) * x


class GeMPlus(nn.Module):
    """The generalised mean of each channel at a p that is chosen after training: [B, C, H, W] to [B, C], length one."""

    def __init__(self, p: float = 4.6):
        super().__init__()
        self.p = _power(p)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (x.double().clamp(min=_LEAST) ** self.p).mean((-2, -1)) ** (1 / self.p)
        return functional.normalize(pooled, dim=-1).to(x.dtype)


class ScaleGeM(nn.Module):
    """One vector of an image's vectors at several scales: [S, B, D] to [B, D], of length one.

    p: None takes the greatest of each number; else the generalised mean of what lies above the image's least number.
    """

    def __init__(self, p: float | None = None):
        super().__init__()
        self.p = None if p is None else _power(p)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or not len(x):
            raise BadInput("vectors", str(tuple(x.shape)), "[scales, B, D], one scale or more")
        unit = functional.normalize(x.double(), dim=-1)
        if self.p is None:
            return functional.normalize(unit.amax(0), dim=-1).to(x.dtype)
        least = unit.amin((0, 2))[:, None]  # [B, 1]
        above = ((unit - least).clamp(min=_LEAST) ** self.p).mean(0) ** (1 / self.p)
        return functional.normalize(above + least, dim=-1).to(x.dtype)


def at_scales(
    network: nn.Module, images: Tensor, scales: tuple[float, ...] = (0.7071, 1.0, 1.4142)
) -> Tensor:
    """The network's vectors [S, B, D] of images [B, C, H, W], resized bilinearly to each scale."""
    sizes = [[max(1, round(edge * scale)) for edge in images.shape[2:]] for scale in scales]
    return torch.stack(
        [
            network(functional.interpolate(images, size, mode="bilinear", align_corners=False))
            for size in sizes
        ]
    )


def _power(p: float) -> float:
    if not 0 < p <= _MOST:
        raise BadInput("p", p, f"above 0, up to {_MOST:g}")
    return p
