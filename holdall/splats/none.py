"""Keep every bit: the reference that other methods are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from holdall.errors import BudgetError
from holdall.kinds import Spend
from holdall.method import Paper
from holdall.packed import Packed
from holdall.splats.base import SplatCodec, given
from holdall.splats.scene import Scene
from holdall.splats.stored import scene_of


@dataclass(frozen=True, kw_only=True)
class Nothing(SplatCodec):
    """Store the scene as it is, float32: the floor that shows what a method's bytes are compared with.

    Exact, the order of Gaussians too. It can hold no budget below the scene's size.

    Shapes:
        any scene.
    Cost:
        a copy.
    Knobs:
        none.
    Differs from the paper:
        there is no paper.
    Example:
        >>> from holdall.splats.made import solids
        >>> from holdall.splats.none import Nothing
        >>> scene = solids(50)
        >>> bool((Nothing().decode(Nothing().encode(scene)).sh == scene.sh).all())
        True

    Paper: none.
    Test: tests/splats/test_floors.py
    """

    name: ClassVar[str] = "none"
    lossless: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(0, "The original, stored", "no paper claims it")

    def encode(self, x: Scene, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(given(x), budget)
        packed = Packed(x.arrays(), {"room": "splats", "method": self.to_dict()})
        if limit is not None and packed.nbytes > limit:
            raise BudgetError(limit, packed.nbytes, who="splats.none", why="it drops nothing")
        return packed.kept(to)

    def decode(self, packed: Packed) -> Scene:
        return scene_of(packed, np.float32)
