"""A scene made by rule, where none was trained: solids with patterns and highlights, as trained scenes look inside.

Tests, checks and the demo draw it; no figure of a benchmark is taken on it where a trained scene can be had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.scene import C0, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IDLE = 0.2  # share of Gaussians that hardly show, as training leaves them: faint, tiny, or inside of a solid


def solids(count: int = 3000, degree: int = 2, seed: int = 0) -> Scene:
    """A ring, a ball and a floor, `count` Gaussians in all. Nearby ones are alike, as in trained scenes."""
    rng = np.random.default_rng(seed)
    shares = rng.multinomial(count, (0.4, 0.3, 0.3))
    parts = [made(rng, n) for made, n in zip((ring, ball, floor), shares, strict=True)]
    means, normals = (np.concatenate(x) for x in zip(*parts, strict=True))
    scene = dressed(rng, means, normals)
    return scene.take(rng.permutation(count)).with_degree(degree)


def dressed(rng: np.random.Generator, means: NDArray[Any], normals: NDArray[Any]) -> Scene:
    """Gaussians [n] at places of surfaces, of degree 3: flat, patterned, shining, and some of them idle."""
    count = len(means)
    colours = _pattern(means)
    flat = np.log(1.6 * np.sqrt(30 / count) * np.array([1, 1, 0.15])) - 1
    scales = flat + 0.35 * rng.standard_normal((count, 3)) + 0.25 * _wave(means, 2.0)[:, None]
    quats = _facing(normals, rng)
    opacities = np.where(rng.random(count) < 0.7, 3.0, 0.5) + 1.2 * rng.standard_normal(count)
    sh = np.zeros((count, 16, 3))
    sh[:, 0] = (colours - 0.5) / C0 + 0.05 * rng.standard_normal((count, 3))
    for i, fall in ((1, 0.25), (4, 0.12), (9, 0.06)):
        shine = (normals @ rng.standard_normal((3, 2 * int(i**0.5) + 1)))[:, :, None] * fall
        sh[:, i : i + shine.shape[1]] = shine + fall / 4 * rng.standard_normal((*shine.shape[:2], 3))
    idle = np.flatnonzero(rng.random(count) < _IDLE)
    kind = rng.integers(0, 3, len(idle))
    opacities[idle[kind == 0]] -= 6
    scales[idle[kind == 1]] -= 2.5
    means = means.copy()
    means[idle[kind == 2]] -= 0.12 * normals[idle[kind == 2]]
    return Scene(means, scales, quats, opacities, sh)


def ring(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = 2 * np.pi * rng.random((2, n))
    out = np.stack([np.cos(a) * np.cos(b), np.sin(b), np.sin(a) * np.cos(b)], 1)
    along = np.stack([np.cos(a), np.zeros(n), np.sin(a)], 1)
    return 0.9 * along + 0.3 * out + [0, 0.4, 0], out


def ball(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    out = rng.standard_normal((n, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return 0.45 * out + [0, 0.4, 0], out


def floor(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    x, z = rng.uniform(-1.4, 1.4, (2, n))
    return np.stack([x, np.full(n, -0.2), z], 1), np.tile([0.0, 1.0, 0.0], (n, 1))


def _pattern(means: NDArray[Any]) -> NDArray[Any]:
    """Colours [n, 3] in [0, 1]: stripes and squares over slow waves."""
    squares = ((np.floor(4 * means[:, 0]) + np.floor(4 * means[:, 2])) % 2)[:, None]
    slow = np.stack([_wave(means, f) for f in (1.1, 1.7, 2.3)], 1)
    return np.clip(0.5 + 0.3 * slow + 0.25 * (squares - 0.5), 0.02, 0.98)


def _wave(means: NDArray[Any], rate: float) -> NDArray[Any]:
    """[n] in [-1, 1], smooth in space."""
    found: NDArray[Any] = np.sin(rate * 3 * means[:, 0] + 1) * np.cos(
        rate * 2 * means[:, 1] - rate * means[:, 2]
    )
    return found


def _facing(normals: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Quaternions [n, 4] that turn the third axis, the thin one, to the normal; lengths as optimisers leave them."""
    quats = np.concatenate(
        [1 + normals[:, 2:], -normals[:, 1:2], normals[:, :1], np.zeros((len(normals), 1))], 1
    )
    quats += 1e-3 + 0.05 * rng.standard_normal(quats.shape)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    return quats * rng.uniform(0.7, 1.4, (len(quats), 1))
