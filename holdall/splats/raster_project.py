"""Gaussians as a camera sees them: places, spreads, colours and which tiles each touches (numba, in float64).

The spread in a picture is the EWA one: the covariance through the Jacobian of the projection, and a low-pass of 0.3
pixels squared. It is kept as rows need it: at a distance dy below the middle, the ellipse's own middle is moved by
-lean * dy, and exponents are  bend * (x - middle)^2 + fall * dy^2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from holdall.splats.camera import NEAR, Camera

LOW_PASS = 0.3  # pixels squared
SIDE = 16  # of a tile
LEAST = 1 / 255  # opacity that is drawn
FLAT = 8  # x, y, lean, bend, fall, opacity; the ellipse that is drawn: half its height, the height of its right end
_FAINT = -5.6  # logit of an opacity below LEAST
_WIDEST = math.sqrt(2 * math.log(255)) + 1e-3  # spreads to the edge of what is drawn, if fully opaque
_SLACK = 1e-5  # of the exponent: rounding never hides what would be drawn


def lens(camera: Camera) -> Any:
    """float64 [22]: rotation (9), translation (3), fx, fy, cx, cy, the four limits of x/z and y/z, width, height."""
    w, h = camera.width, camera.height
    wide, high = 0.3 * w / 2 / camera.fx, 0.3 * h / 2 / camera.fy
    limits = [
        -camera.cx / camera.fx - wide, (w - camera.cx) / camera.fx + wide,
        -camera.cy / camera.fy - high, (h - camera.cy) / camera.fy + high,
    ]  # fmt: skip
    inner = [camera.fx, camera.fy, camera.cx, camera.cy]
    return np.concatenate([camera.rotation.ravel(), camera.translation, inner, limits, [w, h]])


@njit(inline="always")
def clamp(x: Any, low: Any, high: Any) -> Any:
    return low if x < low else (high if x > high else x)


@njit(inline="always")
def turn(quats: Any, i: Any) -> Any:
    """(w, x, y, z) of length 1 and the length; zeros where there is none."""
    w, x, y, z = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
    long = math.sqrt(w * w + x * x + y * y + z * z)
    by = 1 / long if long > 0 else 0.0
    return w * by, x * by, y * by, z * by, long


@njit(inline="always")
def axes(quats: Any, i: Any) -> Any:
    """The rotation's nine numbers by rows."""
    w, x, y, z, _ = turn(quats, i)
    return (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip


@njit(inline="always")
def seen_at(means: Any, i: Any, lens: Any) -> Any:
    """The place in the camera's axes."""
    x, y, z = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
    return (
        lens[0] * x + lens[1] * y + lens[2] * z + lens[9],
        lens[3] * x + lens[4] * y + lens[5] * z + lens[10],
        lens[6] * x + lens[7] * y + lens[8] * z + lens[11],
    )


@njit(inline="always")
def jacobian(x: Any, y: Any, z: Any, lens: Any) -> Any:
    """(by x and z of the first row, by y and z of the second): of the projection, with guarded slopes."""
    tx, ty = clamp(x / z, lens[16], lens[17]), clamp(y / z, lens[18], lens[19])
    return lens[12] / z, -lens[12] * tx / z, lens[13] / z, -lens[13] * ty / z


@njit(cache=True, nogil=True, error_model="numpy")
def spans(scales: Any, quats: Any, i: Any, lens: Any, j0: Any, j2: Any, k1: Any, k2: Any) -> Any:
    """(cov_xx, cov_xy, cov_yy, determinant) in pixels, with the low-pass. The determinant is a sum of squares: the
    difference of products loses all digits of needles."""
    r = axes(quats, i)
    a = b = c = cross = 0.0
    p0 = q0 = p1 = q1 = 0.0
    for k in range(3):
        s = math.exp(float(scales[i, k]))
        x, y, z = s * r[k], s * r[3 + k], s * r[6 + k]  # an axis of the ellipsoid, in the world
        u = lens[0] * x + lens[1] * y + lens[2] * z
        v = lens[3] * x + lens[4] * y + lens[5] * z
        w = lens[6] * x + lens[7] * y + lens[8] * z
        p, q = j0 * u + j2 * w, k1 * v + k2 * w
        a, b, c = a + p * p, b + p * q, c + q * q
        cross += (p * q0 - q * p0) ** 2 + (p * q1 - q * p1) ** 2
        p0, q0, p1, q1 = p1, q1, p, q
    return a + LOW_PASS, b, c + LOW_PASS, cross + LOW_PASS * (a + c + LOW_PASS)


@njit(cache=True, nogil=True, error_model="numpy")
def depths(means: Any, scales: Any, opacities: Any, lens: Any, depth: Any, first: Any, last: Any) -> None:
    """Fill depth [N] for Gaussians first to last: infinite where a ball around it is not in the picture."""
    across, along = max(-lens[16], lens[17]), max(-lens[18], lens[19])
    for i in range(first, last):
        depth[i] = np.inf
        x, y, z = seen_at(means, i, lens)
        if not (z > NEAR and opacities[i] > _FAINT):
            continue
        size = math.exp(2 * float(max(scales[i, 0], scales[i, 1], scales[i, 2]))) / (z * z)
        wide = _WIDEST * math.sqrt(size * (1 + across * across) * lens[12] * lens[12] + LOW_PASS)
        high = _WIDEST * math.sqrt(size * (1 + along * along) * lens[13] * lens[13] + LOW_PASS)
        u, v = lens[12] * x / z + lens[14], lens[13] * y / z + lens[15]
        if u + wide > 0 and u - wide < lens[20] and v + high > 0 and v - high < lens[21]:
            depth[i] = z


@njit(inline="always")
def _flatten(means: Any, scales: Any, quats: Any, opacities: Any, i: Any, lens: Any, row: Any) -> Any:
    """Fill row [FLAT]; whether there is anything to draw."""
    x, y, z = seen_at(means, i, lens)
    j0, j2, k1, k2 = jacobian(x, y, z, lens)
    a, b, c, det = spans(scales, quats, i, lens, j0, j2, k1, k2)
    u, v = lens[12] * x / z + lens[14], lens[13] * y / z + lens[15]
    opacity = 1 / (1 + math.exp(-float(opacities[i])))
    if not (opacity >= LEAST and det > 0 and det < np.inf and abs(u) < np.inf and abs(v) < np.inf):
        return False
    reach = math.log(opacity / LEAST) + _SLACK
    wide, high = math.sqrt(2 * reach * a), math.sqrt(2 * reach * c)
    row[0], row[1], row[2], row[3] = u, v, -b / c, 0.5 * c / det
    row[4], row[5], row[6], row[7] = 0.5 / c, opacity, high, b * math.sqrt(2 * reach / a)
    return u + wide > 0 and u - wide < lens[20] and v + high > 0 and v - high < lens[21]


@njit(inline="always")
def harmonics(x: Any, y: Any, z: Any, count: Any, into: Any) -> None:
    """The first 1, 4, 9 or 16 real spherical harmonics in the signs of 3DGS, in a unit direction."""
    into[0] = 0.28209479177387814
    if count > 1:
        into[1], into[2], into[3] = -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x
    if count > 4:
        into[4], into[5] = 1.0925484305920792 * x * y, -1.0925484305920792 * y * z
        into[6] = 0.31539156525252005 * (2 * z * z - x * x - y * y)
        into[7], into[8] = -1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)
    if count > 9:
        into[9] = -0.5900435899266435 * y * (3 * x * x - y * y)
        into[10] = 2.890611442640554 * x * y * z
        into[11] = -0.4570457994644658 * y * (4 * z * z - x * x - y * y)
        into[12] = 0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y)
        into[13] = -0.4570457994644658 * x * (4 * z * z - x * x - y * y)
        into[14] = 1.445305721320277 * z * (x * x - y * y)
        into[15] = -0.5900435899266435 * x * (x * x - 3 * y * y)


