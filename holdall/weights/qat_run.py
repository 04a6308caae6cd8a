"""One run of EfficientQAT on one model: plan, train block by block, fit the tables, train the steps, write the file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.block_training import BlockTraining
from holdall.weights.coded import Coded
from holdall.weights.end_to_end import EndToEnd, Schedule, Steps
from holdall.weights.fake_quant import codes_of, starts
from holdall.weights.model import Model
from holdall.weights.qat_plan import Plan, Planner, table
from holdall.weights.qat_starts import SHRINKS
from holdall.weights.scaling import Walk, block_list, windows
from holdall.weights.unfinished import digest, unfinished

if TYPE_CHECKING:
    from holdall.weights.efficientqat import EfficientQAT

_MARGINS = (1.004, 1.03, 1.1)  # how much larger a trained file is taken to be than planned, until it fits
_LEAST_MARGIN = 1.1
_PROBES = 8  # windows that widths are chosen on
_WHO, _NARROW = "weights.efficientqat", "the narrowest numbers there are"


class Run:
    def __init__(self, recipe: EfficientQAT, model: Model, to: str | None, limit: int | None):
        self.recipe, self.model, self.to, self.limit = recipe, model, to, limit
        self.runs = {"config.json", "tokenizer.json"} <= set(model.files)
        self._planner: Planner | None = None
        self.tokens = windows(model, recipe.windows, recipe.window) if self.runs else torch.zeros(0, 0)
        matrices = [n for n, t in model.state.items() if t.is_floating_point() and t.ndim == 2 and t.numel()]
        inside = self._inside() if self.runs else set(matrices) - set(model.embeddings())
        self.linears = [n for n in matrices if n in inside]
        self.tables = [n for n in matrices if n not in inside and recipe.table_bits != 16]

    def _inside(self) -> set[str]:
        """Names of the weights of linears in blocks."""
        skeleton = self.model.skeleton()
        blocks = {id(m) for b in block_list(skeleton) for m in b.modules() if type(m) is torch.nn.Linear}
        found = {f"{n}.weight" for n, m in skeleton.named_modules() if id(m) in blocks}
        if not found & set(self.model.state):
            raise BadInput("model", type(skeleton).__name__, "blocks with linears in them")
        return found

    def packed(self) -> Packed:
        with unfinished(
            self.to, {"recipe": self.recipe.to_dict(), "of": digest(self.model, self.tokens, self.limit)}
        ) as work:
            self.work = work
            if self.limit is None:
                return self._trained(self._planned(None))
            for margin in (*_MARGINS, None):
                plan = self._planned(margin)
                packed = self._trained(plan)
                if packed.nbytes <= self.limit:
                    return packed
                self.work.drop()
            raise BudgetError(self.limit, packed.nbytes, who=_WHO, why=_NARROW)

    def _planned(self, margin: float | None) -> Plan:
        """The plan of an earlier run that was killed, or a new one. margin None: the narrowest."""
        part = self.work.get("plan")
        if part is not None and part.meta["margin"] == margin:
            return Plan(**part.meta["plan"])
        if self._planner is None:
            self._planner = Planner(self.recipe, self.model, self._walk(), self.linears, self.tables)
        planner = self._planner
        if self.limit is None:
            plan = planner.plan(None)
        else:
            rest, narrow = self.written({}, without=True).nbytes, planner.plan(0)
            if self.limit < narrow.size / _LEAST_MARGIN + rest:
                least = int(narrow.size * _LEAST_MARGIN) + rest
                raise BudgetError(self.limit, least, who=_WHO, why=_NARROW)
            plan = narrow if margin is None else planner.plan(int((self.limit - rest) / margin))
        told = {"plan": dataclasses.asdict(plan), "margin": margin}
        self.work.put("plan", Packed({}, {"room": "weights", "method": {}, **told}))
        return plan

    def _walk(self) -> Walk | None:
        if not self.runs:
            return None
        few = self.tokens[:: max(1, len(self.tokens) // _PROBES)][:_PROBES]
        return Walk(self.model.build(), few, max(1, len(few) // 2))

    def written(self, coded: dict[str, Coded], without: bool = False) -> Packed:
        """The file; `without`: only what is not rounded."""
        x = self.model
        if without:
            kept = {n: t if n not in (*self.linears, *self.tables) else t[:0, :0] for n, t in x.state.items()}
            x = Model(kept, x.files, x.name)
        return coded_file.write(self.recipe, x, coded)

    def _trained(self, plan: Plan) -> Packed:
        self.plan = plan
        tables = {n: table(self.model.state[n], step) for n, step in plan.steps.items()}
        if not self.runs:
            return self.written(self._rounded(plan) | tables)
        training = BlockTraining(self.recipe, self.model, self.tokens, plan.widths, tables, self.work)
        blocks = training.run()
        self.errors = training.told
        if self.limit is not None and not self.recipe.table_bits:
            tables = self._filled(plan, blocks, self.limit)
        coded = self.blocks = blocks | tables
        if self.recipe.steps:
            coded = coded | self._learned(coded)
        return self.written(coded)

    def _learned(self, coded: dict[str, Coded]) -> dict[str, Coded]:
        """Those that have steps to learn, with what they learned."""
        r = self.recipe
        schedule = Schedule(r.steps, r.batch, r.step_rate, r.clip, r.distill, r.seed)
        whole = {n: c for n, c in coded.items() if len(c.bands) == 1 and c.bands[0].level == "zero"}
        steps = {n: Steps(c) for n, c in whole.items()}
        EndToEnd(schedule, self.model, self._long(), steps, self.work).run()
        return {n: s.settled() for n, s in steps.items()}

    def _long(self) -> torch.Tensor:
        return windows(self.model, self.recipe.steps * self.recipe.batch, self.recipe.window)

    def _rounded(self, plan: Plan) -> dict[str, Coded]:
        """Matrices of which nothing is known but their numbers."""
        made = {}
        for name, bits in plan.widths.items():
            weight = self.model.state[name].detach().float()
            group = self.recipe.group_of(weight.shape[1])
            scale, zero = starts(weight, bits, group, (1.0,) if self.recipe.start == "minmax" else SHRINKS)
            codes = codes_of(weight, scale, zero, bits, group)
            made[name] = Coded.of(codes.numpy(), bits, scale=scale.numpy(), zero=zero.numpy(), group=group)
        return made

    def _filled(self, plan: Plan, blocks: dict[str, Coded], limit: int) -> dict[str, Coded]:
        """Tables as fine as what the trained blocks left allows, between half and thrice the planned step."""
        held = self.written(blocks | {n: table(self.model.state[n], 1e9) for n in plan.steps}).nbytes
        left = limit - held - int(0.001 * limit)
        fine, coarse = 0.5, 3.0
        for _ in range(7):
            middle = (fine * coarse) ** 0.5
            size = sum(
                table(self.model.state[n], step * middle).sections("w")["w"].nbytes
                for n, step in plan.steps.items()
            )
            fine, coarse = (fine, middle) if size <= left else (middle, coarse)
        return {n: table(self.model.state[n], step * coarse) for n, step in plan.steps.items()}
