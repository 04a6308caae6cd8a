"""Which matrix gets how many bits: by what its rounding costs the loss, a byte, so that a budget is used up.

The cost of rounding is estimated to second order: squared gradients at each output times the error of that output, over
calibration text (`scaling.Walk`). Linears have whole widths. Tables (embeddings, a head) are rounded to whole multiples
of one step for a row, as many as there are, and rely on entropy coding: so their size can be anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from holdall.memory import release
from holdall.parts.entropy import shannon
from holdall.progress import track
from holdall.weights.choices import Choice, chosen
from holdall.weights.coded import Coded
from holdall.weights.fake_quant import codes_of, dequantised, starts
from holdall.weights.model import Model
from holdall.weights.qat_starts import SHRINKS
from holdall.weights.scaling import Slopes, Walk

if TYPE_CHECKING:
    from holdall.weights.efficientqat import EfficientQAT

WIDTHS = (2, 3, 4, 5, 6, 8)
STEPS = tuple(1.6 * 2 ** (-i / 3) for i in range(16))  # of tables, in root mean squares of a row
_LINES, _TABLE_LINES = 256, 4096  # rows that are weighed
_LEARNED = 0.3  # of the error of linears is about what training leaves


@dataclass
class Plan:
    """widths: bits of linears; steps: of tables; size: bytes of them all, about."""

    widths: dict[str, int] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    size: int = 0


class Planner:
    """Knows what each matrix costs; `plan(limit)` chooses."""

    def __init__(
        self, recipe: EfficientQAT, model: Model, walk: Walk | None, linears: list[str], tables: list[str]
    ):
        self.recipe, self.model = recipe, model
        self._errors: dict[str, list[torch.Tensor]] = {}  # of each setting, each output's error
        self._sizes: dict[str, list[int]] = {}
        self._settings: dict[str, list[float]] = {}
        self._rows: dict[str, torch.Tensor] = {}  # those that were weighed
        grams: dict[str, torch.Tensor] = {}
        if walk is not None:
            for seen in track(walk.statistics(), "weighing the blocks", total=len(walk.blocks) + 1):
                for name, found in seen.items():
                    if name in linears:
                        self._weigh(name, found.gram)
                    elif name == walk.head_name:
                        grams[name] = found.gram
                release()
        for name in linears:
            if name not in self._errors:
                self._weigh(name, None)
        slopes = walk.slopes() if walk is not None else Slopes()
        self.choices = {n: self._choice(n, slopes.outputs.get(n), _LEARNED) for n in linears}
        for name in tables:
            self._weigh_table(
                name, grams.get(walk.head_name if walk else ""), slopes, walk.head_name if walk else ""
            )
            self.choices[name] = self._choice(name, None, 1.0)
            if recipe.table_bits:
                self.choices[name] = self.choices[name].nearest(
                    recipe.table_bits * model.state[name].numel() / 8
                )
        self.tables = set(tables)

    def _weigh(self, name: str, gram: torch.Tensor | None) -> None:
        whole = self.model.state[name].detach()
        weight, self._rows[name] = _drawn(whole, _LINES)
        group = self.recipe.group_of(weight.shape[1])
        widths = (self.recipe.bits,) if self.recipe.bits else WIDTHS
        self._settings[name] = [float(bits) for bits in widths]
        self._errors[name], self._sizes[name] = [], []
        for bits in widths:
            scale, zero = starts(weight, bits, group, SHRINKS if bits < 5 else SHRINKS[:2])
            codes = codes_of(weight, scale, zero, bits, group)
            wrong = dequantised(codes, scale, zero, group) - weight
            error = wrong.square() if gram is None else (wrong @ gram) * wrong
            self._errors[name].append(error.sum(1))
            self._sizes[name].append(_bytes(codes, bits, scale, zero, len(whole)))

    def _weigh_table(self, name: str, gram: torch.Tensor | None, slopes: Slopes, head: str) -> None:
        whole = self.model.state[name].detach()
        weight, rows = _drawn(whole, _TABLE_LINES)
        self._rows[name] = rows
        self._errors[name], self._sizes[name], self._settings[name] = [], [], list(STEPS)
        outputs, embedded = slopes.outputs.get(head), slopes.embedded
        counts = torch.zeros(len(whole))
        if slopes.counts is not None:
            counts[: len(slopes.counts)] = slopes.counts[: len(whole)].float()
        for step in STEPS:
            coded = table(weight, step)
            wrong = torch.from_numpy(coded.dense()) - weight
            error = wrong.square().sum(1) / max(1e-30, float(weight.square().sum()))
            if gram is not None and outputs is not None and len(outputs) == len(whole):
                error = outputs[rows] * ((wrong @ gram) * wrong).sum(1)
                if embedded is not None:
                    error = error + counts[rows] / counts.sum() * (wrong.square() @ embedded)
            (band,) = coded.bands
            scale, zero = (torch.from_numpy(g) for g in band.grids() if g is not None)
            self._errors[name].append(error)
            self._sizes[name].append(
                _bytes(torch.from_numpy(band.codes()), band.bits, scale, zero, len(whole))
            )

    def _choice(self, name: str, slopes: torch.Tensor | None, share: float) -> Choice:
        errors, rows = self._errors[name], self._rows[name]
        share *= len(self.model.state[name]) / len(rows)
        weights = torch.ones(len(rows)) if slopes is None else slopes[rows]
        losses = [share * float((weights * e).sum()) for e in errors]
        return Choice(self._settings[name], self._sizes[name], losses)

    def plan(self, limit: int | None) -> Plan:
        """What loses least in `limit` bytes; the least there is where that does not fit."""
        return self._usual() if limit is None else self._made(chosen(self.choices, limit))

    def _usual(self) -> Plan:
        """The paper's two bits; tables at about five."""
        picked = {}
        for name, choice in self.choices.items():
            wanted = 5 * self.model.state[name].numel() / 8
            picked[name] = (
                choice.settings.index(choice.nearest(wanted).settings[0]) if name in self.tables else 0
            )
        return self._made(picked)

    def _made(self, picked: dict[str, int]) -> Plan:
        plan = Plan()
        for name, i in picked.items():
            choice = self.choices[name]
            plan.size += choice.sizes[i]
            if name in self.tables:
                plan.steps[name] = choice.settings[i]
            else:
                plan.widths[name] = int(choice.settings[i])
        return plan


