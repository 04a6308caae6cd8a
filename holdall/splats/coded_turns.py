"""Rotations as what shows of them (numba): where the axis points that stands out, then how the other two lie around it.

A Gaussian looks the same under half turns and with its axes renamed, so scales are sorted and the direction of the axis
has no sign. It is coded in a disc around where the neighbours' axes point, whose area is true to the sphere's; the turn
around it as an angle from where the neighbours' second axes point. Steps are the Gaussian's own: of a ball none shows.
Only exactly rounded operations decide what is coded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.splats.coded_bits import CONTEXTS, finished, fresh, number, started
from holdall.splats.coded_columns import size_of

PLACES = 512
_HALF = np.pi / 2


def written(frames: np.ndarray, *known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, frames as they decode). frames: float64 [N, 3, 3], a row an axis, the longest first. known: near, parts,
    needle [N] (whether the first axis stands out, or the last), steps [N, 2], side [N, 2]."""
    room = 64 + len(frames) * 12
    coder, data = started(None, room)
    back = frames.copy()
    _walk(coder, data, *fresh(3 * PLACES, 3), back, *known)
    assert coder[2] <= room
    return finished(coder, data), back


def read(raw: np.ndarray, *known: np.ndarray) -> np.ndarray:
    coder, data = started(raw)
    frames = np.zeros((len(known[0]), 3, 3))
    _walk(coder, data, *fresh(3 * PLACES, 3), frames, *known)
    return frames


@njit(cache=True, nogil=True)
def _cross(a: Any, b: Any, out: Any) -> None:
    x, y, z = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
    out[0], out[1], out[2] = x, y, z


@njit(cache=True, nogil=True)
def _dot(a: Any, b: Any) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, nogil=True)
def _unit(a: Any) -> Any:
    """Made of length 1 in place; False if it has none."""
    length = np.sqrt(_dot(a, a))
    if not length > 1e-9:
        return False
    a /= length
    return True


@njit(cache=True, nogil=True)
def _mean(frames: Any, near: Any, parts: Any, i: Any, axis: Any, across: Any, out: Any) -> Any:
    """The neighbours' axes, each with the sign that agrees with the sum so far; less what lies along `across`."""
    out[:] = 0.0
    for k in range(near.shape[1]):
        if near[i, k] >= 0:
            one = frames[near[i, k], axis]
            sign = 1.0 if _dot(one, out) >= 0 else -1.0
            for c in range(3):
                out[c] += sign * parts[i, k] * one[c]
    along = _dot(out, across)
    for c in range(3):
        out[c] -= along * across[c]
    return _unit(out)


@njit(cache=True, nogil=True)
def _any_across(a: Any, out: Any) -> None:
    """A unit vector at right angles to a unit vector."""
    out[:] = 0.0
    least = 0
    for c in range(1, 3):
        if abs(a[c]) < abs(a[least]):
            least = c
    out[least] = 1.0
    along = a[least]
    for c in range(3):
        out[c] -= along * a[c]
    _unit(out)


@njit(cache=True, nogil=True)
def _turned(angle: Any) -> Any:
    """(cosine, sine) by their series, for |angle| up to 1.6."""
    x = angle * angle
    c = 1 - x / 2 * (1 - x / 12 * (1 - x / 30 * (1 - x / 56 * (1 - x / 90 * (1 - x / 132)))))
    s = angle * (1 - x / 6 * (1 - x / 20 * (1 - x / 42 * (1 - x / 72 * (1 - x / 110 * (1 - x / 156))))))
    length = np.sqrt(c * c + s * s)
    return c / length, s / length


@njit(cache=True, nogil=True)
def _disc(true: Any, basis: Any, step: Any) -> Any:
    """Where a direction or its opposite is in the disc around basis[0], in steps."""
    a, b, c = _dot(true, basis[1]), _dot(true, basis[2]), _dot(true, basis[0])
    if c < 0:
        a, b, c = -a, -b, -c
    wide = np.sqrt(2 / (1 + c)) / step
    return np.int64(np.rint(a * wide)), np.int64(np.rint(b * wide))


