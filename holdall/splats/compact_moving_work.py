"""How `splats.compact_moving` makes a file: from a moving scene's own pictures or from photographs, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.splats.camera import Camera
from holdall.splats.colour_field import ColourField
from holdall.splats.compact3dgs_start import from_photos
from holdall.splats.compact3dgs_train import Plan, cut, learnt
from holdall.splats.compact3dgs_work import FAST, LONG, WHITE, affordable, tamed
from holdall.splats.compact_moving_file import OUT, CompactSpacetime, write
from holdall.splats.spacetime import SpacetimeScene, at_rest
from holdall.splats.spacetime_from import followed
from holdall.splats.spacetime_train import CompactSpacetimeLearner
from holdall.splats.stored import most_that_fit

if TYPE_CHECKING:
    from holdall.kinds import Spend
    from holdall.splats.compact_moving import CompactMoving
    from holdall.splats.moving import Moving
    from holdall.splats.posed_photos import Photos

_WHO = "splats.compact_moving"
_EACH = 6  # bytes of a Gaussian beside its codes, about
_PHOTO_STEPS, _FEW = 3000, 12  # steps where none are asked for: from photographs, and of a small scene
_JUDGED = 6  # views and times at which what is seen least is looked for
_LESSONS = 40  # at least, of colours alone


def from_moving(recipe: CompactMoving, x: Moving, limit: int | None) -> Packed:
    """The scene's own pictures are what it learns from: each view at some of the times."""
    from holdall.splats.coded_weights import views
    from holdall.splats.raster import render

    start = still_tamed(followed(x))
    places = views(x.at(0.5), recipe.views, recipe.width)
    times = np.linspace(0, 1, recipe.moments)
    cameras = [replace(camera, time=float(t)) for t in times for camera in places]
    room = _room(recipe, limit, len(start))
    if room < len(start):
        start = start.take(np.sort(_by_significance(start, cameras)[:room]))
    scenes = {float(t): x.at(float(t)) for t in times}
    pictures = [render(scenes[c.time or 0.0], c, WHITE).colour for c in cameras]
    steps = recipe.steps or min(_PHOTO_STEPS, max(_FEW, len(x) // 2))
    field = _field(recipe, start, len(start))
    _taught(field, start, max(_LESSONS, steps), recipe.field_rate)
    plan = Plan(
        steps, grow_until=0, quantise=recipe.quantise, grow_each=max(4, steps // 10), seed=recipe.seed
    )
    view = lambda i: (cameras[i], pictures[i])  # noqa: E731
    return _made(recipe, start, field, view, range(len(cameras)), plan, WHITE, cameras, limit)


def from_photographs(
    recipe: CompactMoving, photos: Photos, budget: Spend, memory: int | None, start: int, most: int
) -> Packed:
    asked = Budget.parse(budget)
    if asked is not None and asked.bytes is None:
        raise BadInput("budget", str(asked), 'a size ("500kB"): of photographs there is no share')
    limit = None if asked is None else asked.bytes
    cameras = [photos.cameras[i] for i in photos.train]
    lost = [c.name for c in cameras if c.time is None]
    if lost:
        why = (
            "photographs with times (of frames of a transforms.json); splats.compact3dgs is for still scenes"
        )
        raise BadInput("photographs", f"{len(lost)} of {len(cameras)} without a time", why)
    if memory is not None:
        most = min(most, affordable(memory, cameras, _WHO))
    most = min(most, _room(recipe, limit, most))
    scene = at_rest(from_photos(photos, min(start, most), recipe.seed), recipe.seed)
    steps = recipe.steps or _PHOTO_STEPS
    grow = max(20, min(100, steps // 40))
    plan = Plan(steps, grow_each=grow, most=most, quantise=recipe.quantise, seed=recipe.seed)
    view = lambda i: (photos.cameras[i], photos.image(i))  # noqa: E731
    field, ground = _field(recipe, scene, most), photos.background.tolist()
    return _made(recipe, scene, field, view, photos.train, plan, ground, cameras, limit)


def _made(
    recipe: CompactMoving,
    start: SpacetimeScene,
    field: ColourField,
    view: Callable[[int], tuple[Camera, Any]],
    numbers: Sequence[int],
    plan: Plan,
    ground: Any,
    cameras: list[Camera],
    limit: int | None,
) -> Packed:
    """Trained and packed."""
    learner = CompactSpacetimeLearner(
        start,
        field,
        lambda_mask=recipe.lambda_mask,
        mask_rate=recipe.mask_rate * min(FAST, max(1.0, LONG / plan.steps)),
        field_rate=recipe.field_rate,
        threshold=recipe.threshold,
        steps=plan.steps,
        background=ground,
        seed=recipe.seed,
    )

    def quantise() -> None:
        learner.quantise((recipe.stages, recipe.later), recipe.codes, recipe.seed)

    learnt(learner, view, numbers, plan, quantise=quantise)
    cut(learner)
    if not learner.books:
        quantise()
    return _within(recipe, compact(learner), cameras, limit)


def _within(
    recipe: CompactMoving, whole: CompactSpacetime, cameras: list[Camera], limit: int | None
) -> Packed:
    """The file; with a budget the Gaussians that are seen most, as many as fit."""
    packed = _packed(recipe, whole, recipe.threshold)
    if limit is None or packed.nbytes <= limit:
        return packed
    order = _by_significance(whole.scene, cameras)
    if _packed(recipe, whole.take(order[:1]), recipe.threshold).nbytes > limit:
        return _packed(recipe, whole.take(order[:1]), np.inf)

    def kept(count: int) -> Packed:
        return _packed(recipe, whole.take(np.sort(order[:count])), recipe.threshold)

    return most_that_fit(len(whole), limit, 1.0, kept, _WHO)


def compact(learner: CompactSpacetimeLearner) -> CompactSpacetime:
    """What is to be stored."""
    return CompactSpacetime(
        learner.moving(), learner.field, {name: books.books() for name, books in learner.books.items()}
    )


def still_tamed(x: SpacetimeScene) -> SpacetimeScene:
    """As `tamed`, and no way or turn that overflows."""
    from holdall.splats.scene import Scene

    still = tamed(Scene(x.means, x.scales, x.quats, x.opacities, x.features[:, None, :3]))
    far = 4 * max(float(np.abs(still.means).max()), 1e-6)
    unit = np.maximum(np.abs(x.quats).max(1, keepdims=True), 1e-30)
    return replace(
        x,
        means=still.means,
        scales=still.scales,
        quats=still.quats,
        opacities=still.opacities,
        motion=np.clip(x.motion, -far, far),
        spins=np.clip(x.spins / unit, -4, 4),
        times=np.clip(x.times, -1, 2),
        spans=np.clip(x.spans, -8, 8),
        features=np.clip(x.features, -1e3, 1e3),
    )


def _by_significance(x: SpacetimeScene, cameras: list[Camera]) -> Any:
    """Numbers of Gaussians, those first that are seen most in some views, each at its time."""
    from holdall.splats.raster import significance

    some = np.unique(np.linspace(0, len(cameras) - 1, 6 * _JUDGED).astype(int))
    total = np.zeros(len(x))
    for camera in (cameras[i] for i in some):
        total += significance(x.at(camera.time or 0.0), [camera])
    return np.argsort(-total, kind="stable")


def _room(recipe: CompactMoving, limit: int | None, count: int) -> int:
    """About how many Gaussians a file of so many bytes holds; BudgetError where there is no room for one."""
    if limit is None:
        return max(1, count)
    scene = at_rest(_one())
    learner = CompactSpacetimeLearner(scene, _field(recipe, scene, 1), lambda_mask=0.0)
    learner.quantise((recipe.stages, recipe.later), recipe.codes)
    whole = compact(learner)
    for name, books in whole.books.items():  # as large as those of many Gaussians
        shape = (len(books.tables), recipe.codes, books.tables.shape[2])
        whole.books[name] = type(books)(np.ones(shape))
    least = _packed(recipe, whole, np.inf).nbytes + 256
    if limit < least:
        raise BudgetError(limit, least, who=_WHO, why="one Gaussian, the field's layers, books")
    each = _EACH + (recipe.stages + recipe.later) * np.log2(max(recipe.codes, 2)) / 4
    return max(1, int((limit - least) / each))


def _one() -> Any:
    from holdall.splats.scene import Scene

    return Scene(np.zeros((1, 3)), np.zeros((1, 3)), np.ones((1, 4)), np.zeros(1), np.zeros((1, 1, 3)))


def _field(recipe: CompactMoving, scene: SpacetimeScene, most: int) -> ColourField:
    table = recipe.table or int(np.clip(np.rint(np.log2(max(most, 1))) - 2, 6, 19))
    low, high = np.quantile(scene.means, [0.01, 0.99], axis=0)
    return ColourField.fresh(
        (low, high),
        levels=recipe.levels,
        table=table,
        width=recipe.neurons,
        seed=recipe.seed,
        ways=0,
        out=OUT,
    )


def _taught(field: ColourField, scene: SpacetimeScene, rounds: int, rate: float) -> None:
    """The field learns the colours that a scene has."""
    teach = torch.optim.Adam(field.params(), lr=rate, eps=1e-15)
    means, wanted = torch.from_numpy(scene.means), torch.from_numpy(scene.features[:, :OUT])
    weight = torch.sigmoid(torch.from_numpy(scene.opacities))[:, None]
    for _ in range(rounds):
        loss = (weight * (field.still(means) - wanted) ** 2).mean()
        loss.backward()
        teach.step()
        teach.zero_grad()


def _packed(recipe: CompactMoving, x: CompactSpacetime, threshold: float) -> Packed:
    stream, parts = write(x, recipe.bits, recipe.motion, threshold)
    packed = Packed({"scene": stream}, {"room": "splats", "method": recipe.to_dict()})
    packed.notes = {"parts": parts, "kept": len(x)}
    return packed