def _drawn(whole: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(some rows in float32, which)."""
    rows = torch.arange(0, len(whole), max(1, len(whole) // most))
    return whole[rows].float(), rows


def _bytes(codes: torch.Tensor, bits: int, scale: torch.Tensor, zero: torch.Tensor, rows: int) -> int:
    """What the file will hold of a matrix with that many rows like these, about."""
    halves = [g.half().contiguous().numpy().view(np.uint8).reshape(-1, 2) for g in (scale, zero)]
    total = min(float(bits), shannon(codes.numpy(), bits)) * codes.numel()
    total += sum(shannon(h[:, i].copy(), 8) * len(h) for h in halves for i in (0, 1))
    return int(total / 8 * rows / len(codes)) + 150


def table(weight: torch.Tensor, step: float) -> Coded:
    """A table on multiples of `step` root mean squares of each row."""
    values = weight.detach().float()
    scale = (step * values.square().mean(1, keepdim=True).sqrt()).clamp(min=6e-8, max=60000).half().float()
    codes = torch.round(values / scale)
    reach = int(codes.abs().max().clamp(max=127))
    bits = next(b for b in (2, 3, 4, 5, 6, 8) if reach < 1 << (b - 1))
    zero = 1 << (bits - 1)
    held = (codes.clamp(-reach, reach) + zero).to(torch.uint8)
    return Coded.of(held.numpy(), bits, scale=scale.numpy(), zero=np.full(scale.shape, zero), group=0)
