"""Numbers of any type as kernels read them: float32, or the 16 bits of a half or a bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_SHORT = (torch.bfloat16, torch.float16)


def bits_of(x: Tensor) -> tuple[np.ndarray, bool]:
    """Numbers [B, H, N, D] as [B*H, N, D], and whether they are bfloat16; a view where they stand in one piece."""
    flat = x.detach().flatten(0, 1).contiguous()
    if x.dtype in _SHORT:
        return flat.view(torch.uint16).numpy(), x.dtype == torch.bfloat16
    return flat.float().numpy(), False


def flat_bits(x: Tensor) -> tuple[np.ndarray, bool, tuple[int, int, int]]:
    """Numbers [B, H, N, D] wherever they stand: flat, whether they are bfloat16, and the steps of B, H and N."""
    x = x.detach() if x.dtype in _SHORT else x.detach().float()
    x = x if x.stride(3) == 1 and x.numel() else x.contiguous()
    reach = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    flat = x.as_strided((reach,), (1,))
    steps = (x.stride(0), x.stride(1), x.stride(2))
    return (
        (flat if x.dtype == torch.float32 else flat.view(torch.uint16)).numpy(),
        x.dtype == torch.bfloat16,
        steps,
    )
