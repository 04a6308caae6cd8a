"""Rotations named so that they vary least: a Gaussian looks the same under the 24 turns that only rename its axes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def multiplied(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Quaternions [..., 4], w first: the turn b, then the turn a."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


@cache
def renamings() -> tuple[Any, Any]:
    """(quaternions [24, 4] that take axes to axes, and which old axis each new one is [24, 3])."""
    half = np.sqrt(0.5)
    found = [np.array([1.0, 0, 0, 0])]
    steps = [np.array([half, half, 0, 0]), np.array([half, 0, half, 0])]
    for one in found:  # grows while it is walked
        for step in steps:
            new = multiplied(one, step)
            if all(abs(abs(new @ old) - 1) > 1e-6 for old in found):
                found.append(new)
    quats = np.stack(found)
    axes = np.abs(turned(quats)).argmax(1)
    return quats, axes


def turned(quats: NDArray[Any]) -> NDArray[Any]:
    """[N, 3, 3] of unit quaternions."""
    w, x, y, z = quats.T
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, 1).reshape(-1, 3, 3)


def nearest_to_none(
    scales: NDArray[Any], quats: NDArray[Any], *spins: NDArray[Any]
) -> tuple[NDArray[Any], ...]:
    """The same Gaussians with axes named so that they turn as little as can be: scales, unit quaternions, w above 0;
    and what is added to unit quaternions in time, of the same names."""
    unit = quats.astype(np.float64)
    unit = unit / np.abs(unit).max(1, keepdims=True)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    names, axes = renamings()
    all_ = multiplied(unit[:, None], names)  # [N, 24, 4]
    best = np.abs(all_[:, :, 0]).argmax(1)
    found = all_[np.arange(len(unit)), best]
    sign = np.where(found[:, :1] < 0, -1, 1)
    more = [(sign * multiplied(s.astype(np.float64), names[best])).astype(np.float32) for s in spins]
    return np.take_along_axis(scales, axes[best], 1), (sign * found).astype(np.float32), *more
