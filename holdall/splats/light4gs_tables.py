"""Parts of a packed moving scene's stream that are tables: the small nets, widths and steps, the layers. Each is bytes,
and bytes that nobody wrote are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.errors import CorruptArtefact
from holdall.splats.hexplane import HEADS, TRUNK, depth
from holdall.splats.light4gs_colours import INPUTS, ColourModel
from holdall.splats.light4gs_gauss import WIDTHS
from holdall.splats.light4gs_hex import PlaneModel, sequence
from holdall.splats.light4gs_net import Expecting
from holdall.splats.light4gs_planes import FEATURES, HYPER, Plane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.light4gs_file import Stored

_MOST_LAYERS, _TOPS = 8, 127  # of a part; of a step's code


def nets_of(model: PlaneModel, colours: ColourModel) -> list[Expecting]:
    return [*([] if model.factorised else model.nets), *colours.nets]


def filled(raw: NDArray[Any], model: PlaneModel, colours: ColourModel) -> None:
    at = 0
    for nets, inputs, hidden in (
        ([] if model.factorised else model.nets, len(FEATURES), model.hidden),
        (colours.nets, INPUTS, colours.hidden),
    ):
        for i in range(len(nets)):
            size = Expecting.size(inputs, hidden)
            if at + size > raw.size:
                raise _wrong("its nets do not have their size")
            nets[i] = Expecting.of(raw[at : at + size], inputs, hidden)
            at += size
    if at != raw.size:
        raise _wrong("its nets do not have their size")


def tables_of(x: Stored) -> NDArray[Any]:
    """Widths, then steps, of planes and harmonics; and where planes' features are centred."""
    model = x.plane_model
    order = sequence(model.scales)
    small = [
        *(model.base[p] for p in order),
        x.colour_model.base.reshape(-1),
        *(x.steps[p] for p in order),
        x.shade,
    ]
    if "hyper" not in model.without:
        small.append(model.hyper_base.detach().round().clamp(0, WIDTHS - 1).reshape(-1))
    halves = torch.cat([x.centre[p] for p in order]).numpy().astype("<f2")
    return np.concatenate(
        [torch.cat([s.double() for s in small]).numpy().astype(np.uint8), halves.view(np.uint8)]
    )


def untabled(raw: NDArray[Any], model: PlaneModel, colours: ColourModel, h: dict[Plane, int]) -> Any:
    order = sequence(model.scales)
    each = [h[p] for p in order]
    hyper = 0 if "hyper" in model.without else 2 * HYPER
    cuts = np.cumsum([*each, colours.base.numel(), *each, 4, hyper])
    if raw.size != cuts[-1] + 2 * sum(each):
        raise _wrong("its tables do not have their size")
    parts = np.split(raw[: cuts[-1]].astype(np.float64), cuts[:-1])
    k = len(order)
    widths, steps = [*parts[: k + 1], parts[-1]], parts[k + 1 : -1]
    if max(w.max(initial=0) for w in widths) >= WIDTHS or max(s.max() for s in steps) > _TOPS:
        raise _wrong("its tables name widths or steps that there are not")
    model.base = {p: torch.from_numpy(w) for p, w in zip(order, widths, strict=False)}
    colours.base = torch.from_numpy(widths[k].reshape(-1, 3))
    if hyper:
        model.hyper_base = torch.from_numpy(widths[-1].reshape(2, HYPER))
    middles = raw[cuts[-1] :].copy().view("<f2").astype(np.float32)
    if not np.isfinite(middles).all():
        raise _wrong("its tables are not numbers")
    split = np.split(middles, np.cumsum(each)[:-1])
    return (
        {p: torch.from_numpy(s).long() for p, s in zip(order, steps, strict=False)},
        {p: torch.from_numpy(m) for p, m in zip(order, split, strict=True)},
        torch.from_numpy(steps[k]).long(),
    )


def layers_of(layers: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """How many of each part, their sizes, and float16 of all."""
    names = (TRUNK, *HEADS)
    counts = [depth(layers, name) for name in names]
    keys = [f"{name}/{i}" for name, k in zip(names, counts, strict=True) for i in range(k)]
    sizes = np.array([layers[f"{key}/w"].shape for key in keys], "<u2")
    halves = [layers[f"{key}/{part}"].astype("<f2").reshape(-1) for key in keys for part in "wb"]
    return np.concatenate(
        [np.array(counts, np.uint8), *(a.reshape(-1).view(np.uint8) for a in (sizes, *halves))]
    )


def unlayered(raw: NDArray[Any]) -> dict[str, NDArray[Any]]:
    names = (TRUNK, *HEADS)
    counts = raw[: len(names)].tolist()
    if len(counts) < len(names) or max(counts) > _MOST_LAYERS:
        raise _wrong("its layers are not told")
    keys = [f"{name}/{i}" for name, k in zip(names, counts, strict=True) for i in range(k)]
    at = len(names) + 4 * len(keys)
    sizes = raw[len(names) : at].copy()
    if sizes.size != 4 * len(keys):
        raise _wrong("its layers are cut short")
    found: dict[str, NDArray[Any]] = {}
    for key, (out, before) in zip(keys, sizes.view("<u2").reshape(-1, 2).tolist(), strict=True):
        for part, shape in (("w", (out, before)), ("b", (out,))):
            size = 2 * int(np.prod(shape))
            if at + size > raw.size:
                raise _wrong("its layers are cut short")
            found[f"{key}/{part}"] = raw[at : at + size].copy().view("<f2").astype(np.float32).reshape(shape)
            at += size
    if at != raw.size:
        raise _wrong("its layers go on after their end")
    return found


def _wrong(why: str) -> CorruptArtefact:
    return CorruptArtefact("a moving scene", why)
