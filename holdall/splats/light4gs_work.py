"""How `splats.light4gs` makes a file: who stays, what is learnt with the price of bits, and what fits a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.errors import BudgetError
from holdall.packed import Packed
from holdall.splats.camera import Camera, around
from holdall.splats.coded_near import AXIS_BITS, keys
from holdall.splats.hexplane import HexScene
from holdall.splats.hexplane_learn import SHORT
from holdall.splats.light4gs_colours import ColourModel, bands
from holdall.splats.light4gs_file import Stored, formed, numbers, write
from holdall.splats.light4gs_hex import PlaneModel
from holdall.splats.light4gs_learn import PricedLearner, priced, spatio_temporal
from holdall.splats.light4gs_planes import KINDS, step_of
from holdall.splats.moving import Shot, drawn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.light4gs import Light4GS

_STEPS, _ROUNDS = 600, 150
_COARSER = (0, 6, 14, 24, 36, 56)  # eighths of octaves that steps grow by, where a budget asks
_FAR, _VAST, _LARGE = 1e8, 40.0, 6e4
_SPEED = 0.3  # of learning planes and layers, which are trained already


def from_moving(recipe: Light4GS, x: HexScene, limit: int | None) -> Packed:
    x = tamed(x)
    shots = x.shots or taught(x, recipe)
    cameras = list({id(s.camera): s.camera for s in shots}.values())
    seen = spatio_temporal(x, cameras, np.linspace(0, 1, recipe.moments).tolist())
    kept = max(1, round(len(x) * (1 - recipe.prune)))
    x = x.take(np.sort(np.argsort(-seen, kind="stable")[:kept]))
    recipe = resolved(recipe, x)
    learner = priced_learner(recipe, x)
    priced(learner, shots, recipe.steps, recipe.seed)
    return _within(recipe, learner, cameras, limit)


def resolved(recipe: Light4GS, x: HexScene) -> Light4GS:
    """With numbers for what was left to the scene."""
    numbers_of_planes = sum(p.size for six in x.planes for p in six)
    return recipe.but(
        steps=recipe.steps or min(_STEPS, max(2, len(x) // 2)),
        rounds=recipe.rounds or min(_ROUNDS, max(2, numbers_of_planes // 500)),
    )


def tamed(x: HexScene) -> HexScene:
    """Looks the same, without numbers that overflow when they are learnt or rounded."""
    s = x.still
    quats = np.clip(s.quats, -1e3, 1e3)
    if "quats/0/w" not in x.layers:  # nothing is added to them, so only their direction counts
        unit = s.quats / np.abs(s.quats).max(1, keepdims=True)
        quats = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    still = replace(
        s, means=np.clip(s.means, -_FAR, _FAR), scales=np.clip(s.scales, -_VAST, _VAST), quats=quats,
        opacities=np.clip(s.opacities, -15, 15),
    )  # fmt: skip
    planes = tuple(tuple(np.clip(p, -_LARGE, _LARGE) for p in six) for six in x.planes)
    layers = {k: np.clip(v, -_LARGE, _LARGE) for k, v in x.layers.items()}
    return replace(x, still=still, planes=planes, layers=layers)


def taught(x: HexScene, recipe: Light4GS) -> list[Shot]:
    """The scene's own pictures, where it came without any."""
    times = np.linspace(0, 1, recipe.moments).tolist()
    cameras: list[Camera] = list(x.cameras) or around(
        x.at(0.5), recipe.views, width=recipe.width, height=recipe.width
    )
    return drawn(x, cameras, times)


def priced_learner(recipe: Light4GS, x: HexScene) -> PricedLearner:
    without = frozenset(kind for kind in KINDS if not getattr(recipe, kind))
    planes = PlaneModel(len(x.planes), without, recipe.hidden, recipe.seed)
    colours = ColourModel(x.still.sh.shape[1], recipe.hidden, recipe.seed)
    prices = recipe.lambda_planes, recipe.lambda_sh
    return PricedLearner(
        x,
        planes,
        colours,
        prices,
        recipe.step,
        steps=recipe.steps,
        rates=SHORT,
        speed=_SPEED,
        seed=recipe.seed,
    )


