"""A made scene that moves, filmed, and trainings by it; and plain ways to store spacetime Gaussians: for benchmarks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import zstandard

from holdall.packed import Packed
from holdall.splats.coded_near import keys
from holdall.splats.compact3dgs_file import grid_of
from holdall.splats.compact3dgs_start import from_photos
from holdall.splats.compact3dgs_train import Plan, learnt
from holdall.splats.compact_moving import CompactMoving
from holdall.splats.made_moving import filmed, held_out, moving_solids, ring_of
from holdall.splats.moving import Moving, likeness
from holdall.splats.spacetime import SHAPES, SpacetimeScene, at_rest
from holdall.splats.spacetime_from import followed
from holdall.splats.spacetime_train import SpacetimeLearner

START, MOST = 3000, 6000


class Film:
    """What was filmed, as `fit` takes it; and trainings by it, each done once."""

    def __init__(self, count: int, side: int, steps: int):
        self.truth, self.side, self.steps = moving_solids(count), side, steps
        shots = filmed(self.truth, width=side)
        self.held = held_out(self.truth, 24, 12, side)
        self.cameras = tuple(replace(s.camera, time=s.time) for s in shots)
        self._pictures = [s.picture for s in shots]
        self.train, self.held_out, self.points = tuple(range(len(shots))), (), None
        self.background = np.ones(3, np.float32)
        self._done: dict[str, Any] = {}

    def image(self, i: int) -> Any:
        return self._pictures[i]

    def view(self, i: int) -> tuple[Any, Any]:
        return self.cameras[i], self._pictures[i]

    def seen(self, x: Moving) -> dict[str, float]:
        return {"gaussians": len(x), "psnr": likeness(x, self.held)}

    def plain(self, by_lot: bool) -> tuple[SpacetimeScene, float]:
        """(plain spacetime Gaussians, seconds of CPU): from places by lot, growing; or from where the solids are."""
        key = f"plain {by_lot}"
        if key not in self._done:
            begun = time.process_time()
            start = at_rest(from_photos(self, START)) if by_lot else followed(self.truth)  # type: ignore[arg-type]
            learner = SpacetimeLearner(start, steps=self.steps)
            grow = {"grow_each": max(20, min(100, self.steps // 40)), "most": MOST}
            plan = Plan(self.steps, **grow) if by_lot else Plan(self.steps, grow_until=0)
            learnt(learner, self.view, self.train, plan)
            self._done[key] = learner.moving(), time.process_time() - begun
        found: tuple[SpacetimeScene, float] = self._done[key]
        return found

    def packed(self, recipe: CompactMoving) -> tuple[Packed, SpacetimeScene, float]:
        """Of the plain ones that began where the solids are, from the pictures that these had."""
        key = repr(recipe)
        if key not in self._done:
            begun, known = (
                time.process_time(),
                replace(self.plain(False)[0], cameras=tuple(ring_of(12, width=self.side))),
            )
            made = recipe.encode(known)
            self._done[key] = made, recipe.decode(made), time.process_time() - begun
        found: tuple[Packed, SpacetimeScene, float] = self._done[key]
        return found

    def recipe(self, **more: Any) -> CompactMoving:
        return CompactMoving(steps=self.steps, width=self.side, **more)


def plainly(x: SpacetimeScene, bits: int, place_bits: int) -> tuple[int, SpacetimeScene]:
    """(bytes, as it comes back): each column in even steps between its ends, along Morton's curve, then zstd."""
    grid, cell = grid_of(x.means.astype(np.float64), 12)
    x = x.take(np.argsort(keys(np.floor((x.means - grid) / cell).astype(np.int64)), kind="stable"))
    raw, back = b"", {}
    for name, array in x.columns().items():
        columns, found = array.reshape(len(x), -1), np.zeros((len(x), array[0].size), np.float32)
        steps = (1 << (place_bits if name == "means" else bits)) - 1
        for c, column in enumerate(columns.T):
            low, span = float(column.min()), max(float(np.ptp(column)), 1e-12)
            codes = np.rint((column - low) / span * steps)
            found[:, c] = low + codes / steps * span
            raw += np.float32([low, span]).tobytes()
            whole = codes.astype("<u2")
            raw += (
                whole.astype(np.uint8).tobytes()
                if steps < 256
                else whole.view(np.uint8).reshape(-1, 2).T.tobytes()
            )
        back[name] = found.reshape(-1, *SHAPES[name])
    raw += b"".join(a.astype(np.float16).tobytes() for a in x.decoder)
    return len(zstandard.ZstdCompressor(19).compress(raw)), replace(x, **back)


def halves(x: SpacetimeScene) -> tuple[int, SpacetimeScene]:
    small = {name: a.astype(np.float16) for name, a in x.columns().items()}
    raw = b"".join(np.ascontiguousarray(a.reshape(len(x), -1).T).tobytes() for a in small.values())
    return len(zstandard.ZstdCompressor(19).compress(raw)), replace(x, **small)


def rough(x: SpacetimeScene) -> dict[str, tuple[int, SpacetimeScene]]:
    return {
        "float16 + zstd": halves(x), "8 bits, places 16, + zstd": plainly(x, 8, 16),
        "7 bits, places 12, + zstd": plainly(x, 7, 12), "8 bits + zstd": plainly(x, 8, 8),
        "6 bits, places 11, + zstd": plainly(x, 6, 11), "5 bits, places 10, + zstd": plainly(x, 5, 10),
        "4 bits, places 10, + zstd": plainly(x, 4, 10),
    }  # fmt: skip
