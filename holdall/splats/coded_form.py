"""A scene in the form in which it is coded: axes sorted by size, colours turned to where they vary independently."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from holdall.splats.scene import Scene


@dataclass(frozen=True)
class Prepared:
    """A scene in the form that is coded: the longest axis first, colours turned, its order still its own."""

    places: Any
    scales: Any
    alphas: Any
    frames: Any
    colours: Any
    mixed: Any
    seen: Any

    def take(self, which: Any) -> Prepared:
        rest = {
            n: getattr(self, n)[which] for n in ("places", "scales", "alphas", "frames", "colours", "seen")
        }
        return replace(self, **rest)


def prepared(scene: Scene, seen: np.ndarray) -> Prepared:
    """seen [N, 2]: logarithms to base 2 of how much each Gaussian's colour shows, and its form."""
    scales, order = scene.scales.astype(np.float64), np.argsort(-scene.scales, 1, kind="stable")
    axes = np.take_along_axis(axes_of(scene.quats), order[:, :, None], 1)
    axes[:, 1] *= np.where(np.linalg.det(axes) < 0, -1, 1)[:, None]
    alphas = -np.logaddexp(0, -scene.opacities.astype(np.float64))
    sh = scene.sh.astype(np.float64)
    weight = np.exp2(np.clip(seen[:, 0], -40, 40) / 2)
    mixed = _mixture(sh[:, 0], weight)
    return Prepared(
        places=scene.means.astype(np.float64),
        scales=np.maximum(np.take_along_axis(scales, order, 1), -18),
        alphas=np.maximum(alphas, -7.0),
        frames=axes,
        colours=(sh @ mixed.T).reshape(len(sh), -1),
        mixed=mixed,
        seen=seen,
    )


def _mixture(colours: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[3, 3] axes along which colours vary independently, float32."""
    away = colours - np.average(colours, axis=0, weights=weight)
    found = np.linalg.eigh((away * weight[:, None]).T @ away + 1e-12 * np.eye(3))[1].T[::-1]
    found = found * np.where(found.sum(1) < 0, -1, 1)[:, None]
    return found.astype(np.float32).astype(np.float64)


def axes_of(quats: np.ndarray) -> np.ndarray:
    """[N, 3, 3]: a row an axis."""
    unit = quats.astype(np.float64)
    unit /= np.abs(unit).max(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    w, x, y, z = unit.T
    columns = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),
               2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x),
               2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return np.stack(columns, 1).reshape(-1, 3, 3)


def quats_of(axes: np.ndarray) -> np.ndarray:
    """float32 [N, 4] of right-handed axes, a row an axis."""
    m = axes.transpose(0, 2, 1)
    a, b, c = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    whole = np.stack([1 + a + b + c, 1 + a - b - c, 1 - a + b - c, 1 - a - b + c], 1)
    best = whole.argmax(1)
    x, y, z = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 1, 0] + m[:, 0, 1], m[:, 0, 2] + m[:, 2, 0], m[:, 2, 1] + m[:, 1, 2]
    rows = np.stack(
        [whole[:, 0], x, y, z, x, whole[:, 1], xy, xz, y, xy, whole[:, 2], yz, z, xz, yz, whole[:, 3]], 1
    )
    found = rows.reshape(-1, 4, 4)[np.arange(len(m)), best]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
