"""Quantise and entropy-code a scene by what of it is seen: any size, in seconds, without photographs or training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.splats.base import SplatCodec, given, stream_of
from holdall.splats.scene import Scene

_ALLOWED = 0.987  # of a budget is aimed at
_NEAR = 0.98  # of a budget is good enough
_CLOSE = 0.005  # of a quality asked for is good enough
_FINEST, _COARSEST = 1e-7, 1e3  # dials
_ROUNDS, _SAME = 14, 3e-3  # of a search; dials that are one
_STARTS = 0.004
_LARGE, _RUNS, _RUN = 40_000, 5, 2000  # Gaussians; runs of them that stand for the whole


@dataclass(frozen=True, kw_only=True)
class Coded(SplatCodec):
    """Packs a scene to any size or quality in seconds, from the file alone: what `holdall pack scene.ply` uses.

    The scene is looked at from a ring of views (its own cameras, or some on a sphere around it). What each Gaussian
    adds to the pictures, and how much it would be missed there, decides whether it is kept and how fine its numbers
    are; one dial sets all steps. Places become a tree of halvings, rotations directions without a sign, scales are
    sorted, colours turned to where they vary independently; each number is predicted from its neighbours and coded
    with mixtures of adaptive contexts.

    Views from outside do not see what is inside: give cameras (`--calibrate transforms.json`) for rooms. Errors show
    more in larger pictures than it looked at. Harmonics that are noise cost most of the bytes and cannot be predicted.

    Shapes:
        any scene; the order of Gaussians is not kept.
    Cost:
        some 3 seconds for each 100,000 Gaussians to look, and as many for a few rounds of coding; 2 to unpack.
    Knobs:
        psnr: dB on pixels of the object, which a budget overrides. views, width: what it is looked at from, in
        pictures of that many pixels across. hidden: the share of its bare self that a Gaussian behind others counts.
        prune: how readily Gaussians are left out, in squared dials; 0 keeps all that the views show.
    Differs from the paper:
        there is no paper.
    Example:
        >>> from holdall.splats.coded import Coded
        >>> from holdall.splats.made import solids
        >>> packed = Coded(views=3, width=48).encode(solids(400), "10%")
        >>> packed.nbytes <= solids(400).nbytes // 10
        True

    Paper: none.
    Test: tests/splats/test_coded.py
    """

    name: ClassVar[str] = "coded"
    usual: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(0, "Splats coded by what is seen of them", "no paper claims it")
    brief: ClassVar[dict[str, Any]] = {"views": 3, "width": 64}

    psnr: float = knob(45.0, "quality where no budget is given, on the object", unit="dB", other=35.0)
    views: int = knob(12, "pictures that decide what is worth its bytes", other=5, at={"budget": "25%"})
    width: int = knob(320, "of these pictures", unit="pixels", other=40, at={"budget": "25%"})
    hidden: float = knob(0.01, "share that Gaussians behind others count", other=0.3, at={"budget": "25%"})
    prune: float = knob(0.25, "how readily Gaussians are left out", other=0.0, at={"budget": "10%"})

    def encode(self, x: Scene, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(given(x), budget)
        trial = _Trial.of(self, x)
        if limit is None:
            return self._as_good_as(trial).kept(to)
        least = trial.at(_COARSEST)
        if least.nbytes > limit:
            raise BudgetError(limit, least.nbytes, who="splats.coded", why="one Gaussian and its tables")
        start, best = self._guessed(trial, limit), least

        def filled(dial: float) -> float:
            nonlocal best
            packed = trial.at(dial)
            if best.nbytes < packed.nbytes <= limit:
                best = packed
            return packed.nbytes / limit

        search(filled, _ALLOWED, _NEAR, 1.0, start)
        return best.kept(to)

    @staticmethod
    def _guessed(trial: _Trial, limit: int) -> float:
        """A dial from a part of the scene, where the whole takes long."""
        whole = len(trial.scene)
        if whole < _LARGE:
            return _STARTS
        part = trial.part()
        return search(
            lambda dial: part.at(dial).nbytes * whole / len(part.scene) / limit, 1.0, 0.98, 1.02, _STARTS
        )

    def _as_good_as(self, trial: _Trial) -> Packed:
        """What has the quality that was asked for, or the best there is."""
        tried: dict[float, Packed] = {}

        def error(dial: float) -> float:
            tried[dial] = trial.at(dial)
            return 1 / max(trial.psnr(), 1e-3)

        wanted = 1 / self.psnr
        dial = search(error, wanted, wanted * (1 - _CLOSE), wanted * (1 + _CLOSE), _STARTS, sign=-1)
        return tried[dial]

    def decode(self, packed: Packed) -> Scene:
        from holdall.splats import coded_file

        return coded_file.read(stream_of(packed, "a coded scene"))


@dataclass
class _Trial:
    """A scene that is coded with one dial after another."""

    recipe: Coded
    scene: Scene
    weights: Any
    back: Any = None  # what the last one decodes to
    truth: Any = None

    @classmethod
    def of(cls, recipe: Coded, scene: Scene) -> _Trial:
        from holdall.splats.coded_weights import views, weighed

        if recipe.views < 1 or recipe.width < 8:
            raise BadInput("views", f"{recipe.views} of {recipe.width} pixels", "at least 1 of 8 pixels")
        return cls(recipe, scene, weighed(scene, views(scene, recipe.views, recipe.width), recipe.hidden))

    def part(self) -> _Trial:
        """Some runs of neighbours."""
        from holdall.splats.formats.values import by_nearness

        order = by_nearness(self.scene.means)
        firsts = np.linspace(0, len(order) - _RUN, _RUNS).astype(int)
        some = np.concatenate([order[i : i + _RUN] for i in firsts])
        return _Trial(self.recipe, self.scene.take(some), self.weights.take(some))

    def at(self, dial: float) -> Packed:
        from holdall.splats import coded_file, coded_form

        need = self.weights.need
        kept = need > self.recipe.prune * dial**2
        kept[np.argmax(need)] = True
        form = coded_form.prepared(self.scene.take(kept), self.weights.logs(kept))
        stream, self.back, parts = coded_file.write(form, dial)
        packed = Packed({"scene": stream}, {"room": "splats", "method": self.recipe.to_dict()})
        packed.notes = {"parts": parts, "kept": int(kept.sum())}
        return packed

    def psnr(self) -> float:
        """Of the last one, on the object, from views between those that it was weighed by."""
        from holdall.splats.coded_weights import views
        from holdall.splats.quality import object_psnr, pictures

        wide = self.recipe.width * 3 // 2  # larger, since errors show more there
        cameras = views(self.scene, max(2, self.recipe.views * 2 // 3), wide, turn=0.25)
        self.truth = self.truth or pictures(self.scene, cameras)
        return object_psnr(self.truth, pictures(self.back, cameras))


def search(
    measure: Callable[[float], float], goal: float, low: float, high: float, start: float, sign: int = 1
) -> float:
    """The dial where `measure` is in [low, high], or the nearest that was tried. sign: 1 if it falls as the dial grows.

    Straight lines through the last two results, in logarithms, inside of what is known to be too much or too little.
    """
    first, last = float(np.log(_FINEST)), float(np.log(_COARSEST))
    small, large, at = first, last, float(np.log(start))
    slope, before, best = -0.3, (at, 0.0), (np.inf, start)
    for turn in range(_ROUNDS):
        value = measure(float(np.exp(at)))
        off = sign * float(np.log(value / goal))
        best = min(best, (abs(off), float(np.exp(at))))
        small, large = (at, large) if off > 0 else (small, at)
        if low <= value <= high or large - small < _SAME or (turn and at == before[0]):
            break
        if turn:
            slope = min(-0.05, (off - before[1]) / (at - before[0]))
        before = at, off
        at = float(np.clip(at - np.clip(off / slope, -3, 3), first, last))
        if (at <= small and small > first) or (at >= large and large < last):
            at = (small + large) / 2
    return best[1]
