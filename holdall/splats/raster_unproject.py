"""The way back from a picture's Gaussians to the scene's columns (numba, in float64)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from holdall.splats.raster_project import axes, harmonics, jacobian, seen_at, turn


@njit(inline="always")
def _by_cov(row: Any, sums: Any) -> Any:
    """(by the place in pixels (2), by cov_xx, cov_xy, cov_yy)."""
    lean, bend, fall = row[2], row[3], row[4]
    by_bend, by_fall, by_lean = -sums[2], -sums[5], -2 * bend * sums[4]
    x = 2 * bend * sums[1]
    y = lean * x + 2 * fall * sums[3]
    sharp = -2 * bend * bend * by_bend
    return (
        x, y, sharp, 2 * lean * sharp - 2 * fall * by_lean,
        lean * lean * sharp - 2 * fall * fall * by_fall - 2 * fall * lean * by_lean,
    )  # fmt: skip


@njit(inline="always")
def _by_turn(quats: Any, i: Any, by: Any, into: Any) -> None:
    """Gradients of the rotation's numbers [9] become those of the quaternion, of any length."""
    w, x, y, z, long = turn(quats, i)
    gw = 2 * (z * (by[3] - by[1]) + y * (by[2] - by[6]) + x * (by[7] - by[5]))
    gx = 2 * (y * (by[1] + by[3]) + z * (by[2] + by[6]) + w * (by[7] - by[5])) - 4 * x * (by[4] + by[8])
    gy = 2 * (x * (by[1] + by[3]) + w * (by[2] - by[6]) + z * (by[5] + by[7])) - 4 * y * (by[0] + by[8])
    gz = 2 * (w * (by[3] - by[1]) + x * (by[2] + by[6]) + y * (by[5] + by[7])) - 4 * z * (by[0] + by[4])
    radial = w * gw + x * gx + y * gy + z * gz
    into[i, 0], into[i, 1] = (gw - w * radial) / long, (gx - x * radial) / long
    into[i, 2], into[i, 3] = (gy - y * radial) / long, (gz - z * radial) / long


@njit(inline="always")
def _by_spread(
    scales: Any, quats: Any, i: Any, lens: Any, j: Any, by: Any, by_scales: Any, by_axes: Any
) -> Any:
    """(by the Jacobian's four numbers); fills the gradients of a Gaussian's scales and of its rotation's numbers."""
    r = axes(quats, i)
    j0 = j2 = k1 = k2 = 0.0
    for k in range(3):
        s = math.exp(float(scales[i, k]))
        x, y, z = s * r[k], s * r[3 + k], s * r[6 + k]
        u = lens[0] * x + lens[1] * y + lens[2] * z
        v = lens[3] * x + lens[4] * y + lens[5] * z
        w = lens[6] * x + lens[7] * y + lens[8] * z
        p, q = j[0] * u + j[1] * w, j[2] * v + j[3] * w
        gp, gq = 2 * by[2] * p + by[3] * q, 2 * by[4] * q + by[3] * p
        j0, j2, k1, k2 = j0 + gp * u, j2 + gp * w, k1 + gq * v, k2 + gq * w
        gu, gv, gw = j[0] * gp, j[2] * gq, j[1] * gp + j[3] * gq
        by_axes[k] = s * (lens[0] * gu + lens[3] * gv + lens[6] * gw)
        by_axes[3 + k] = s * (lens[1] * gu + lens[4] * gv + lens[7] * gw)
        by_axes[6 + k] = s * (lens[2] * gu + lens[5] * gv + lens[8] * gw)
        by_scales[i, k] = gu * u + gv * v + gw * w
    return j0, j2, k1, k2


@njit(inline="always")
def _by_place(x: Any, y: Any, z: Any, lens: Any, j: Any, by_j: Any, by_x: Any, by_y: Any) -> Any:
    """By the place in the camera's axes; where a slope was guarded, the spread does not follow it."""
    gx, gy = j[0] * by_x, j[2] * by_y
    gz = -(gx * x + gy * y) / z - (by_j[0] * j[0] + by_j[1] * j[1] + by_j[2] * j[2] + by_j[3] * j[3]) / z
    if lens[16] <= x / z <= lens[17]:
        slope = -j[0] * by_j[1]
        gx, gz = gx + slope / z, gz - slope * x / (z * z)
    if lens[18] <= y / z <= lens[19]:
        slope = -j[2] * by_j[3]
        gy, gz = gy + slope / z, gz - slope * y / (z * z)
    return gx, gy, gz


