"""What each method would give at each size: predicted from a sample of the model, or measured on all of it.

A sample of few layers feels errors otherwise than the whole does. Rounding to nearest at three widths, which costs
little even on a large model, is done to both; what the whole loses is read off the line through these points.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdall.errors import BudgetError
from holdall.progress import track
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model
from holdall.weights.sample import Sample, judge, sample, windows
from holdall.weights.trial import attempt, called

_WIDTHS = (6, 4, 3)  # of rounding to nearest, which links the sample to the whole
_GROUP = 64
_TINY = 1e-9
QUALITY = ("perplexity_ratio", "cosine", "lost")  # the one that is shown: the first that was found


@dataclass(frozen=True)
class Cell:
    """One method at one size: predicted, and measured where that was asked for.

    Figures have bytes, seconds of packing and what of QUALITY applies; where the size is too small they have
    least_bytes alone.
    """

    method: WeightCodec
    limit: int
    predicted: dict[str, float]
    measured: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        told = self.method.to_dict()
        name = told.pop("method")
        return {
            "method": name, "knobs": told, "called": called(self.method), "into_bytes": self.limit,
            "predicted": self.predicted, "measured": self.measured,
        }  # fmt: skip


@dataclass(frozen=True)
class Link:
    """Points (lost by the sample, lost by the whole), falling; between and beyond them a line in logarithms."""

    points: tuple[tuple[float, float], ...] = ()

    def whole(self, lost: float) -> float:
        if len(self.points) < 2:
            return lost
        at, to = (np.log(np.maximum(v, _TINY)) for v in zip(*sorted(self.points), strict=True))
        x = math.log(max(lost, _TINY))
        if at[0] <= x <= at[-1]:
            return float(np.exp(np.interp(x, at, to)))
        a, b = (0, 1) if x < at[0] else (-2, -1)
        slope = float(np.clip((to[b] - to[a]) / max(at[b] - at[a], _TINY), 0.25, 4.0))
        return float(np.exp(to[a if x < at[0] else b] + slope * (x - at[a if x < at[0] else b])))


def link(cut: Sample, tokens: Any) -> Link:
    if cut.whole:
        return Link()
    return Link(tuple((_lost(cut.model, cut.judged, b), _lost(cut.of, tokens, b)) for b in _WIDTHS))


def _lost(x: Model, tokens: Any, bits: int) -> float:
    """By rounding every matrix to nearest."""
    import torch

    from holdall.weights.calibrated import matrices
    from holdall.weights.rtn import rounded

    dense = {n: torch.from_numpy(rounded(w, bits, _GROUP).dense()) for n, w in matrices(x).items()}
    return judge(x, Model({**x.state, **dense}, x.files, x.name), tokens)["lost"]


def quality(lost: float, figures: dict[str, float]) -> dict[str, float]:
    """What is shown of a loss: a model that says what it means rises in perplexity by its divergence."""
    if "perplexity_ratio" in figures:
        return {"perplexity_ratio": math.exp(min(lost, 50.0)), "lost": lost}
    return {"cosine": 1 - lost, "lost": lost} if "cosine" in figures else {"lost": lost}


def forecast(
    x: Model,
    limits: Sequence[int],
    tried: Sequence[WeightCodec],
    *,
    measure: bool = False,
    most: int = 20_000_000,
    count: int = 4,
    length: int = 256,
) -> list[Cell]:
    """A cell for each method and size. most: numbers of the sample; count, length: of the windows judged."""
    cut, tokens = sample(x, most, count, length), windows(x, count, length)
    known, cells = link(cut, tokens), []
    pairs = [(m, limit) for m in tried for limit in limits]
    for method, limit in track(pairs, "predicting"):
        cells.append(Cell(method, limit, predicted(method, cut, limit, known)))
    if not measure:
        return cells
    pairs_done = track(cells, "measuring", total=len(cells))
    return [Cell(c.method, c.limit, c.predicted, measured(c.method, x, c.limit, tokens)) for c in pairs_done]


def predicted(method: WeightCodec, cut: Sample, limit: int, known: Link) -> dict[str, float]:
    """Methods that train are tried with little text and few steps: they can do better, and take longer."""
    found = attempt(method, cut, limit, brief=method.trains)
    if found.lost is None:
        return {"least_bytes": found.nbytes}
    times = cut.of.elements / max(1, cut.model.elements)
    told = quality(found.lost if cut.whole else known.whole(found.lost), found.figures)
    if cut.whole and "perplexity_ratio" in found.figures:
        told["perplexity_ratio"] = found.figures["perplexity_ratio"]
    return {"bytes": min(found.nbytes, limit), **told, "seconds": found.seconds * times}


def measured(method: WeightCodec, x: Model, limit: int, tokens: Any) -> dict[str, float]:
    """Packed into a file, decoded from it, judged."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            packed = method.encode(x, limit, to=str(Path(folder) / "m.hold"))
        except BudgetError as fault:
            return {"least_bytes": int(fault.least)}
        with packed:
            seconds = time.perf_counter() - started
            found = judge(x, method.decode(packed), tokens)
            return {"bytes": packed.nbytes, **found, "seconds": seconds}