@njit(inline="always")
def _coloured(means: Any, sh: Any, i: Any, eye: Any, basis: Any, colour: Any) -> None:
    """Fill colour [4] (the fourth is 0)."""
    x, y, z = means[i, 0] - eye[0], means[i, 1] - eye[1], means[i, 2] - eye[2]
    by = 1 / math.sqrt(x * x + y * y + z * z)
    harmonics(x * by, y * by, z * by, sh.shape[1], basis)
    r = g = b = 0.5
    for m in range(sh.shape[1]):
        r, g, b = r + basis[m] * sh[i, m, 0], g + basis[m] * sh[i, m, 1], b + basis[m] * sh[i, m, 2]
    colour[0], colour[1], colour[2], colour[3] = max(r, 0.0), max(g, 0.0), max(b, 0.0), 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def flatten(columns: Any, which: Any, lens: Any, eye: Any, out: Any, first: Any, last: Any) -> None:
    """Fill out: rows [n, FLAT], colours [n, 4] and the rows of tiles that each touches [n, 2], first and next after the
    last, for the first to last of those by depth."""
    means, scales, quats, opacities, sh = columns
    rows, colour, tops = out
    basis = np.zeros(16)
    size = (int(lens[21]) + SIDE - 1) // SIDE
    for k in range(first, last):
        i, row = which[k], rows[k]
        if not _flatten(means, scales, quats, opacities, i, lens, row):
            row[:], colour[k], tops[k] = 0, 0, 0
            continue
        low, high = row[1] - row[6] - 0.5, row[1] + row[6] - 0.5
        tops[k, 0] = math.ceil(clamp(low, 0.0, SIDE * size)) // SIDE
        tops[k, 1] = max(tops[k, 0], math.floor(clamp(high, -1.0, SIDE * size - 1.0)) // SIDE + 1)
        _coloured(means, sh, i, eye, basis, colour[k])