def stored_of(recipe: Light4GS, learner: PricedLearner, coarser: int = 0) -> Stored:
    """What learning left, in whole numbers, and models that have learnt to expect these."""
    x, (plane_codes, shade) = learner.hex_scene(), learner.codes()
    steps = {k: (v + coarser).clamp_max(127) for k, v in plane_codes.items()}
    shade = (shade + coarser).clamp_max(127)
    grid, low, cell = _grid(x.still.means.astype(np.float64), recipe.bits)
    order = np.argsort(keys(grid), kind="stable")
    still = x.still.take(order)
    forms, ranges = formed(still)
    planes = {}
    for (s, i), codes in steps.items():
        centre = learner.centre[s, i][:, None, None]
        planes[s, i] = ((torch.from_numpy(x.planes[s][i]) - centre) / numbers(codes)[:, None, None]).round()
    sh = torch.from_numpy(still.sh) / numbers(shade)[torch.tensor(bands(still.sh.shape[1]))][:, None]
    found = Stored(
        grid[order], low, cell, forms, ranges, sh.round().clamp(-_LARGE, _LARGE), shade, planes, steps,
        learner.centre, dict(x.layers), x.frame, x.clock, *learner.models,
    )  # fmt: skip
    found.plane_model.fit(planes, {k: step_of(v) for k, v in steps.items()}, recipe.rounds, recipe.rate)
    facts = found.facts
    found.colour_model.fit(found.sh, (facts[0].float(), facts[1].float()), recipe.rounds, recipe.rate)
    return found


def _grid(means: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any], float]:
    """(cells [N, 3], corner, cell): so many bits for the middle of the scene, coarser only where strays are too far."""
    low, high = np.quantile(means, [0.01, 0.99], axis=0)
    all_low, all_high = means.min(0), means.max(0)
    span = float((all_high - all_low).max())
    middle = float((high - low).max()) or span or 1.0
    cell = max(middle / (1 << bits), span / ((1 << AXIS_BITS) - 2), float(np.abs(means).max()) * 1e-9)
    corner = all_low - cell / 2
    return np.floor((means - corner) / cell).astype(np.int64), corner, cell


def _within(recipe: Light4GS, learner: PricedLearner, cameras: list[Camera], limit: int | None) -> Packed:
    """The file; with a budget with coarser steps, and then only the Gaussians that are seen most."""
    for coarser in _COARSER:
        stored = stored_of(recipe, learner, coarser)
        packed = _packed(recipe, stored)
        if limit is None or packed.nbytes <= limit:
            return packed
    assert limit is not None
    order = np.argsort(-spatio_temporal(stored.scene(), cameras, [0.0, 0.5, 1.0]), kind="stable")
    one = _packed(recipe, stored.take(order[:1]))
    if one.nbytes > limit:
        why = "one Gaussian, and planes and nets as coarse as they get"
        raise BudgetError(limit, one.nbytes, who="splats.light4gs", why=why)
    each = (packed.nbytes - one.nbytes) / max(1, len(stored) - 1)
    kept = 1 + int((limit - one.nbytes) / max(each, 1e-9))
    while kept > 1:
        packed = _packed(recipe, stored.take(np.sort(order[: min(kept, len(stored))])))
        if packed.nbytes <= limit:
            return packed
        kept -= max(1, int((packed.nbytes - limit) / max(each, 1)), kept // 100)
    return one


def _packed(recipe: Light4GS, x: Stored) -> Packed:
    stream, notes = write(x)
    packed = Packed({"scene": stream}, {"room": "splats", "method": recipe.to_dict()})
    packed.notes = {**notes, "kept": len(x)}
    return packed
