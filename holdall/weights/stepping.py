"""A step for each row: what `MixLLM` does with a budget. Codes are entropy coded, so any step may be taken.

An error costs cost[o] step[o]^2 and a weight -log2(step[o]) bits, in every row of every matrix. So the least loss in
given bytes has cost[o] step[o]^2 alike everywhere; that level is the one number which the budget decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BudgetError
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.progress import track
from holdall.weights import by_column, coded_file
from holdall.weights.allotment import spent
from holdall.weights.calibrated import Known, calibrate
from holdall.weights.coded import WIDTHS, Coded
from holdall.weights.compensation import Grid, compensated, factor
from holdall.weights.scaling import windows

if TYPE_CHECKING:
    import torch

    from holdall.weights.mixllm import MixLLM
    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")

_MIDDLE = 128  # codes are made around it, and moved to the least width that holds their row
_SAMPLE = 128  # rows of a matrix that bits are guessed from
_NEAR, _TRIES = 0.996, 4
_TOGETHER, _CLIP, _SLACKS = (
    2,
    0.3,
    (0.002, 0.02),
)  # of training end to end: windows a step, norm of the gradient
_ENDLESS = 2.0**40  # a level at which all steps are the coarsest
_TINY = 2.0**-20  # a step that half precision still holds well
_LOOSE = (
    1.5  # of a row's mean size: the coarsest step, about 1.1 bits, for rows that calibration had no use for
)


class _Part:
    """One matrix, with its columns scaled so that an error in each costs alike."""

    def __init__(self, known: Known, recipe: MixLLM):
        w, gram = known.weight, known.moments
        self.columns: np.ndarray | None = None
        self.upper: torch.Tensor | None = None
        cost = known.share / max(float(np.square(w).mean()), 1e-30)
        if gram is not None:
            self.upper = factor(gram, recipe.damp)
            if recipe.even > 0:
                self.columns = by_column.even(self.upper, recipe.even)
                w = w / self.columns.astype(np.float32)
                self.upper = (self.upper / torch.from_numpy(self.columns.astype(np.float32))).contiguous()
            cost = _costs(known, self.upper if recipe.compensate else None, self.columns, recipe.damp)
            self.upper = self.upper if recipe.compensate else None
        self.weight, self.thrift = w, recipe.thrift
        self.cost = np.maximum(cost + recipe.prior * cost.mean(), 1e-30) ** recipe.trust
        self.finest = np.maximum(np.abs(w).max(1) / (_MIDDLE - 1), _TINY)
        self.coarsest = np.maximum(_LOOSE * np.sqrt(np.square(w).mean(1)), self.finest)
        self._sample = np.arange(0, len(w), max(1, len(w) // _SAMPLE))

    def steps(self, level: float) -> np.ndarray:
        """[O, 1], as half precision holds them."""
        wanted = np.clip(level / np.sqrt(self.cost), self.finest, self.coarsest)
        return wanted.astype(np.float16).astype(np.float32)[:, None]

    def guess(self, level: float) -> float:
        """About the bits of a weight."""
        step = self.steps(level)[self._sample]
        codes = np.clip(np.rint(self.weight[self._sample] / step) + _MIDDLE, 0, 255).astype(np.uint8)
        wide = row_widths(codes)
        return sum(spent(codes[wide == b]) for b in np.unique(wide)) / codes.size

    def coded(self, level: float) -> Coded:
        step = self.steps(level)
        grid = Grid(step, -_MIDDLE * step, 255, self.weight.shape[1])
        codes, parts = compensated(self.weight, grid, self.upper, self.thrift), []
        step, wide = refitted(self.weight, codes, step, self.upper), row_widths(codes)
        for b in np.unique(wide).tolist():
            where = np.flatnonzero(wide == b)
            moved = (codes[where].astype(np.int16) - _MIDDLE + (1 << b - 1)).astype(np.uint8)
            parts.append((where, Coded.of(moved, b, scale=step[where])))
        return Coded.mixed(parts)


def refitted(w: np.ndarray, codes: np.ndarray, step: np.ndarray, upper: torch.Tensor | None) -> np.ndarray:
    """[O, 1], the steps that suit given codes best in the outputs' error, at most a quarter from what they were."""
    q = torch.from_numpy(codes.astype(np.float32) - _MIDDLE)
    goal = torch.from_numpy(w / step)
    if upper is not None:  # inner products by the second moments that the factor is of
        q, goal = (torch.linalg.solve_triangular(upper.T, x.T, upper=False).T for x in (q, goal))
    size = q.square().sum(1)
    share = torch.where(size > 0, (q * goal).sum(1) / size.clamp_min(1e-30), torch.ones(()))
    return (step[:, 0] * share.clamp(0.8, 1.25).numpy())[:, None]