@njit(cache=True, nogil=True, error_model="numpy")
def unflatten(
    columns: Any, which: Any, rows: Any, sums: Any, lens: Any, grads: Any, moved: Any, first: Any, last: Any
) -> None:
    """Fill grads (means, scales, quats, opacities) for drawn Gaussians first to last, and moved [N]: how much the place
    in the picture wants to move, by pixel."""
    means, scales, quats = columns
    by_axes = np.zeros(9)
    for k in range(first, last):
        i, row, s = which[k], rows[k], sums[k]
        if row[5] == 0:  # beside the picture
            continue
        by = _by_cov(row, s)
        moved[i] = math.sqrt(by[0] * by[0] + by[1] * by[1])
        grads[3][i] = s[0] * (1 - row[5])
        x, y, z = seen_at(means, i, lens)
        j = jacobian(x, y, z, lens)
        by_j = _by_spread(scales, quats, i, lens, j, by, grads[1], by_axes)
        _by_turn(quats, i, by_axes, grads[2])
        gx, gy, gz = _by_place(x, y, z, lens, j, by_j, by[0], by[1])
        for c in range(3):
            grads[0][i, c] = lens[c] * gx + lens[3 + c] * gy + lens[6 + c] * gz


@njit(inline="always")
def _slopes(x: Any, y: Any, z: Any, count: Any, by: Any) -> Any:
    """The gradient by the direction of the sum of harmonics times by [K]."""
    gx = gy = gz = 0.0
    if count > 1:
        gy, gz, gx = -0.4886025119029199 * by[1], 0.4886025119029199 * by[2], -0.4886025119029199 * by[3]
    if count > 4:
        a, b, c, d, e = by[4], by[5], by[6], by[7], by[8]
        p, q, h = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        gx += p * (a * y - d * z) - 2 * q * c * x + 2 * h * e * x
        gy += p * (a * x - b * z) - 2 * q * c * y - 2 * h * e * y
        gz += -p * (b * y + d * x) + 4 * q * c * z
    if count > 9:
        xx, yy, zz = x * x, y * y, z * z
        a, b = 0.5900435899266435, 2.890611442640554
        c, d, e = 0.4570457994644658, 0.3731763325901154, 1.445305721320277
        gx += -6 * a * by[9] * x * y + b * by[10] * y * z + 2 * c * by[11] * x * y - 6 * d * by[12] * x * z
        gx += -c * by[13] * (4 * zz - 3 * xx - yy) + 2 * e * by[14] * x * z - 3 * a * by[15] * (xx - yy)
        gy += -3 * a * by[9] * (xx - yy) + b * by[10] * x * z - c * by[11] * (4 * zz - xx - 3 * yy)
        gy += (
            -6 * d * by[12] * y * z + 2 * c * by[13] * x * y - 2 * e * by[14] * y * z + 6 * a * by[15] * x * y
        )
        gz += b * by[10] * x * y - 8 * c * by[11] * y * z + 3 * d * by[12] * (2 * zz - xx - yy)
        gz += -8 * c * by[13] * x * z + e * by[14] * (xx - yy)
    return gx, gy, gz


@njit(cache=True, nogil=True, error_model="numpy")
def uncolour(
    means: Any,
    sh: Any,
    which: Any,
    colour: Any,
    sums: Any,
    eye: Any,
    by_means: Any,
    by_sh: Any,
    first: Any,
    last: Any,
) -> None:
    """Add to by_means, fill by_sh, for drawn Gaussians first to last; colours that were held at 0 have no gradient."""
    basis, by = np.zeros(16), np.zeros(16)
    count = sh.shape[1]
    for k in range(first, last):
        i = which[k]
        x, y, z = means[i, 0] - eye[0], means[i, 1] - eye[1], means[i, 2] - eye[2]
        near = 1 / math.sqrt(x * x + y * y + z * z)
        x, y, z = x * near, y * near, z * near
        harmonics(x, y, z, count, basis)
        for m in range(count):
            by[m] = 0.0
            for c in range(3):
                passed = sums[k, 6 + c] if colour[k, c] > 0 else 0.0
                by_sh[i, m, c] = basis[m] * passed
                by[m] += sh[i, m, c] * passed
        gx, gy, gz = _slopes(x, y, z, count, by)
        radial = gx * x + gy * y + gz * z
        by_means[i, 0] += near * (gx - x * radial)
        by_means[i, 1] += near * (gy - y * radial)
        by_means[i, 2] += near * (gz - z * radial)
