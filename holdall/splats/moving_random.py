"""A random subset of a moving scene's Gaussians: what a ranking of them has to beat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.splats.base_moving import MovingCodec, given_moving
from holdall.splats.hexplane import PAIRS, HexScene
from holdall.splats.scene import NAMES, Scene
from holdall.splats.stored import most_that_fit

_SHARE = 0.45
_LARGEST = 65504


@dataclass(frozen=True, kw_only=True)
class MovingRandom(MovingCodec):
    """Keep Gaussians of a moving scene by lot, and all numbers in float16: the floor of methods that choose.

    Planes and layers stay whole, so that a budget below theirs cannot be held.

    Shapes:
        a HexScene of N Gaussians, planes and layers.
    Cost:
        a copy.
    Knobs:
        seed, of the lot.
    Differs from the paper:
        there is no paper.
    Example:
        >>> from holdall.splats.moving_random import MovingRandom
        >>> from holdall.splats.quality_moving import real
        >>> len(MovingRandom().decode(MovingRandom().encode(real()))) < len(real()) / 2
        True

    Paper: none.
    Test: tests/splats/test_light4gs.py
    """

    name: ClassVar[str] = "moving_random"
    paper: ClassVar[Paper] = Paper(0, "A random subset of a moving scene's Gaussians", "no paper claims it")

    seed: int = knob(0, "which Gaussians are kept", other=1)

    def encode(self, x: HexScene, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(given_moving(x), budget)
        lot = np.random.default_rng(self.seed).permutation(len(x))
        meta = {"room": "splats", "method": self.to_dict(), "clock": list(x.clock)}

        def made(kept: int) -> Packed:
            some = x.take(np.sort(lot[:kept])).arrays().items()
            return Packed({k: np.clip(a, -_LARGEST, _LARGEST).astype(np.float16) for k, a in some}, meta)

        return most_that_fit(len(x), limit, _SHARE, made, "splats.moving_random").kept(to)

    def decode(self, packed: Packed) -> HexScene:
        found: dict[str, Any] = {name: np.asarray(a) for name, a in packed.arrays.items()}
        if any(a.dtype != np.float16 for a in found.values()) or not {*NAMES, "frame"} <= set(found):
            raise CorruptArtefact("a moving scene", "its sections are not those of one")
        planes: dict[int, list[Any]] = {}
        for name in (f"plane/{s}/{i}" for s in range(len(found)) for i in range(len(PAIRS))):
            if name in found:
                planes.setdefault(int(name.split("/")[1]), []).append(found[name])
        layers = {k.removeprefix("layer/"): v for k, v in found.items() if re.match("layer/", k)}
        try:
            clock = packed.meta["clock"]
            quats = found["quats"].astype(np.float32)
            quats[np.abs(quats).max(1) == 0, 0] = 1
            still = Scene(*(found[name] if name != "quats" else quats for name in NAMES))
            x = HexScene(
                still, tuple(map(tuple, planes.values())), layers, found["frame"], (clock[0], clock[1])
            )
            return x.checked()
        except (BadInput, KeyError, TypeError, IndexError, ValueError) as fault:
            raise CorruptArtefact("a moving scene", f"its sections do not fit each other: {fault}") from fault
