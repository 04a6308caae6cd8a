"""A scene as the page's shaders read it: whole texels of 16 bytes, a fixed number a Gaussian.

    0   mean x, y, z (float32), opacity (float32, 0 to 1)
    1   covariance xx, xy, xz, yy (float32)
    2   covariance yz, zz (float32), harmonic 0 of red, green, blue (float16), two bytes of nothing
    3.. two further harmonics each: red, green, blue (float16) and two bytes of nothing

Covariances stay float32: flat Gaussians, a thousand times wider than thick, would lose their thin side as float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXEL = 16
_SIZES = 40.0  # logarithms of sizes beyond this have no float32 square
_HALF = 65504.0
_PIECE = 1 << 16  # Gaussians at a time: float64 in between is not held for all


def texels(degree: int) -> int:
    """Of one Gaussian: 3, 5, 7 or 11."""
    return 3 + (degree + 1) ** 2 // 2


def records(scene: Scene) -> NDArray[Any]:
    """uint32 [N, texels, 4], little-endian."""
    found = np.zeros((len(scene), texels(scene.degree), 4), "<u4")
    for at in range(0, len(scene), _PIECE):
        some = slice(at, at + _PIECE)
        floats = found[some, :3].view("<f4")
        floats[:, 0, :3] = scene.means[some]
        floats[:, 0, 3] = 0.5 * (1 + np.tanh(0.5 * scene.opacities[some].astype(np.float64)))
        wide = covariances(scene.scales[some], scene.quats[some])
        floats[:, 1:].reshape(-1, 8)[:, :6] = wide
        halves = np.zeros((len(wide), 2 * texels(scene.degree) - 5, 4), "<f2")
        halves[:, : scene.sh.shape[1], :3] = np.clip(scene.sh[some], -_HALF, _HALF)
        found[some, 2:].reshape(len(wide), -1)[:, 2:] = halves.reshape(len(wide), -1).view("<u4")
    return found


def covariances(scales: NDArray[Any], quats: NDArray[Any]) -> NDArray[Any]:
    """float64 [N, 6]: xx, xy, xz, yy, yz, zz in the world."""
    axes = rotations(quats) * np.exp(np.clip(scales.astype(np.float64), -_SIZES, _SIZES))[:, None, :]
    whole = axes @ axes.transpose(0, 2, 1)
    return whole[:, (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)]


def rotations(quats: NDArray[Any]) -> NDArray[Any]:
    """float64 [N, 3, 3] of quaternions of any length."""
    q = quats.astype(np.float64)
    q = q / np.abs(q).max(1, keepdims=True)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, 1) for row in rows], 1)
