"""How `splats.lightgaussian` makes a file: prune, recover, distil, quantise, make good, and fill a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.splats.camera import Camera
from holdall.splats.coded import search
from holdall.splats.coded_form import Prepared, prepared
from holdall.splats.coded_weights import views, weighed
from holdall.splats.lightgaussian_books import Split, split
from holdall.splats.lightgaussian_file import write
from holdall.splats.lightgaussian_learn import (
    Look,
    Pictures,
    Shared,
    distilled,
    photographs,
    recovered,
    tuned,
)
from holdall.splats.scene import Scene
from holdall.splats.significance import lightgaussian, significance

if TYPE_CHECKING:
    from holdall.splats.lightgaussian import LightGaussian
    from holdall.splats.posed_photos import Photos

COARSEST = 1e3  # of dials
_ALLOWED, _NEAR, _START = 0.99, 0.98, 0.02  # of a budget; and the first dial that is tried
_FINE = 1e-4  # a dial that shows nowhere: larger budgets stay unused
_WEIGHED, _WIDE = 12, 320  # views that decide how fine numbers are, and their pixels
_FEW, _VIEWED = 3, 40  # views of a small scene: the fewest, and Gaussians for one more
_PLENTY, _SLOWLY = 0.7, 1.5  # the share that stays as bytes allow; how slowly others join, in scenes' bytes
_HIDDEN = 0.01  # share of its bare self that a Gaussian behind others counts
_ROUNDS, _CHUNK = 100, 16_384  # of learning a book; vectors of a round


def light(recipe: LightGaussian, x: Scene, limit: int | None, photos: Photos | None) -> Packed:
    """photos: what it learns from; the scene's own pictures where there are none."""
    cameras, look = _shown(recipe, x, photos)
    gs = scored(recipe, x, cameras)
    least = _least(recipe, x.take([int(gs.argmax())]), cameras)
    if limit is not None and limit < least.nbytes:
        raise BudgetError(limit, least.nbytes, who="splats.lightgaussian", why="one Gaussian and its tables")
    count = kept(recipe, x, limit, least.nbytes)
    steps = recipe.steps_for(len(x))
    some = x.take(np.sort(np.argsort(-gs, kind="stable")[:count]))
    whole = recovered(some, look, len(cameras), steps, recipe.seed)
    small = whole
    if whole.degree > recipe.degree:
        small = distilled(whole, recipe.degree, cameras, steps, recipe.seed, recipe.jitter)
    work = Coding.of(recipe, small, cameras)
    best = work.filled(limit, least)
    if steps // 2 and best is not least:
        work = work.tuned(look, len(cameras), steps // 2)
        best = work.refilled(limit, best)
    stages = {"given": x.nbytes, "pruned": some.nbytes, "distilled": small.nbytes}
    best.notes = {**best.notes, "stages": stages}
    return best


def _shown(recipe: LightGaussian, x: Scene, photos: Photos | None) -> tuple[list[Camera], Look]:
    if photos is None:
        cameras = views(x, min(recipe.views, max(_FEW, len(x) // _VIEWED)), recipe.width)
        return cameras, Pictures(x, cameras)
    if not photos.train:
        raise BadInput("photographs", "none", "at least one to learn from")
    return [photos.cameras[i] for i in photos.train], photographs(photos)


def scored(recipe: LightGaussian, x: Scene, cameras: Sequence[Camera]) -> Any:
    """Global significance float64 [N]."""
    return lightgaussian(x, significance(x, cameras), recipe.beta)


def kept(recipe: LightGaussian, x: Scene, limit: int | None, fixed: int) -> int:
    """How many Gaussians stay: the paper's share, or as many as can have so many bytes each; of the last three tenths
    fewer, since finer numbers are worth more."""
    if limit is None:
        return max(1, round((1 - recipe.prune) * len(x)))
    each = recipe.each or 4.5 + min(recipe.degree, x.degree)
    share = max(0.0, limit - fixed) / each / len(x)
    if share > _PLENTY:
        share = 1 - (1 - _PLENTY) * np.exp((_PLENTY - share) / _SLOWLY)
    return max(1, int(share * len(x)))


def _least(recipe: LightGaussian, one: Scene, cameras: Sequence[Camera]) -> Packed:
    """What the fewest bytes hold."""
    small = one.with_degree(min(one.degree, recipe.degree))
    return Coding.of(recipe, small, cameras[:1]).at(COARSEST)


@dataclass
class Coding:
    """A taught scene that is coded with one dial after another."""

    recipe: LightGaussian
    form: Prepared
    cut: Split
    dial: float = 0.0

    @classmethod
    def of(cls, recipe: LightGaussian, scene: Scene, cameras: Sequence[Camera]) -> Coding:
        some = [cameras[i] for i in np.unique(np.linspace(0, len(cameras) - 1, _WEIGHED).astype(int))]
        some = [c.scaled(min(1.0, _WIDE / c.width)) for c in some]
        form = prepared(scene, weighed(scene, some, _HIDDEN).logs(slice(None)))
        vectors = form.colours[:, 3 * recipe.apart :]
        gs = scored(recipe, scene, cameras)
        learning = {"rounds": _ROUNDS, "chunk": _CHUNK, "seed": recipe.seed}
        cut = split(vectors, gs, share=recipe.vq, codes=recipe.codes, **learning)
        return cls(recipe, form, cut)

    def at(self, dial: float, tint: float = 1.0) -> Packed:
        stream, _, parts, _ = write(self.form, self.cut, dial, tint)
        packed = Packed({"scene": stream}, {"room": "splats", "method": self.recipe.to_dict()})
        packed.notes = {"parts": parts, "kept": len(self.form.places), "codes": len(self.cut.book)}
        return packed

    def filled(self, limit: int | None, least: Packed) -> Packed:
        """With the finest dial that a budget has room for."""
        if limit is None:
            self.dial = self.recipe.dial
            return self.at(self.dial)
        best, start = least, _START

        def size(dial: float) -> float:
            nonlocal best
            packed = self.at(dial)
            if packed.nbytes <= limit and (best is least or packed.nbytes > best.nbytes):
                best, self.dial = packed, dial
                if dial < _FINE:
                    return _NEAR
            return packed.nbytes / limit

        search(size, _ALLOWED, _NEAR, 1.0, start)
        return best

    def tuned(self, look: Look, count: int, steps: int) -> Coding:
        """Colours and the book make good what the form lost; who has which entry stays."""
        _, seen, _, order = write(self.form, self.cut, self.dial)
        form, cut, mixed = self.form.take(order), self.cut.take(order), self.form.mixed
        plain = (form.colours.shape[1] - cut.book.shape[1]) // 3
        scene = replace(seen, sh=form.colours.reshape(len(order), -1, 3) @ mixed)
        book = cut.book.reshape(len(cut.book), scene.sh.shape[1] - plain, 3) @ mixed
        learner = Shared(scene, cut, book, plain, steps=steps, seed=self.recipe.seed)
        tuned(learner, look, count, steps, self.recipe.seed)
        sh, book = learner.colours()
        colours = np.empty_like(self.form.colours)
        colours[order] = (sh @ mixed.T).reshape(len(order), -1)
        book = (book @ mixed.T).reshape(self.cut.book.shape).astype(np.float32)
        return replace(self, form=replace(self.form, colours=colours), cut=replace(self.cut, book=book))

    def refilled(self, limit: int | None, before: Packed) -> Packed:
        """The same dial, so that the form stays to the bit; colours as fine as there is room for."""
        if limit is None or self.dial < _FINE:
            packed = self.at(self.dial)
            return packed if limit is None or packed.nbytes <= limit else before
        best: Packed | None = None

        def size(tint: float) -> float:
            nonlocal best
            packed = self.at(self.dial, tint)
            if packed.nbytes <= limit and (best is None or packed.nbytes > best.nbytes):
                best = packed
            return packed.nbytes / limit

        search(size, _ALLOWED, _NEAR, 1.0, 1.0)
        return best or before
