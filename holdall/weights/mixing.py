"""Rows of two widths, or more: MixLLM's own form. Both codes of every row are made once; a budget only chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.optional import lazy
from holdall.progress import track
from holdall.weights.allotment import spent, widths_of
from holdall.weights.calibrated import Known, calibrate, matrices
from holdall.weights.clipping import clipped, laid, spans, symmetric, zeros
from holdall.weights.coded import Coded
from holdall.weights.compensation import Grid, compensated, factor

if TYPE_CHECKING:
    import torch

    from holdall.weights.mixllm import MixLLM
    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")

Rows = dict[str, np.ndarray]  # by matrix, each row's width


def plain_errors(w: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Q(W) - W of rounding to nearest, unclipped: what salience is asked about."""
    grid = laid(*spans(w, group), bits, group)
    return np.asarray(grid.values(grid.nearest(w)) - w, np.float32)


class Mixed:
    """A model's matrices at each of the recipe's widths."""

    def __init__(self, recipe: MixLLM, x: Model, widths: tuple[int, ...]):
        self._recipe, self.widths = recipe, widths
        weights = matrices(x)
        tied = x.embeddings()[0] if x.embeddings() else ""

        def errors(name: str) -> dict[int, torch.Tensor]:
            own = name if name in weights else tied
            return {
                b: torch.from_numpy(plain_errors(weights[own], b, recipe.columns(weights[own])))
                for b in widths[1:]
            }

        asked = errors if recipe.by in ("global", "layer") else None
        self._known = calibrate(
            x, recipe.windows, recipe.window, asked, weighted=recipe.weighted, kind=recipe.salience
        )
        self._made: dict[str, dict[int, tuple[Grid, np.ndarray]]] = {}
        for name, known in track(self._known.items(), "rounding", total=len(self._known)):
            self._made[name] = self._rounded(known)

    def _score(self, known: Known, by: str) -> dict[int, np.ndarray]:
        """What each row costs at each width but the widest."""
        w, found = known.weight, {}
        for bits in self.widths[1:] or self.widths:
            if by == "magnitude":
                found[bits] = np.abs(w).sum(1)
            elif bits in known.salience:
                found[bits] = known.salience[bits]
            else:
                squares = np.square(plain_errors(w, bits, self._recipe.columns(w))).sum(1)
                found[bits] = squares / max(float(np.square(w).mean()), 1e-30)
        return found

    def _rounded(self, known: Known) -> dict[int, tuple[Grid, np.ndarray]]:
        w, recipe, gram = known.weight, self._recipe, known.moments
        upper = None if gram is None or not recipe.compensate else factor(gram, recipe.damp)
        made = {}
        for bits in self.widths:
            grid = clipped(w, bits, recipe.columns(w), gram, recipe.clip)
            made[bits] = (grid, compensated(w, grid, upper))
        return made

    def rows(self, shares: tuple[float, ...], widths: tuple[int, ...], by: str = "") -> Rows:
        """by: as the recipe has it, or another way to choose."""
        by = by or self._recipe.by
        scores = {name: self._score(known, by) for name, known in self._known.items()}
        return widths_of(scores, widths, shares, by=by)

    def guess(self, rows: Rows) -> float:
        """About how many bytes `coded` of these would take."""
        bits = 0.0
        for name, width in rows.items():
            for b in np.unique(width):
                grid, codes = self._made[name][int(b)]
                here = width == b
                # steps have about 11 bits left after coding, zero points about two of theirs
                bits += spent(codes[here]) + here.sum() * grid.step.shape[1] * (
                    11 if symmetric(int(b)) else 14
                )
        return bits / 8

    def coded(self, rows: Rows) -> dict[str, Coded]:
        return {name: self._matrix(name, width) for name, width in rows.items()}

    def _matrix(self, name: str, width: np.ndarray) -> Coded:
        parts = []
        for b in sorted({int(b) for b in width}, reverse=True):
            where = np.flatnonzero(width == b)
            grid, codes = self._made[name][b]
            zero = None if symmetric(b) else zeros(grid)[where]
            parts.append(
                (where, Coded.of(codes[where], b, scale=grid.step[where], zero=zero, group=grid.group))
            )
        return Coded.mixed(parts)