@njit(cache=True, nogil=True)
def _pointed(u: Any, v: Any, basis: Any, out: Any) -> None:
    r = min(u * u + v * v, 3.99)
    high, wide = 1 - r / 2, np.sqrt(1 - r / 4)
    for c in range(3):
        out[c] = high * basis[0, c] + wide * (u * basis[1, c] + v * basis[2, c])
    if not _unit(out):
        out[:] = basis[0]


@njit(cache=True, nogil=True)
def _coded(coder: Any, data: Any, counters: Any, weights: Any, where: Any, misses: Any, near: Any, side: Any, i: Any,
           a: Any, step: Any, other: Any, q: Any) -> Any:  # fmt: skip
    """One of the three numbers. misses [N, 3]: in radians; other: the one before, in steps."""
    off, k = 0.0, 0
    while k < near.shape[1] and near[i, k] >= 0:
        off += misses[near[i, k], a] * (1 if k else 2)
        k += 1
    off = off / (k + 1) / step if k else 1.0
    first = misses[near[i, 0], a] / step if k else 1.0
    fine = size_of(1 / step)
    where[0] = size_of(off) * 16 + fine
    where[1] = size_of(off) * 16 + size_of(other)
    where[2] = fine * 32 + side[i, 0]
    where[3] = fine * 16 + size_of(first)
    where[4] = fine * 16 + side[i, 1]
    where[5] = fine * 16 + size_of(other)
    for k in range(CONTEXTS):
        where[k] += a * PLACES
    q = number(coder, data, counters, weights, where, a, q)
    misses[i, a] = abs(q) * step
    return q


@njit(cache=True, nogil=True)
def _expected(frames: Any, near: Any, parts: Any, i: Any, main: Any, minor: Any, basis: Any) -> None:
    """A basis around where the neighbours' axes point."""
    if not _mean(frames, near, parts, i, main, np.zeros(3), basis[0]):
        basis[0] = 0.0
        basis[0, main] = 1.0
    if not _mean(frames, near, parts, i, minor, basis[0], basis[1]):
        _any_across(basis[0], basis[1])
    _cross(basis[0], basis[1], basis[2])


@njit(cache=True, nogil=True)
def _around(basis: Any, found: Any, across: Any) -> None:
    """Two axes [2, 3] at right angles to the found one, the first as the neighbours' second."""
    along = _dot(basis[1], found)
    for c in range(3):
        across[0, c] = basis[1, c] - along * found[c]
    if not _unit(across[0]):
        _any_across(found, across[0])
    _cross(found, across[0], across[1])


@njit(cache=True, nogil=True)
def _walk(coder: Any, data: Any, counters: Any, weights: Any, frames: Any, near: Any, parts: Any, needle: Any,
          steps: Any, side: Any) -> None:  # fmt: skip
    """Code `frames`, which become what decoding gives; or fill them. One call codes, so that it is compiled once."""
    n, decode, where = len(frames), coder[4] == 1, np.zeros(CONTEXTS, np.int64)
    misses, basis, q = np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3, np.int64)
    found, across = np.zeros(3), np.zeros((2, 3))
    for i in range(n):
        main, minor = (0, 2) if needle[i] else (2, 0)
        step, turn = steps[i, 0], steps[i, 1]
        q[:] = 0
        _expected(frames, near, parts, i, main, minor, basis)
        if not decode:
            q[0], q[1] = _disc(frames[i, main], basis, step)
        for a in range(3):
            if a == 2:
                _pointed(q[0] * step, q[1] * step, basis, found)
                _around(basis, found, across)
                step = turn
                if turn >= _HALF:
                    break
                if not decode:
                    x, y = _dot(frames[i, minor], across[0]), _dot(frames[i, minor], across[1])
                    q[2] = np.int64(np.rint(np.arctan(y / x) / turn)) if x != 0 else np.int64(_HALF / turn)
            other = abs(1.0 * q[0]) if a else 0.0
            q[a] = _coded(coder, data, counters, weights, where, misses, near, side, i, a, step, other, q[a])
        cosine, sine = _turned(min(max(q[2] * turn, -1.6), 1.6))
        frames[i, main] = found
        for c in range(3):
            frames[i, minor, c] = cosine * across[0, c] + sine * across[1, c]
        _cross(frames[i, 2], frames[i, 0], frames[i, 1])
