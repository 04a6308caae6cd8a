"""Keep Gaussians by lot: what any method must beat at the same number of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.splats.base import SplatCodec, given
from holdall.splats.scene import Scene
from holdall.splats.stored import halves, most_that_fit, scene_of

_SHARE = 0.5  # kept where no budget is given


@dataclass(frozen=True, kw_only=True)
class Random(SplatCodec):
    """Keep a random share of the Gaussians in half precision and forget the others: the floor.

    Holes appear everywhere; a method that does not beat it at equal bytes is broken.

    Shapes:
        any scene; those that are kept stay in their order.
    Cost:
        two bytes a number of what is kept.
    Knobs:
        seed, of the lot.
    Differs from the paper:
        there is no paper.
    Example:
        >>> from holdall.splats.made import solids
        >>> from holdall.splats.random import Random
        >>> len(Random().decode(Random().encode(solids(1000), "30%"))) < 600
        True

    Paper: none.
    Test: tests/splats/test_floors.py
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[Paper] = Paper(0, "A random subset of the Gaussians", "no paper claims it")

    seed: int = knob(0, "which Gaussians are kept", other=1, at={"budget": "25%"})

    def encode(self, x: Scene, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(given(x), budget)
        lot = np.random.default_rng(self.seed).permutation(len(x))
        meta = {"room": "splats", "method": self.to_dict()}

        def made(kept: int) -> Packed:
            return Packed(halves(x.take(np.sort(lot[:kept]))), meta)

        return most_that_fit(len(x), limit, _SHARE, made, "splats.random").kept(to)

    def decode(self, packed: Packed) -> Scene:
        return scene_of(packed, np.float16)
