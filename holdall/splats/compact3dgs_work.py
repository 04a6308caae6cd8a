"""How `splats.compact3dgs` makes a file: from a scene's own pictures or from photographs, and within a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.splats.camera import Camera
from holdall.splats.colour_field import ColourField
from holdall.splats.compact3dgs_file import Compact, write
from holdall.splats.compact3dgs_start import from_photos
from holdall.splats.compact3dgs_train import CompactLearner, Plan, cut, learnt
from holdall.splats.naive_raster import naive_harmonics
from holdall.splats.residual import Books
from holdall.splats.scene import C0, Scene

if TYPE_CHECKING:
    from holdall.kinds import Spend
    from holdall.splats.compact3dgs import Compact3DGS
    from holdall.splats.posed_photos import Photos

WHITE = (1.0, 1.0, 1.0)
_EACH = 4  # bytes of a Gaussian beside its codes; rather too few, since what is too much for a budget is cut
_SLACK = 256  # bytes: what coded parts may vary by
_PLACES = 24  # of cameras that are stored
LONG, FAST = 6000, 10  # steps; in shorter runs masks learn as much faster, up to so many times
_PHOTO_STEPS, _FEW = 3000, 12  # steps where none are asked for: from photographs, and of a small scene
_FAR, _VAST, _CLEAR = 1e8, 64.0, 20.0  # a place; sizes of the scene, a Gaussian's at most; a logit
_SHARE = 8  # of the memory that photographs may take
_GAUSSIAN, _PIXEL, _WORKING = (
    4000,
    1600,
    120 << 20,
)  # bytes that training takes for each, and at all (measured)


def from_scene(recipe: Compact3DGS, x: Scene, limit: int | None) -> Packed:
    """The scene's own pictures are what it learns from."""
    from holdall.splats.coded_weights import views
    from holdall.splats.raster import render, significance

    x = tamed(x)
    cameras = views(x, recipe.views, recipe.width)
    room = _room(recipe, limit, len(x))
    steps = recipe.steps or min(_PHOTO_STEPS, max(_FEW, len(x) // 4))
    pictures = [render(x, camera, WHITE).colour for camera in cameras]
    start = x
    if room < len(x):
        start = x.take(np.sort(np.argsort(-significance(x, cameras), kind="stable")[:room]))
    field = _field(recipe, start, min(room, len(x)))
    _taught(field, start, cameras, steps, recipe.field_rate)
    learner = _learner(recipe, start, field, steps, WHITE)
    plan = Plan(
        steps, grow_until=0, quantise=recipe.quantise, grow_each=max(4, steps // 10), seed=recipe.seed
    )
    learnt(
        learner,
        lambda i: (cameras[i], pictures[i]),
        range(len(cameras)),
        plan,
        quantise=_later(recipe, learner),
    )
    return _within(recipe, learner, cameras, limit)


def from_photographs(
    recipe: Compact3DGS, photos: Photos, budget: Spend, memory: int | None, start: int, most: int
) -> Packed:
    asked = Budget.parse(budget)
    if asked is not None and asked.bytes is None:
        raise BadInput("budget", str(asked), 'a size ("500kB"): of photographs there is no share')
    limit = None if asked is None else asked.bytes
    cameras = [photos.cameras[i] for i in photos.train]
    if memory is not None:
        most = min(most, affordable(memory, cameras))
    most = min(most, _room(recipe, limit, most))
    scene = from_photos(photos, min(start, most), recipe.seed)
    steps = recipe.steps or _PHOTO_STEPS
    learner = _learner(recipe, scene, _field(recipe, scene, most), steps, photos.background.tolist())
    plan = Plan(
        steps, grow_each=max(20, min(100, steps // 40)), most=most, quantise=recipe.quantise, seed=recipe.seed
    )
    learnt(
        learner,
        lambda i: (photos.cameras[i], photos.image(i)),
        photos.train,
        plan,
        quantise=_later(recipe, learner),
    )
    return _within(recipe, learner, cameras, limit)


def tamed(x: Scene) -> Scene:
    """Looks the same, without numbers that overflow when they are learnt: rotations of length 1; no Gaussian is larger
    than many scenes, which would take all steps of the books."""
    unit = x.quats / np.abs(x.quats).max(1, keepdims=True)
    low, high = x.box()
    most = np.log(_VAST * max(float(np.linalg.norm(high.astype(np.float64) - low)), 1e-9))
    return replace(
        x,
        means=np.clip(x.means, -_FAR, _FAR),
        scales=np.clip(x.scales, most - _VAST, most),
        quats=unit / np.linalg.norm(unit, axis=1, keepdims=True),
        opacities=np.clip(x.opacities, -_CLEAR, _CLEAR),
    )


def affordable(memory: int, cameras: list[Camera], who: str = "splats.compact3dgs") -> int:
    """Gaussians that a process of so many bytes can train, beside what it holds now and photographs that it keeps."""
    from holdall.meter import resident_bytes

    now, pixels = resident_bytes(), max(c.width * c.height for c in cameras)
    fixed = now + _WORKING + pixels * _PIXEL
    least = fixed + fixed // (_SHARE - 1) + 1000 * _GAUSSIAN
    count = (memory - memory // _SHARE - fixed) // _GAUSSIAN
    if count < 1000:
        why = "a thousand Gaussians, the largest photograph, and what this process holds now"
        raise BudgetError(memory, least, who=who, why=why)
    return count


def for_photos(memory: int) -> int:
    """Bytes of photographs that may be kept."""
    return memory // _SHARE


def _room(recipe: Compact3DGS, limit: int | None, count: int) -> int:
    """About how many Gaussians a file of so many bytes holds; BudgetError where there is no room for one."""
    if limit is None:
        return max(1, count)
    least = _packed(recipe, _one(recipe), np.inf).nbytes + _SLACK
    if limit < least:
        raise BudgetError(
            limit, least, who="splats.compact3dgs", why="one Gaussian, the field's layers, books"
        )
    each = _EACH + recipe.stages * np.log2(max(recipe.codes, 2)) / 4
    return max(1, int((limit - least) / each))


def _one(recipe: Compact3DGS) -> Compact:
    field = _field(recipe, None, 1)
    books = Books(np.ones((recipe.stages, recipe.codes, 3))), Books(np.ones((recipe.stages, recipe.codes, 4)))
    scales, quats = np.zeros((1, 3), np.float32), np.ones((1, 4), np.float32)
    means, views = np.zeros((1, 3), np.float32), np.ones((_PLACES, 3), np.float32)
    return Compact(means, scales, quats, np.zeros(1, np.float32), field, *books, views)


def _field(recipe: Compact3DGS, scene: Scene | None, most: int) -> ColourField:
    table = recipe.table or int(np.clip(np.rint(np.log2(max(most, 1))) - 2, 6, 19))
    box = scene.box() if scene is not None else (np.zeros(3), np.ones(3))
    return ColourField.fresh(box, levels=recipe.levels, table=table, width=recipe.neurons, seed=recipe.seed)


def _learner(
    recipe: Compact3DGS, scene: Scene, field: ColourField, steps: int, ground: Any
) -> CompactLearner:
    return CompactLearner(
        scene,
        field,
        lambda_mask=recipe.lambda_mask,
        mask_rate=recipe.mask_rate * min(FAST, max(1.0, LONG / steps)),
        field_rate=recipe.field_rate,
        threshold=recipe.threshold,
        steps=steps,
        background=ground,
        seed=recipe.seed,
    )


def _later(recipe: Compact3DGS, learner: CompactLearner) -> Any:
    return lambda: learner.quantise(recipe.stages, recipe.codes, recipe.seed)


def _taught(field: ColourField, scene: Scene, cameras: list[Camera], rounds: int, rate: float) -> None:
    """The field learns a scene's own harmonics, as its cameras see them."""
    teach = torch.optim.Adam(field.params(), lr=rate, eps=1e-15)
    means, sh = torch.from_numpy(scene.means), torch.from_numpy(scene.sh)
    weight = torch.sigmoid(torch.from_numpy(scene.opacities))[:, None]
    for step in range(rounds):
        place = cameras[step % len(cameras)].place
        way = torch.nn.functional.normalize(means - torch.as_tensor(place).to(means), dim=1)
        wanted = torch.einsum("nk,nkc->nc", naive_harmonics(way)[:, : sh.shape[1]], sh) / C0
        loss = (weight * (field(means, place) - wanted) ** 2).mean()
        loss.backward()
        teach.step()
        teach.zero_grad()


def _within(recipe: Compact3DGS, learner: CompactLearner, cameras: list[Camera], limit: int | None) -> Packed:
    """The file; with a budget the Gaussians that are seen most, as many as fit."""
    from holdall.splats.raster import significance

    cut(learner)
    if learner.books is None:
        learner.quantise(recipe.stages, recipe.codes, recipe.seed)
    whole = learner.compact(places_of(cameras))
    packed = _packed(recipe, whole, recipe.threshold)
    if limit is None or packed.nbytes <= limit:
        return packed
    order = np.argsort(-significance(learner.scene(), cameras), kind="stable")
    one = _packed(recipe, whole.take(order[:1]), recipe.threshold)
    if one.nbytes > limit:
        return _packed(recipe, whole.take(order[:1]), np.inf)
    each = (packed.nbytes - one.nbytes) / max(1, len(whole) - 1)
    kept = 1 + int((limit - one.nbytes) / each)
    while kept > 1:
        packed = _packed(recipe, whole.take(np.sort(order[:kept])), recipe.threshold)
        if packed.nbytes <= limit:
            return packed
        kept -= max(1, int((packed.nbytes - limit) / each), kept // 100)
    return one


def places_of(cameras: list[Camera]) -> Any:
    """float32 [V, 3]: of some of the cameras, evenly chosen."""
    some = np.unique(np.linspace(0, len(cameras) - 1, _PLACES).astype(int))
    return np.stack([cameras[i].place for i in some]).astype(np.float32)


def _packed(recipe: Compact3DGS, x: Compact, threshold: float) -> Packed:
    stream, parts = write(x, recipe.bits, threshold)
    packed = Packed({"scene": stream}, {"room": "splats", "method": recipe.to_dict()})
    packed.notes = {"parts": parts, "kept": len(x)}
    return packed
