"""One run of eDKM on one model: widths within the budget, k-means, fine-tuning where there is text, the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from holdall.errors import BudgetError
from holdall.packed import Packed
from holdall.parts.entropy import shannon
from holdall.weights import coded_file
from holdall.weights.calibrated import Known, calibrate, matrices
from holdall.weights.choices import Choice, chosen
from holdall.weights.coded import Coded
from holdall.weights.edkm_training import FineTuning
from holdall.weights.model import Model
from holdall.weights.palettes import Palette
from holdall.weights.scaling import windows

if TYPE_CHECKING:
    from holdall.weights.edkm import EDKM

WIDTHS = (2, 3, 4, 5, 6, 8)
_LINEARS, _TABLES = 3, 8  # the paper's bits
_TRIED = 4  # bits up to which errors are measured; each further bit divides them by four
_PROBES = 8  # windows that costs are estimated on
_ROWS = 256  # of a matrix, on which widths are tried
_MARGIN = 0.99  # of the budget that is planned, as training moves how codes are distributed
_HEADER = 300  # bytes of a matrix that are not codes: words, a histogram, a table
_WHO = "weights.edkm"


class Run:
    def __init__(self, recipe: EDKM, model: Model, limit: int | None):
        self.recipe, self.model, self.limit = recipe, model, limit
        self.runs = {"config.json", "tokenizer.json"} <= set(model.files)
        given = model.calibration is not None or recipe.learn == "always"
        self.learns = self.runs and given
        self.weights = matrices(model)
        inside = set(model.linears()) if self.runs else set(self.weights) - set(model.embeddings())
        self.tables = [n for n in self.weights if n not in inside]
        self.losses: list[float] = []

    def packed(self) -> Packed:
        self.known = calibrate(self.model, _PROBES if self.learns else 0, self.recipe.window)
        told = {n: felt(k) for n, k in self.known.items()} if self.recipe.weighted else {}
        self.felt = {n: f for n, f in told.items() if f is not None}
        self.widths = self._widths()
        coded: dict[str, Coded] = {}
        if self.learns and self.recipe.steps and self.model.skeleton().get_output_embeddings() is not None:
            tokens = windows(self.model, self.recipe.windows, self.recipe.window)
            tuning = FineTuning(self.recipe, self.model, tokens, self.widths, self.felt)
            coded = tuning.run()
            self.losses = tuning.losses
        for name, width in self.widths.items():
            if name not in coded:
                coded[name] = self.clustered(name, torch.from_numpy(self.weights[name]), width)
        return self._within(coded)

    def clustered(self, name: str, weight: torch.Tensor, bits: int, every: int = 1) -> Coded:
        """By k-means alone; every: of so many rows one."""
        known = self.felt.get(name)
        part, costs = weight[::every], None if known is None else (known[0][::every], known[1])
        return Palette(part, bits, felt=costs, **self.recipe.palette()).coded(part)

    def written(self, coded: dict[str, Coded]) -> Packed:
        return coded_file.write(self.recipe, self.model, coded)

    def _settings(self, name: str) -> tuple[int, ...]:
        own = self.recipe.table_bits if name in self.tables else self.recipe.bits
        return (own,) if own else WIDTHS

    def _widths(self) -> dict[str, int]:
        if self.limit is None:
            usual = {n: _TABLES if n in self.tables else _LINEARS for n in self.weights}
            return {n: s[0] if len(s := self._settings(n)) == 1 else usual[n] for n in self.weights}
        narrow = {n: self._settings(n)[0] for n in self.weights}
        rest = self._rest()
        least = rest + sum(self._most(n, b) for n, b in narrow.items())
        if self.limit < least:
            raise BudgetError(self.limit, least, who=_WHO, why="the narrowest palettes there are")
        choices = self._choices()
        at = chosen(choices, int(_MARGIN * (self.limit - rest)))
        return {n: int(choices[n].settings[i]) for n, i in at.items()}

    def _rest(self) -> int:
        """Bytes of the file without its matrices."""
        tiny = {n: t if n not in self.weights else t[:1, :1] for n, t in self.model.state.items()}
        return coded_file.write(self.recipe, Model(tiny, self.model.files, self.model.name), {}).nbytes

    def _most(self, name: str, bits: int) -> int:
        """No more than this will a matrix take: at fixed width, half precision scales and tables."""
        rows, columns = self.weights[name].shape
        bands, group = -(-rows // (self.recipe.rows or rows)), self.recipe.group
        groups = 0 if group is None else -(-columns // min(group or columns, columns))
        each = 2 * (2 << bits) + _HEADER + 4 * (rows * columns >> 16)  # chunks of entropy coded codes
        return (
            (rows * columns * bits + 7) // 8 + 2 * rows * groups + (rows if bands > 1 else 0) + bands * each
        )

    def _choices(self) -> dict[str, Choice]:
        found = {}
        for name, weight in self.weights.items():
            settings = self._settings(name)
            tried = {b: self._tried(name, torch.from_numpy(weight), b) for b in range(2, _TRIED + 1)}
            sizes, losses = [], []
            for b in settings:
                error, saved = tried[min(b, _TRIED)]
                losses.append(error * 4.0 ** min(0, _TRIED - b))
                sizes.append(int(self._most(name, b) - saved))
            found[name] = Choice([float(b) for b in settings], sizes, losses)
        return found

    def _tried(self, name: str, weight: torch.Tensor, bits: int) -> tuple[float, float]:
        """(what the error costs the loss, bytes that entropy coding saves), by some of the rows."""
        every = max(1, len(weight) // _ROWS)
        some = weight[::every]
        coded = self.clustered(name, some if every == 1 else weight, bits, every)
        wrong = np.square(coded.dense() - some.numpy())
        codes = np.concatenate([b.codes().reshape(-1) for b in coded.bands])
        saved = max(0.0, bits - shannon(codes, bits)) * weight.numel() / 8
        costs = felt(self.known[name])
        if costs is None:  # all matrices alike, by their numbers
            return float(wrong.sum()) / max(1e-30, float(some.square().sum())) * weight.numel(), saved
        return every * float(costs[0][::every] @ wrong.astype(np.float64) @ costs[1]), saved

    def _within(self, coded: dict[str, Coded]) -> Packed:
        """The file; where training made codes that do not pack as planned, matrices that matter least get narrower."""
        packed = self.written(coded)
        while self.limit is not None and packed.nbytes > self.limit:
            over, by = packed.nbytes - self.limit, sorted(self.widths, key=lambda n: -self.weights[n].size)
            for name in by:
                narrower = [b for b in self._settings(name) if b < self.widths[name]]
                if over > 0 and narrower:
                    before = coded[name].sections("w")["w"].nbytes
                    self.widths[name] = narrower[-1]
                    coded[name] = self.clustered(name, torch.from_numpy(coded[name].dense()), narrower[-1])
                    over -= before - coded[name].sections("w")["w"].nbytes
            packed = self.written(coded)
        return packed


def felt(known: Known) -> tuple[np.ndarray, np.ndarray] | None:
    """What a squared error costs the loss, by rows [O] times columns [I]; None where no text was asked."""
    moments = known.moments
    return None if moments is None else (known.share.astype(np.float64), moments.diagonal().double().numpy())