def row_widths(codes: np.ndarray) -> np.ndarray:
    """[O], the least width that holds each row's codes around the middle."""
    centred = codes.astype(np.int16) - _MIDDLE
    reach = np.maximum(-centred.min(1), centred.max(1) + 1)  # a width b holds -2**(b - 1) to 2**(b - 1) - 1
    limits = np.array([1 << b - 1 for b in WIDTHS])
    return np.array(WIDTHS)[np.searchsorted(limits, reach)]


def _costs(known: Known, upper: torch.Tensor | None, columns: np.ndarray | None, damp: float) -> np.ndarray:
    """[O], what a step of one costs in each row, but for a factor that all rows share."""
    assert known.gram is not None
    scale = torch.ones(len(known.gram)) if columns is None else torch.from_numpy(columns.astype(np.float32))

    def each(gram: torch.Tensor, u: torch.Tensor | None) -> float:
        mine = gram.diagonal() * scale.square() if u is None else u.diagonal() ** -2
        return float(mine.double().sum())

    if known.looked is None or known.slope is None:
        return known.share * each(known.gram, upper)
    head = None if upper is None else factor(known.gram, damp) / scale
    return known.share * each(known.gram, head) + known.looked * each(torch.diag(known.slope), None)


class Stepped:
    """All matrices of a model; `packed(level)` is a file."""

    def __init__(self, recipe: MixLLM, x: Model):
        self._recipe, self._x = recipe, x
        known = calibrate(x, recipe.windows, recipe.window, weighted=recipe.weighted)
        self._parts = {n: _Part(k, recipe) for n, k in track(known.items(), "factors", total=len(known))}
        self._count = sum(p.weight.size for p in self._parts.values())
        self._columns = {n: p.columns for n, p in self._parts.items() if p.columns is not None}

    def coded(self, level: float) -> dict[str, Coded]:
        return {n: p.coded(level) for n, p in track(self._parts.items(), "rounding", total=len(self._parts))}

    def _file(self, coded: dict[str, Coded], columns: dict[str, np.ndarray]) -> Packed:
        return by_column.added(coded_file.write(self._recipe, self._x, coded), columns)

    def packed(self, level: float) -> Packed:
        return self._file(self.coded(level), self._columns)

    def level(self, bits: float) -> float:
        """Where codes take so many bits a weight, as far as can be guessed."""
        low, high = -40.0, 40.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._bits(2.0**middle) > bits else (low, middle)
        return float(2.0**high)

    def _bits(self, level: float) -> float:
        return sum(p.guess(level) * p.weight.size for p in self._parts.values()) / max(1, self._count)

    def fit(self, limit: int) -> Packed:
        """The finest steps whose file fits, within a few thousandths."""
        return self._fitted(limit)[1]

    def tuned(self, limit: int, to: str | None) -> Packed:
        """The same, and then steps and columns learn from text end to end. Killed, that goes on (`unfinished`)."""
        from holdall.weights.end_to_end import EndToEnd, Schedule
        from holdall.weights.row_steps import RowSteps
        from holdall.weights.unfinished import digest, unfinished

        recipe, model = self._recipe, self._x
        tokens = windows(model, recipe.tune * _TOGETHER, recipe.window)
        schedule = Schedule(recipe.tune, _TOGETHER, recipe.rate, _CLIP, recipe.distill)
        packed: Packed | None = None
        for slack in _SLACKS:  # learned steps take a few bytes more or less
            level, first = self._fitted(limit - int(slack * limit))
            if not {"config.json", "tokenizer.json"} <= set(model.files):
                return first
            inputs = {"recipe": recipe.to_dict(), "of": digest(model, tokens, limit), "slack": slack}
            with unfinished(to, inputs) as work:
                rows = {n: RowSteps(c, self._columns.get(n)) for n, c in self.coded(level).items()}
                EndToEnd(schedule, model, tokens, rows, work).run()
                settled = {n: r.settled() for n, r in rows.items()}
            columns = {n: c for n, (_, c) in settled.items() if c is not None}
            packed = self._file({n: coded for n, (coded, _) in settled.items()}, columns)
            if packed.nbytes <= limit:
                return packed
        assert packed is not None
        raise BudgetError(limit, packed.nbytes, who="weights.mixllm", why="steps that were learned")

    def _fitted(self, limit: int) -> tuple[float, Packed]:
        best, rest = None, 0.0
        level = self.level(8 * limit / max(1, self._count))
        for _ in range(_TRIES):
            made = self.packed(level)
            if made.nbytes <= limit:
                best = (level, made) if best is None or made.nbytes > best[1].nbytes else best
                if made.nbytes >= _NEAR * limit or self._bits(level) >= self._bits(level / 4) - 0.01:
                    return best
            rest = made.nbytes - self._bits(level) * self._count / 8  # what the guess does not know of
            level = self.level(8 * (limit * (1 + _NEAR) / 2 - rest) / max(1, self._count))
        if best is None:
            least = self.packed(_ENDLESS)
            if least.nbytes > limit:
                raise BudgetError(limit, least.nbytes, who="weights.mixllm", why="the coarsest steps")
            while (made := self.packed(level)).nbytes > limit:
                level *= 1.1
            best = (level, made)
        return best
