"""Small layers that say where a number is expected: learnt as they will be stored, and evaluated in whole numbers.

Weights are whole 64ths, inputs and middles sixteenths of a step. With `exact`, all is whole numbers in float64 and far
below 2**53, so that sums are the same in any order, and every machine expects the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.splats.light4gs_gauss import LEAST, OCTAVE, RARE, UNIT, WIDE, WIDTHS

_PART = 64  # of a weight
_BYTE, _SHORT = 127, 32767
_MOST = 1 << 12  # of an input: 256 steps
_FLOOR = 1e-6  # of a chance, in learning
_ROOT = 2**-0.5


class Expecting:
    """inputs -> hidden -> (middle in sixteenths, width in eighths of octaves beside a given one), and past hidden."""

    def __init__(self, inputs: int, hidden: int = 16, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        self.parts = {
            "in": torch.randn(hidden, inputs, generator=draw) * 0.5 / inputs**0.5,
            "bias": torch.zeros(hidden),
            "out": torch.zeros(2, hidden),
            "past": torch.zeros(2, inputs),
            "last": torch.zeros(2),
        }
        for p in self.parts.values():
            p.requires_grad_()

    @staticmethod
    def size(inputs: int, hidden: int) -> int:
        """Bytes of what `raw` gives."""
        return hidden * inputs + 2 * hidden + 2 * hidden + 2 * inputs + 4

    def whole(self) -> dict[str, Tensor]:
        """float64 whole numbers, 64 times the weights."""
        tops = {"bias": _SHORT, "last": _SHORT}
        return {
            k: (p.detach().double() * _PART).round().clamp(-tops.get(k, _BYTE), tops.get(k, _BYTE))
            for k, p in self.parts.items()
        }

    def raw(self) -> np.ndarray:
        kinds = {"bias": "<i2", "last": "<i2"}
        parts = [
            v.numpy().astype(kinds.get(k, "i1")).reshape(-1).view(np.uint8) for k, v in self.whole().items()
        ]
        return np.concatenate(parts)

    @classmethod
    def of(cls, raw: np.ndarray, inputs: int, hidden: int) -> Expecting:
        net, at = cls(inputs, hidden), 0
        with torch.no_grad():
            for k, p in net.parts.items():
                kind = "<i2" if k in ("bias", "last") else "i1"
                size = p.numel() * np.dtype(kind).itemsize
                p.copy_(torch.from_numpy(raw[at : at + size].copy().view(kind).reshape(p.shape) / _PART))
                at += size
        return net

    def __call__(self, x: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Of inputs [K, n]: middles in sixteenths, and places in the table of widths; with gradients, not rounded.
        base [n]: the width to begin from."""
        p = {
            k: w + ((w * _PART).round().clamp(-_SHORT, _SHORT) / _PART - w).detach()
            for k, w in self.parts.items()
        }
        x = x.clamp(-_MOST, _MOST)
        hidden = (p["in"] @ x + p["bias"][:, None]).clamp(0, _MOST)
        out = p["out"] @ hidden + p["past"] @ x + p["last"][:, None]
        return out[0], (base + out[1]).clamp(0, WIDTHS - 1)

    @torch.no_grad()
    def exact(self, x: Tensor, base: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The same of whole numbers in float64, as int64."""
        p, x = self.whole(), x.clamp(-_MOST, _MOST)
        hidden = ((p["in"] @ x + p["bias"][:, None]) / _PART).floor().clamp(0, _MOST)
        out = ((p["out"] @ hidden + p["past"] @ x + p["last"][:, None]) / _PART).floor()
        widths = (base + out[1]).clamp(0, WIDTHS - 1)
        return out[0].numpy().astype(np.int64), widths.numpy().astype(np.int64)


def cost(values: Tensor, middles: Tensor, widths: Tensor) -> Tensor:
    """Bits of each value, in steps and not rounded, under what was expected; with gradients for all three."""
    off = (values - middles / UNIT).abs()
    spread = torch.exp2(widths / OCTAVE + LEAST)
    narrow = _mass(off, spread)
    chance = narrow + (_mass(off, spread * WIDE) - narrow) / RARE
    return -torch.log2(chance + _FLOOR)


def _mass(off: Tensor, spread: Tensor) -> Tensor:
    """Of a Gaussian, within half a step of what is so far from its middle."""
    near, far = (off - 0.5) / spread, (off + 0.5) / spread
    found: Tensor = 0.5 * (torch.erfc(near * _ROOT) - torch.erfc(far * _ROOT))
    return found


def floor(x: Tensor, exact: bool) -> Tensor:
    """Whole numbers where all has to be."""
    return x.floor() if exact else x


def base_widths(values: Any, axis: Any) -> Any:
    """Places in the table of widths for values that are expected at 0, one for each of what is left."""
    spread = np.sqrt(np.mean(np.square(np.asarray(values, np.float64)), axis) + 1e-4)
    return np.clip(np.rint(OCTAVE * (np.log2(spread) - LEAST)), 0, WIDTHS - 1).astype(np.int64)
