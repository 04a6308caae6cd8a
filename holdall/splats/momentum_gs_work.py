"""How `splats.momentum_gs` makes a file: from a scene's own pictures or photographs, within memory and a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.splats.anchors import NAMES, Decoder, took
from holdall.splats.camera import Camera
from holdall.splats.compact3dgs_start import from_photos
from holdall.splats.compact3dgs_work import places_of, tamed
from holdall.splats.momentum_gs_cells import Cells, looks, members, views_of
from holdall.splats.momentum_gs_crew import Crew
from holdall.splats.momentum_gs_file import Anchored, write
from holdall.splats.momentum_gs_shelf import Shelf
from holdall.splats.momentum_gs_start import Start, from_gaussians, from_points, taught
from holdall.splats.momentum_gs_train import Course, View

if TYPE_CHECKING:
    from holdall.kinds import Spend
    from holdall.splats.momentum_gs import MomentumGS
    from holdall.splats.posed_photos import Photos
    from holdall.splats.scene import Scene

WHITE = (1.0, 1.0, 1.0)
_BLOCKS, _MOST_BLOCKS = 4, 256
_PHOTO_STEPS, _FEW = 3000, 12  # steps where none are asked for: from photographs, and of a small scene
_ROUNDS, _EACH = 200, 8  # at most, and a step: of learning what is known before pictures are drawn
_SLACK = 64  # bytes
_SHARE = 8  # of the memory that photographs may take
_GAUSSIAN, _PIXEL, _WORKING = 400, 1600, 80 << 20  # bytes that training takes for each, and at all (measured)
_RESULT = 200  # bytes of a Gaussian when blocks are merged, packed and shown


def from_scene(recipe: MomentumGS, x: Scene, limit: int | None) -> Packed:
    """The scene's own pictures are what it learns from."""
    from holdall.splats.coded_weights import views
    from holdall.splats.raster import render, significance

    _room(recipe, limit)
    x = tamed(x)
    cameras = views(x, recipe.views, recipe.width)
    pictures = [render(x, camera, WHITE).colour for camera in cameras]
    start = from_gaussians(x, recipe.feature, recipe.offsets, recipe.seed)
    steps = recipe.steps or min(_PHOTO_STEPS, max(_FEW, len(x) // 4))
    cells = filled(start.anchors["means"].numpy(), recipe.blocks or _BLOCKS)
    block = cells.of(x.means)
    parts = np.stack([np.bincount(block, significance(x, [c]), cells.count) for c in cameras])
    return _learnt(
        recipe, start, cells, cameras, parts, steps, 0, lambda i: (cameras[i], pictures[i]), limit, WHITE
    )


def from_photographs(
    recipe: MomentumGS, photos: Photos, budget: Spend, memory: int | None, start: int, most: int
) -> Packed:
    asked = Budget.parse(budget)
    if asked is not None and asked.bytes is None:
        raise BadInput("budget", str(asked), 'a size ("500kB"): of photographs there is no share')
    limit = None if asked is None else asked.bytes
    _room(recipe, limit)
    numbers = list(photos.train)
    cameras = [photos.cameras[i] for i in numbers]
    count = recipe.blocks or _BLOCKS
    if memory is not None:
        count = blocks_for(memory, cameras, max(start, most), recipe.context, recipe.blocks)
    begin = from_points(from_photos(photos, max(1, start // recipe.offsets), recipe.seed), recipe.feature,
                        recipe.offsets, recipe.seed)  # fmt: skip
    means = begin.anchors["means"].numpy()
    cells = filled(means, count)
    parts = looks(means, cells.of(means), cameras, cells.count)
    view: View = lambda i: (cameras[i], photos.image(numbers[i]))  # noqa: E731
    steps = recipe.steps or _PHOTO_STEPS
    return _learnt(recipe, begin, cells, cameras, parts, steps, most, view, limit, photos.background.tolist())


def blocks_for(memory: int, cameras: Sequence[Camera], most: int, context: float, asked: int = 0) -> int:
    """How many blocks `most` Gaussians have to be cut into, so that training one fits beside what this process holds
    now, photographs that it keeps and the pictures at work."""
    from holdall.meter import resident_bytes

    pixels = max(c.width * c.height for c in cameras)
    held, need = resident_bytes() + _WORKING, most * (1 + context) * _GAUSSIAN
    room = memory - memory // _SHARE
    free = room - held - pixels * _PIXEL
    count = int(-(-need // free)) if free > 0 else _MOST_BLOCKS + 1
    top = asked or _MOST_BLOCKS
    if count > top or held + most * _RESULT > room:
        least = (
            int(max(held + pixels * _PIXEL + need / top, held + most * _RESULT) * _SHARE / (_SHARE - 1)) + 2
        )
        why = f"{most:,} Gaussians, a block of {top} at a time, a photograph, and what this process holds now"
        raise BudgetError(memory, least, who="splats.momentum_gs", why=why)
    return asked or count


def _learnt(
    recipe: MomentumGS,
    start: Start,
    cells: Cells,
    cameras: Sequence[Camera],
    parts: Any,
    steps: int,
    most: int,
    view: View,
    limit: int | None,
    ground: Sequence[float],
) -> Packed:
    """most: Gaussians at all; 0: none are added."""
    count = cells.count
    decoder = Decoder.fresh(recipe.feature, recipe.neurons, recipe.offsets, start.extent, recipe.seed)
    taught(decoder, start, [c.place for c in cameras], min(_ROUNDS, _EACH * steps))
    views = views_of(parts, cells.of(np.stack([c.place for c in cameras])), recipe.overlap)
    plan = recipe.plan(max(1, steps // count), most // (recipe.offsets * count) or 1)
    crew = Crew()
    with Shelf() as shelf:
        course = Course(decoder, shelf, views, view, plan, voxel=start.voxel, background=ground, crew=crew)
        means = start.anchors["means"].numpy()
        block = cells.of(means)
        for b in course.mine:
            which = members(means, block, b, recipe.context, recipe.seed)
            course.start(b, took(start.anchors, torch.from_numpy(which)))
        del start
        course.run()
        whole = merged(course, cells)
    return _within(
        recipe, Anchored(whole, course.decoder.copy(), places_of(list(cameras))), list(cameras), limit
    )


def merged(course: Course, cells: Cells) -> dict[str, torch.Tensor]:
    """All blocks' anchors, each where it is the one whose cell that is."""
    found = []
    for b in range(cells.count):
        mine = None
        if b in course.mine:
            state = course.shelf.get(b, NAMES)
            own = cells.of(state["means"].numpy()) == b
            own[0] |= not own.any()  # of what shows nothing all may have been pruned
            mine = took(state, torch.from_numpy(own))
        found.append(course.crew.from_owner(b, mine, NAMES))
    return {name: torch.cat([f[name] for f in found]) for name in NAMES}


def filled(means: Any, count: int) -> Cells:
    """So many blocks, or as many as have anchors."""
    for blocks in range(min(count, len(means)), 1, -1):
        cells = Cells(means, blocks)
        if np.bincount(cells.of(means), minlength=blocks).min():
            return cells
    return Cells(means, 1)


def _room(recipe: MomentumGS, limit: int | None) -> None:
    """BudgetError where there is no room for one anchor, before any training."""
    if limit is not None and limit < (least := _packed(recipe, _one(recipe)).nbytes + _SLACK):
        raise BudgetError(limit, least, who="splats.momentum_gs", why="the decoder and one anchor")


def _one(recipe: MomentumGS) -> Anchored:
    f, k = recipe.feature, recipe.offsets
    draw = torch.Generator().manual_seed(0)
    shapes = {"means": (1, 3), "feature": (1, f), "scaling": (1, 6), "offsets": (1, k, 3)}
    anchors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return Anchored(anchors, Decoder.fresh(f, recipe.neurons, k, 1.0), np.ones((24, 3), np.float32))


def _within(recipe: MomentumGS, x: Anchored, cameras: list[Camera], limit: int | None) -> Packed:
    """The file; with a budget the anchors that are seen most, as many as fit."""
    from holdall.splats.raster import significance

    packed = _packed(recipe, x)
    if limit is None or packed.nbytes <= limit:
        return packed
    scene = x.scene(0)
    seen = np.bincount(scene.kept // recipe.offsets, significance(scene, cameras), len(x))
    order = np.argsort(-seen, kind="stable")
    one = _packed(recipe, x.take(order[:1]))
    each = (packed.nbytes - one.nbytes) / max(1, len(x) - 1)
    kept = 1 + int((limit - one.nbytes) / each)
    while kept > 1:
        packed = _packed(recipe, x.take(np.sort(order[:kept])))
        if packed.nbytes <= limit:
            return packed
        kept -= max(1, int((packed.nbytes - limit) / each), kept // 100)
    return one


def _packed(recipe: MomentumGS, x: Anchored) -> Packed:
    stream, parts = write(x, recipe.bits, recipe.place_bits)
    packed = Packed({"scene": stream}, {"room": "splats", "method": recipe.to_dict()})
    packed.notes = {"parts": parts, "kept": len(x)}
    return packed
