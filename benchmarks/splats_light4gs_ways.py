"""What splats_light4gs.py trains on and compares with: a cloud to begin from, scenes at rest, numbers of few bits."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import zstandard

from holdall.packed import Packed
from holdall.splats.hexplane import PAIRS, HexScene
from holdall.splats.hexplane_learn import SHORT, Course, HexLearner, fit_moving, learnt
from holdall.splats.light4gs import Light4GS
from holdall.splats.light4gs_learn import spatio_temporal
from holdall.splats.made_moving import MovingSolids, filmed, held_out, moving_solids, ring_of
from holdall.splats.moving import Moving, likeness
from holdall.splats.scene import C0, NAMES, Scene

TIMES = np.linspace(0, 1, 12).tolist()
LONGER = 600  # steps: as many as Light4GS takes for this scene


class Halted(Moving):
    """A moving scene at one of its moments, for ever."""

    def __init__(self, scene: Scene):
        self.scene = scene

    def at(self, t: float) -> Scene:
        return self.scene

    def arrays(self) -> Any:
        return self.scene.arrays()

    def __len__(self) -> int:
        return len(self.scene)


def points_of(truth: MovingSolids, seed: int = 1) -> tuple[Any, Any]:
    """A cloud as structure from motion leaves one: of each Gaussian a place at some moment, shaken, and its colour."""
    rng = np.random.default_rng(seed)
    when = rng.integers(0, len(TIMES), len(truth))
    places = np.zeros((len(truth), 3))
    for i, t in enumerate(TIMES):
        places[when == i] = truth.at(t).means[when == i]
    return places + 0.02 * rng.standard_normal(places.shape), np.clip(0.5 + C0 * truth.scene.sh[:, 0], 0, 1)


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.args, self.truth = args, moving_solids(args.gaussians)
        self.shots = filmed(self.truth, width=args.width)
        self.apart = held_out(self.truth, width=args.width)
        self.cameras = ring_of(12, width=args.width)
        self.x = self.fitted(self.truth, args.steps)
        self.packed: Packed | None = None
        self.more: HexScene | None = None

    def fitted(self, truth: Any, steps: int) -> HexScene:
        places, colours = points_of(self.truth)
        shots = filmed(truth, width=self.args.width)
        start = time.process_time()
        course = Course(steps=steps, most=len(places) * 5 // 4)
        x = fit_moving(shots, places, colours, course)
        print(f"fitted {len(x)} Gaussians in {time.process_time() - start:.0f} s of CPU", flush=True)
        return x

    def seen(self, x: Moving) -> float:
        return likeness(x, self.apart)

    def onwards(self, x: HexScene, steps: int) -> HexScene:
        """Trained on by the same pictures, with no price of bits."""
        learner = HexLearner(x, steps=steps, rates=SHORT, speed=0.3)
        learnt(learner, self.shots, Course(steps=steps, still=0.0, grow_until=0.0))
        return learner.hex_scene(tuple(self.shots))

    def longer(self) -> HexScene:
        """Trained on, whole, for as many steps as Light4GS takes."""
        if self.more is None:
            self.more = self.onwards(self.x, LONGER)
        return self.more

    def best(self, share: float) -> Any:
        seen = spatio_temporal(self.x, self.cameras, TIMES)
        return np.sort(np.argsort(-seen)[: round(len(self.x) * (1 - share))])

    def full(self) -> Packed:
        if self.packed is None:
            start = time.process_time()
            self.packed = Light4GS().encode(self.x)
            self.packed.notes["cpu_s"] = time.process_time() - start
        return self.packed


def in_bits(x: HexScene, bits: int) -> tuple[int, HexScene]:
    """(bytes with zstd, as decoded): planes in so many bits between each one's ends, places in 16, the rest in 8."""
    parts, back = [], {}
    for name, a in x.arrays().items():
        if name.startswith("layer") or name == "frame":
            half = a.astype(np.float16)
            parts.append(half.tobytes())
            back[name] = half.astype(np.float32)
            continue
        depth = 16 if name == "means" else bits if name.startswith("plane") else 8
        low, high = float(a.min()), float(a.max())
        step = max(high - low, 1e-9) / ((1 << depth) - 1)
        codes = np.rint((a - low) / step).astype(np.uint16 if depth > 8 else np.uint8)
        parts.append(np.ascontiguousarray(codes.T).tobytes() + np.array([low, step], np.float32).tobytes())
        back[name] = (low + codes * step).astype(np.float32)
    squeeze = zstandard.ZstdCompressor(level=19)
    return sum(len(squeeze.compress(p)) for p in parts), rebuilt(x, back)


def rebuilt(x: HexScene, arrays: dict[str, Any]) -> HexScene:
    planes = tuple(tuple(arrays[f"plane/{s}/{i}"] for i in range(len(PAIRS))) for s in range(len(x.planes)))
    layers = {k: arrays[f"layer/{k}"] for k in x.layers}
    return HexScene(Scene(*(arrays[n] for n in NAMES)), planes, layers, arrays["frame"], x.clock)
