"""Columns of a scene as sections of a file, for methods that keep some Gaussians as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.splats.scene import NAMES, Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SHAPES = {"means": 3, "scales": 3, "quats": 4, "opacities": 0}


def halves(scene: Scene) -> dict[str, NDArray[Any]]:
    """float16 of all columns; what is too large for it becomes its largest."""
    return {name: np.clip(a, -65504, 65504).astype(np.float16) for name, a in _plain(scene).items()}


def _plain(scene: Scene) -> dict[str, NDArray[Any]]:
    """Rotations at length 1, so that short ones do not vanish."""
    unit = scene.quats.astype(np.float64)
    unit = unit / np.abs(unit).max(1, keepdims=True)
    return {**scene.arrays(), "quats": unit / np.linalg.norm(unit, axis=1, keepdims=True)}


def scene_of(packed: Packed, dtype: type[np.generic]) -> Scene:
    """From sections of that type; CorruptArtefact for others."""
    arrays: dict[str, Any] = {}
    for name in NAMES:
        if name not in packed.arrays:
            raise CorruptArtefact("a scene", f"it has no {name}")
        arrays[name] = packed.arrays[name]
        if arrays[name].dtype != dtype:
            raise CorruptArtefact("a scene", f"its {name} are {arrays[name].dtype}")
    n = len(arrays["means"]) if arrays["means"].ndim else 0
    wanted = {name: (n, wide) if wide else (n,) for name, wide in _SHAPES.items()}
    sh = arrays["sh"].shape
    if not n or any(arrays[k].shape != s for k, s in wanted.items()) or len(sh) != 3:
        raise CorruptArtefact("a scene", "its columns do not fit each other")
    if sh[0] != n or sh[1] not in (1, 4, 9, 16) or sh[2] != 3:
        raise CorruptArtefact("a scene", f"colours of shape {sh}")
    return Scene(**arrays)


def most_that_fit(
    count: int, limit: int | None, share: float, made: Callable[[int], Packed], who: str
) -> Packed:
    """Of `made(kept)` the one with most kept; without a limit a share is kept."""
    if limit is None:
        return made(max(1, int(share * count)))
    least = made(1).nbytes
    if least > limit:
        raise BudgetError(limit, least, who=who, why="one Gaussian")
    low, high = 1, count
    while low < high:
        kept = (low + high + 1) // 2
        if made(kept).nbytes <= limit:
            low = kept
        else:
            high = kept - 1
    return made(low)
