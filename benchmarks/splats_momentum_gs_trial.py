"""Four rooms trained in blocks, all ways from the same beginning, and what is seen of the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from splats_rooms import VIEWS, Rooms

from holdall.splats.anchors import NAMES, Decoder, gaussians, took, visible
from holdall.splats.camera import Camera
from holdall.splats.momentum_gs_cells import Cells, members
from holdall.splats.momentum_gs_shelf import Memory, Shelf
from holdall.splats.momentum_gs_start import Start, from_points, taught
from holdall.splats.momentum_gs_train import Course, Plan
from holdall.splats.momentum_gs_work import merged
from holdall.splats.quality import psnr
from holdall.splats.raster import render
from holdall.splats.scene import Scene

BLACK = (0.0, 0.0, 0.0)
COUNT, POINTS, CONTEXT = len(VIEWS), 800, 0.5
Parts = list[tuple[dict[str, torch.Tensor], Decoder]]


class Trial:
    """The same beginning for all ways."""

    def __init__(self, rooms: Rooms, plan: Plan):
        self.rooms, self.plan = rooms, plan
        self.start: Start = from_points(rooms.points(POINTS), 32, 10, plan.seed)
        self.decoder = Decoder.fresh(32, 32, 10, self.start.extent, plan.seed)
        places = [rooms.cameras[i].place for views in rooms.train for i in views]
        taught(self.decoder, self.start, places, 200)
        means = self.start.anchors["means"].numpy()
        self.cells = Cells(means, COUNT)
        block = self.cells.of(means)
        self.members = [torch.from_numpy(members(means, block, b, CONTEXT, plan.seed)) for b in range(COUNT)]

    def course(self, shelf: Shelf, blocks: list[int], **more: Any) -> Course:
        rooms = self.rooms
        decoder = Decoder(self.decoder.copy().params, self.decoder.extent)
        course = Course(
            decoder, shelf, [rooms.train[b] for b in blocks], rooms.view, self.plan, voxel=self.start.voxel,
            background=BLACK, judged=[rooms.judged[b] for b in blocks], **more,
        )  # fmt: skip
        for i in course.mine:
            course.start(i, took(self.start.anchors, self.members[blocks[i]]))
        return course

    def whole(self, course: Course) -> Parts:
        return [(merged(course, self.cells), course.decoder.copy())]

    def alone(self) -> Parts:
        """A decoder for each block."""
        parts = []
        for b in range(COUNT):
            course = self.course(Memory(), [b])
            course.run()
            state = course.shelf.get(0, NAMES)
            mine = torch.from_numpy(self.cells.of(state["means"].numpy()) == b)
            parts.append((took(state, mine), course.decoder.copy()))
        return parts


@torch.no_grad()
def shown(parts: Parts, camera: Camera) -> Any:
    columns = []
    for anchors, decoder in parts:
        which = visible(anchors["means"], anchors["scaling"], camera)
        part = {k: v[which] for k, v in anchors.items()}
        columns.append(gaussians(decoder(part["feature"], part["means"], camera.place), part))
    means, scales, quats, opacities, sh = (torch.cat(c).numpy() for c in zip(*columns, strict=True))
    return np.clip(render(Scene(means, scales, quats, opacities, sh), camera, BLACK).colour, 0, 1)


def corrected(picture: Any, true: Any) -> Any:
    """Each channel by the line that fits best."""
    out = np.empty_like(picture)
    for c in range(3):
        a, b = np.polyfit(picture[..., c].ravel(), true[..., c].ravel(), 1)
        out[..., c] = np.clip(a * picture[..., c] + b, 0, 1)
    return out


def judged(rooms: Rooms, show: Any) -> dict[str, float]:
    def error(ids: list[int], fix: bool = False) -> float:
        found = []
        for i in ids:
            picture, true = show(rooms.cameras[i]), rooms.pictures[i]
            found.append(float((((corrected(picture, true) if fix else picture) - true) ** 2).mean()))
        return float(np.mean(found))

    blocks = [psnr(error(views)) for views in rooms.test]
    told = {f"block_{b}": p for b, p in enumerate(blocks)} | {
        "worst": min(blocks),
        "mean": float(np.mean(blocks)),
    }
    return told | {"seam": psnr(error(rooms.seams)), "seam_corrected": psnr(error(rooms.seams, True))}
