"""Any moving scene as spacetime Gaussians: their bells, ways and turns are fitted to where they are at some times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.splats.scene import Scene
from holdall.splats.spacetime import SpacetimeScene, at_rest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.moving import Moving

_OWN = np.linspace(0, 1, 9)  # times that a Gaussian's own is chosen from
_SPANS = np.geomspace(0.05, 8, 10)  # of a bell
_EVEN = 0.02  # of a bell's best fit: what it may be worse by, for a longer one
_STEADY = 1e-6


def followed(moving: Moving, count: int = 13) -> SpacetimeScene:
    """By its Gaussians at `count` even times. Changes of size and opacity become part of the bell; colours are those
    of each Gaussian's own time."""
    if isinstance(moving, SpacetimeScene):
        return moving
    times = np.linspace(0, 1, count)
    scenes = [moving.at(float(t)) for t in times]
    opacity = np.stack([_alpha(s.opacities) for s in scenes], 1)  # [N, T]
    size = np.stack([s.scales.mean(1, dtype=np.float64) for s in scenes], 1)
    shown = opacity * np.exp(2 * (size - size.max(1, keepdims=True)))
    own, span, alpha = bells(shown, times)
    best = shown.argmax(1)
    rest = _chosen(scenes, best)
    weight = shown / np.maximum(shown.max(1, keepdims=True), 1e-9) + 1e-3
    off = times - own[:, None]
    means = _fitted(np.stack([s.means for s in scenes], 1), off, weight, 3)
    turns = _fitted(_aligned(np.stack([s.quats for s in scenes], 1), best), off, weight, 1)
    quats = turns[:, 0]
    quats[np.linalg.norm(quats, axis=1) < 0.1] = [1, 0, 0, 0]
    fresh = at_rest(rest)
    return SpacetimeScene(
        means[:, 0], rest.scales, quats, np.log(alpha / (1 - alpha)), means[:, 1:], turns[:, 1], own, np.log(span),
        fresh.features, fresh.decoder, moving.cameras,
    )  # fmt: skip


def bells(shown: NDArray[Any], times: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(own times, spans, heights [N]) of the bells that come nearest to what shows [N, T] of each; of nearly equal ones
    the longest, in the middle."""
    found = [np.zeros(len(shown)) for _ in range(3)]
    least = np.full(len(shown), np.inf)
    whole = (shown**2).sum(1)
    for span in _SPANS[::-1]:
        for own in sorted(_OWN, key=lambda t: abs(t - 0.5)):
            bell = np.exp(-(((times - own) / span) ** 2))
            height = np.clip(shown @ bell / (bell @ bell), 1e-5, 1 - 1e-5)
            miss = ((shown - height[:, None] * bell) ** 2).sum(1)
            better = miss < least - _EVEN * np.minimum(least, whole) - 1e-9
            least[better] = miss[better]
            for into, value in zip(found, (own, span, height), strict=True):
                into[better] = value[better] if isinstance(value, np.ndarray) else value
    return found[0], found[1], found[2]


def _fitted(values: NDArray[Any], off: NDArray[Any], weight: NDArray[Any], degree: int) -> NDArray[Any]:
    """[N, degree + 1, D] of polynomials of off [N, T] through values [N, T, D]."""
    powers = off[:, :, None] ** np.arange(degree + 1)
    held = (powers * weight[:, :, None]).swapaxes(1, 2)
    hold = _STEADY * np.eye(degree + 1) * weight.sum(1)[:, None, None]
    return np.linalg.solve(held @ powers + hold, held @ values.astype(np.float64))


def _aligned(quats: NDArray[Any], best: NDArray[Any]) -> NDArray[Any]:
    """[N, T, 4] of length 1, with the signs that agree with the one at the best time."""
    unit = quats.astype(np.float64)
    unit = unit / np.abs(unit).max(2, keepdims=True)
    unit = unit / np.linalg.norm(unit, axis=2, keepdims=True)
    agree = (unit * unit[np.arange(len(unit)), best][:, None]).sum(2, keepdims=True)
    return unit * np.where(agree < 0, -1, 1)


def _chosen(scenes: list[Scene], best: NDArray[Any]) -> Scene:
    """Each Gaussian as it is at its best time."""
    n = np.arange(len(best))
    columns = {name: np.stack([s.arrays()[name] for s in scenes])[best, n] for name in scenes[0].arrays()}
    return Scene(**columns)


def _alpha(opacities: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-np.clip(opacities.astype(np.float64), -50, 50))))
