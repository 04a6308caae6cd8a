"""Keep the most opaque Gaussians: the pruning that tools offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from holdall.kinds import Spend
from holdall.method import Paper
from holdall.packed import Packed
from holdall.splats.base import SplatCodec, given
from holdall.splats.scene import Scene
from holdall.splats.stored import halves, most_that_fit, scene_of

_SHARE = 0.5  # kept where no budget is given


@dataclass(frozen=True, kw_only=True)
class Opacity(SplatCodec):
    """Keep the most opaque Gaussians in half precision and forget the others: a floor.

    What viewers call pruning. It knows neither size nor what hides what: large faint Gaussians that make a wall go
    first, small opaque ones inside of it stay.

    Shapes:
        any scene; those that are kept stay in their order.
    Cost:
        two bytes a number of what is kept.
    Knobs:
        none.
    Differs from the paper:
        there is no paper.
    Example:
        >>> from holdall.splats.made import solids
        >>> from holdall.splats.opacity import Opacity
        >>> scene = solids(1000)
        >>> kept = Opacity().decode(Opacity().encode(scene, "30%"))
        >>> float(kept.opacities.min()) > float(scene.opacities.min())
        True

    Paper: none.
    Test: tests/splats/test_floors.py
    """

    name: ClassVar[str] = "opacity"
    paper: ClassVar[Paper] = Paper(0, "The most opaque Gaussians", "no paper claims it")

    def encode(self, x: Scene, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(given(x), budget)
        order = np.argsort(-x.opacities, kind="stable")
        meta = {"room": "splats", "method": self.to_dict()}

        def made(kept: int) -> Packed:
            return Packed(halves(x.take(np.sort(order[:kept]))), meta)

        return most_that_fit(len(x), limit, _SHARE, made, "splats.opacity").kept(to)

    def decode(self, packed: Packed) -> Scene:
        return scene_of(packed, np.float16)
