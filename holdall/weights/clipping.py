"""Min/max grids of groups of columns, and how far to clip them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.weights.compensation import Grid, output_error

if TYPE_CHECKING:
    import torch

SHRINK = tuple(1 - 0.02 * i for i in range(11))  # of a group's span: the paper's 1.00, 0.98, ... 0.80
_LEAST, _MOST = 6e-8, 65504.0


def symmetric(bits: int) -> bool:
    """Eight bits do without a zero point, as in the paper."""
    return bits >= 8


def spans(w: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) of each group [O, G]; zero always lies between them, or a whole zero point could not hold it."""
    starts = np.arange(0, w.shape[1], group)
    low, high = np.minimum.reduceat(w, starts, axis=1), np.maximum.reduceat(w, starts, axis=1)
    return np.minimum(low, 0), np.maximum(high, 0)


def laid(low: np.ndarray, high: np.ndarray, bits: int, group: int) -> Grid:
    """The grid of `bits` that spans [low, high]; steps as half precision holds them, zero a code."""
    top = (1 << bits) - 1
    if max(np.abs(low).max(), high.max()) > _MOST:
        raise BadInput("weights", "magnitudes beyond half precision", "weights below 65504")
    if symmetric(bits):
        step = np.maximum(np.maximum(-low, high) / (top // 2), _LEAST).astype(np.float16).astype(np.float32)
        zero = np.full_like(step, (top + 1) // 2)
    else:
        step = np.maximum((high - low) / top, _LEAST).astype(np.float16).astype(np.float32)
        zero = np.clip(np.rint(-low / step), 0, top)
    return Grid(step, -step * zero, top, group)


def zeros(grid: Grid) -> np.ndarray:
    """The codes that mean zero, [O, G]."""
    return np.rint(-grid.low / grid.step)


def clipped(w: np.ndarray, bits: int, group: int, gram: torch.Tensor | None, clip: bool = True) -> Grid:
    """Each group's grid as wide as is best for the outputs: ||X_g (W_g - Q(W_g))^T||^2 by their second moments `gram`.

    A row that this makes worse as a whole keeps its unclipped grids.
    """
    low, high = spans(w, group)
    plain = laid(low, high, bits, group)
    if not clip:
        return plain
    best, share = np.full(low.shape, np.inf), np.ones(low.shape, np.float32)
    for shrink in SHRINK:
        grid = laid(low * shrink, high * shrink, bits, group)
        cost = _by_group(grid.values(grid.nearest(w)) - w, group, gram)
        better = cost < best
        best, share = np.where(better, cost, best), np.where(better, np.float32(shrink), share)
    found = laid(low * share, high * share, bits, group)
    worse = _total(found, w, gram) > _total(plain, w, gram)
    share[worse] = 1.0
    return laid(low * share, high * share, bits, group)


def _total(grid: Grid, w: np.ndarray, gram: torch.Tensor | None) -> np.ndarray:
    return output_error(grid.values(grid.nearest(w)) - w, gram)


def _by_group(e: np.ndarray, group: int, gram: torch.Tensor | None) -> np.ndarray:
    """[O, G]"""
    cuts = [slice(start, start + group) for start in range(0, e.shape[1], group)]
    return np.stack([output_error(e[:, c], None if gram is None else gram[c, c]) for c in cuts], axis=1)
