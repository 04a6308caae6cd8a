"""The photographs of lego in a size that is asked for, and trainings by them: for benchmarks of `splats.compact3dgs`.

../shared/data/scenes/lego: 100 photographs of 200 x 200, of which every tenth is held out.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from holdall.packed import Packed
from holdall.splats import Compact3DGS
from holdall.splats.compact3dgs_file import Compact, read, write
from holdall.splats.compact3dgs_start import from_photos
from holdall.splats.compact3dgs_train import Plan, learnt
from holdall.splats.compact3dgs_work import _field, _later, _learner, places_of
from holdall.splats.learner import Learner
from holdall.splats.posed import read_photos
from holdall.splats.quality import likeness
from holdall.splats.raster import render
from holdall.splats.scene import Scene

LEGO = Path(__file__).parent.parent.parent / "shared" / "data" / "scenes" / "lego"
START = 4000
WHITE = (1.0, 1.0, 1.0)


class Lego:
    """Photographs in the size that is asked for, as `fit` takes them; and trainings by them, each done once."""

    def __init__(self, side: int, steps: int, most: int):
        shots, by = read_photos(str(LEGO), hold_back=10), 200 // side
        self.cameras = tuple(c.scaled(1 / by) for c in shots.cameras)
        self._images = [shots.image(i).reshape(side, by, side, by, 3).mean((1, 3)) for i in range(len(shots))]
        self.train, self.held_out, self.points = shots.train, shots.held_out, None
        self.background, self.steps, self.most = shots.background, steps, most
        self.held = [self.cameras[i] for i in self.held_out]
        self.truth = [self._picture(self._images[i]) for i in self.held_out]
        self._done: dict[str, Any] = {}

    @staticmethod
    def _picture(image: Any) -> Any:
        return SimpleNamespace(colour=image, alpha=(np.abs(image - 1) > 2 / 255).any(2).astype(np.float32))

    def image(self, i: int) -> Any:
        return self._images[i]

    def seen(self, scene: Scene) -> dict[str, float]:
        return likeness(self.truth, [render(scene, c, WHITE) for c in self.held])

    def by_field(self, columns: Any, field: Any) -> dict[str, float]:
        """means, scales, quats, opacities, as the field itself colours each view."""
        shown = []
        for camera in self.held:
            base = field(torch.from_numpy(columns[0]), camera.place).numpy(force=True)[:, None]
            shown.append(render(Scene(*columns, base), camera, WHITE))
        return likeness(self.truth, shown)

    def _run(self, learner: Learner, quantise: Any = None) -> None:
        plan = Plan(self.steps, grow_each=max(20, min(100, self.steps // 40)), most=self.most)
        learnt(learner, lambda i: (self.cameras[i], self._images[i]), self.train, plan, quantise=quantise)

    def plain(self) -> tuple[Scene, float]:
        """(plain training, its seconds of CPU)."""
        if "plain" not in self._done:
            start, photos = time.process_time(), self
            learner = Learner(from_photos(photos, START).with_degree(3), steps=self.steps)  # type: ignore[arg-type]
            self._run(learner)
            self._done["plain"] = learner.scene(), time.process_time() - start
        found: tuple[Scene, float] = self._done["plain"]
        return found

    def compact(self, recipe: Compact3DGS, books: bool = True) -> tuple[Any, float]:
        """(the learner, its seconds of CPU). books: quantised, as the method does."""
        key = f"{recipe} {books}"
        if key not in self._done:
            start, scene = time.process_time(), from_photos(self, START)  # type: ignore[arg-type]
            learner = _learner(recipe, scene, _field(recipe, scene, self.most), self.steps, WHITE)
            self._run(learner, _later(recipe, learner) if books else None)
            self._done[key] = learner, time.process_time() - start
        found: tuple[Any, float] = self._done[key]
        return found

    def stored(self, recipe: Compact3DGS) -> tuple[Packed, Compact, float]:
        learner, took = self.compact(recipe)
        places = places_of([self.cameras[i] for i in self.train])
        stream, parts = write(learner.compact(places), recipe.bits, recipe.threshold)
        packed = Packed({"scene": stream}, {"room": "splats", "method": recipe.to_dict()})
        packed.notes = {"parts": parts}
        return packed, read(stream), took


def columns(x: Any) -> tuple[Any, ...]:
    return x.means, x.scales, x.quats, x.opacities
