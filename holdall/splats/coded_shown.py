"""How much of each Gaussian is seen from some views (numba), and how much it would be missed.

Gaussians are laid into a picture from the front to the back, each over the pixels that it covers, beside how much light
still gets through there. A second pass over the finished picture knows what is behind each, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from holdall.splats.camera import NEAR, Camera
from holdall.splats.coded_form import axes_of
from holdall.splats.scene import C0, Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLUR = 0.3  # added to the spread of each Gaussian in pixels, squared: what all renderers do
_LEAST = 1 / 255  # of opacity: less is not drawn
_DARK = 1e-4  # of light left: what is behind is not drawn


def shown(scene: Scene, cameras: Sequence[Camera]) -> np.ndarray:
    """[N, 3]: light, missed, bare of each Gaussian. Over all pixels of all views, for a million of them: the squares of
    its share of a pixel; of that times how far its colour is from what would be there without it; and of its share if
    nothing were in front."""
    found = np.zeros((len(scene), 3))
    axes = axes_of(scene.quats) * np.exp(scene.scales.astype(np.float64))[:, :, None]
    for camera in cameras:
        rows, order = _flat(scene, axes, camera)
        picture = np.zeros((2, camera.height, camera.width, 4))
        for second in (False, True):
            picture[int(second), :, :, 3] = 1
            _lay(rows, order, picture, second, found)
    return found * (1e6 / sum(c.width * c.height for c in cameras))


def _flat(scene: Scene, axes: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(rows [N, 11]: place, spread inverted (3), opacity, reach (2), colour, in pixels; which of them, near to far)."""
    at = scene.means @ camera.rotation.T + camera.translation
    z = np.maximum(at[:, 2], NEAR)
    wide = [1.3 * camera.width / 2 / camera.fx, 1.3 * camera.height / 2 / camera.fy]
    tx, ty = (np.clip(at[:, i] / z, -wide[i], wide[i]) for i in (0, 1))
    turned = axes @ camera.rotation.T
    jx = camera.fx / z[:, None] * (turned[:, :, 0] - tx[:, None] * turned[:, :, 2])
    jy = camera.fy / z[:, None] * (turned[:, :, 1] - ty[:, None] * turned[:, :, 2])
    a, b, c = (jx * jx).sum(1) + _BLUR, (jx * jy).sum(1), (jy * jy).sum(1) + _BLUR
    det = a * c - b * b
    opacity = 1 / (1 + np.exp(-scene.opacities.astype(np.float64)))
    far = np.sqrt(2 * np.log(np.maximum(opacity / _LEAST, 1)))
    rows = np.stack([
        camera.fx * at[:, 0] / z + camera.cx, camera.fy * at[:, 1] / z + camera.cy, c / det, -b / det, a / det,
        opacity, far * np.sqrt(a), far * np.sqrt(c),
    ], 1)  # fmt: skip
    away = scene.means - camera.place
    colours = np.maximum(0, 0.5 + _colours(scene.sh, away / np.linalg.norm(away, axis=1, keepdims=True)))
    rows = np.concatenate([rows, colours], 1)
    seen = np.flatnonzero((at[:, 2] > NEAR) & (opacity > _LEAST) & np.isfinite(rows).all(1))
    return rows, seen[np.argsort(at[seen, 2], kind="stable")]


def _colours(sh: np.ndarray, way: np.ndarray) -> np.ndarray:
    """[N, 3], less a half, seen along unit vectors."""
    x, y, z = way.T
    xx, yy, zz = x * x, y * y, z * z
    terms = [
        np.full(len(way), C0), -0.4886025119 * y, 0.4886025119 * z, -0.4886025119 * x,
        1.0925484306 * x * y, -1.0925484306 * y * z, 0.3153915653 * (2 * zz - xx - yy), -1.0925484306 * x * z,
        0.5462742153 * (xx - yy), -0.5900435899 * y * (3 * xx - yy), 2.8906114426 * x * y * z,
        -0.4570457995 * y * (4 * zz - xx - yy), 0.3731763326 * z * (2 * zz - 3 * xx - 3 * yy),
        -0.4570457995 * x * (4 * zz - xx - yy), 1.4453057213 * z * (xx - yy), -0.5900435899 * x * (xx - 3 * yy),
    ]  # fmt: skip
    return sum(t[:, None] * sh[:, i] for i, t in enumerate(terms[: sh.shape[1]]))


@njit(cache=True, nogil=True)
def _lay(rows: Any, order: Any, picture: Any, second: Any, found: Any) -> None:
    """First fill picture[0]; then fill picture[1] in the same way, and count while it is known what is behind."""
    height, width = picture.shape[1:3]
    into = picture[1 if second else 0]
    for i in order:
        x, y, a, b, c = rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4]
        for v in range(max(0, int(y - rows[i, 7])), min(height, int(y + rows[i, 7]) + 1)):
            dy = v + 0.5 - y
            for u in range(max(0, int(x - rows[i, 6])), min(width, int(x + rows[i, 6]) + 1)):
                through = max(into[v, u, 3], _DARK)
                dx = u + 0.5 - x
                power = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
                if power > 6 or power < 0:
                    continue
                alpha = min(0.99, rows[i, 5] * np.exp(-power))
                if alpha < _LEAST:
                    continue
                share = alpha * through
                left = through - share
                if second:
                    found[i, 0] += share * share
                    found[i, 2] += alpha * alpha
                    away = 0.0
                    for k in range(3):
                        behind = (picture[0, v, u, k] - into[v, u, k] - share * rows[i, 8 + k]) / left
                        away += (rows[i, 8 + k] - behind) ** 2
                    found[i, 1] += share * share * away / 3
                for k in range(3):
                    into[v, u, k] += share * rows[i, 8 + k]
                into[v, u, 3] = left
