"""Block-AP: one block of a model after the other learns its weights, steps and zero points at low bits.

Block k is given what the quantised blocks before it put out (X_q), and learns to give what the float block gives for
what the float blocks before it put out (X_fp). Beside the model only one block's copies and two files of hidden states
are held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.memory import release
from holdall.packed import Packed
from holdall.progress import track
from holdall.weights.coded import Coded
from holdall.weights.fake_quant import LEAST_STEP, FakeQuant, codes_of
from holdall.weights.model import Model
from holdall.weights.packed_linear import put
from holdall.weights.qat_starts import started
from holdall.weights.scaling import Walk
from holdall.weights.unfinished import States, Unfinished

if TYPE_CHECKING:
    from holdall.weights.efficientqat import EfficientQAT

_LAST = 1 / 20  # of the learning rate, at the end of its cosine
_PROBED = 16  # windows that errors are measured on
_TOGETHER = 4  # windows that are run at once where nothing is learned


class FakeLinear(torch.nn.Module):
    """y = x W_hat^T + bias, with W, s and z to learn."""

    def __init__(self, inner: torch.nn.Linear, bits: int, group: int):
        super().__init__()
        self.inner, self.bits, self.group = (
            (inner,),
            bits,
            group,
        )  # in a tuple: no child, nothing of it is learned
        self.weight = torch.nn.Parameter(inner.weight.detach().float().clone())
        self.scale = torch.nn.Parameter(torch.empty(0))
        self.zero = torch.nn.Parameter(torch.empty(0))
        self.bias, self.short = inner.bias, half_is_fast()

    def start(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> None:
        self.weight.data, self.scale.data, self.zero.data = weight, scale, zero
        self._least = scale.detach() / 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.scale.numel():  # not started: as it was
            return torch.nn.functional.linear(x, self.weight, self.bias)
        hat = FakeQuant.apply(self.weight, self.scale, self.zero, self.bits, self.group)
        return product(x, hat, self.bias, self.short)

    def stay_possible(self) -> None:
        """Steps stay above nothing, and zero points where they can be stored."""
        with torch.no_grad():
            self.scale.copy_(torch.maximum(self.scale, self._least).clamp_(min=LEAST_STEP))
            self.zero.clamp_(0, (1 << self.bits) - 1)

    def settle(self) -> Coded:
        """Steps in half precision, whole zero points, whole numbers: as they are stored."""
        with torch.no_grad():
            self.scale.copy_(self.scale.half().float().clamp_(min=LEAST_STEP))
            self.zero.round_()
            codes = codes_of(self.weight, self.scale, self.zero, self.bits, self.group)
        return Coded.of(
            codes.numpy(), self.bits, scale=self.scale.detach().numpy(), zero=self.zero.detach().numpy(),
            group=self.group,
        )  # fmt: skip


def half_is_fast() -> bool:
    """Whether this processor multiplies in bfloat16 faster than in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def product(x: torch.Tensor, hat: torch.Tensor, bias: torch.Tensor | None, half: bool) -> torch.Tensor:
    """x hat^T + bias in mixed precision; float32 where nothing is learned, so that what is measured is what is run."""
    if half and torch.is_grad_enabled():
        out = torch.nn.functional.linear(x.bfloat16(), hat.bfloat16()).float()
        return out if bias is None else out + bias
    return torch.nn.functional.linear(x, hat, bias)


class BlockTraining:
    """run() -> the coded matrices of all blocks, by tensor name."""

    def __init__(
        self,
        recipe: EfficientQAT,
        model: Model,
        tokens: torch.Tensor,
        widths: dict[str, int],
        tables: dict[str, Coded],
        work: Unfinished,
    ):
        self.recipe, self.tokens, self.widths, self.work = recipe, tokens, widths, work
        self.model, self.tables = model, tables
        self.module = model.build()
        self.walk = Walk(self.module, tokens[:1], 0)
        self.names = {id(m): n for n, m in self.module.named_modules()}
        self.told: list[dict[str, float]] = []  # of each block: error before and after

    def run(self) -> dict[str, Coded]:
        done: dict[str, Coded] = {}
        count = len(self.walk.blocks)
        for k in track(range(count), "training the blocks", total=count):
            part = self.work.get(f"block-{k}")
            if part is None:
                part = self._block(k)
                release()  # holes that a block left are as large as a block
            self.told.append(part.meta["error"])
            done |= {n: Coded.of_sections(part.arrays, n) for n in part.arrays}
        return done

    def _states(self, k: int) -> tuple[States, States]:
        """(X_fp, X_q) that block k is given."""
        shape = (*self.tokens.shape, self._hidden())
        of_float, of_packed = (self.work.states(f"{kind}-{k}", shape) for kind in ("float", "packed"))
        if k == 0 and not (of_float.whole() and of_packed.whole()):
            of_float.fill(lambda: self._first(self.walk))
            dense = {n: torch.from_numpy(c.dense()) for n, c in self.tables.items()}
            near = Model({**self.model.state, **dense}, self.model.files).build()
            walk = Walk(near, self.tokens[:1], 0)
            of_packed.fill(lambda: self._first(walk))
        return of_float, of_packed

    def _hidden(self) -> int:
        return self.walk.hidden_size

    def _first(self, walk: Walk) -> Iterator[torch.Tensor]:
        with torch.no_grad():
            for ids in self.tokens:
                yield walk.first_input(ids[None])

    def _block(self, k: int) -> Packed:
        given, given_q = self._states(k)
        wanted, wanted_q = (self.work.states(f"{kind}-{k + 1}", given.shape) for kind in ("float", "packed"))
        block = self.walk.blocks[k]
        wanted.fill(lambda: self.through(block, given))
        fakes = self._fakes(block)
        started(self.recipe.start, self, block, fakes, given_q)
        before = self._error(block, given_q, wanted)
        if self.recipe.learned != "nothing" and fakes:
            self._learn(k, block, fakes, given_q, wanted)
        coded = {n: fake.settle() for n, fake in fakes.items()}
        wanted_q.fill(lambda: self.through(block, given_q))
        after = self._error(block, given_q, wanted)
        for name, fake in fakes.items():
            put(self.module, name.removesuffix(".weight"), fake.inner[0])
        sections: dict[str, np.ndarray] = {}
        for name, matrix in coded.items():
            sections |= matrix.sections(name)
        part = Packed(
            sections, {"room": "weights", "method": {}, "error": {"before": before, "after": after}}
        )
        self.work.put(f"block-{k}", part)
        for old in (given, given_q):
            old.drop()
        return part

    def _fakes(self, block: Any) -> dict[str, FakeLinear]:
        """The block's linears, replaced."""
        found = {}
        for inner in [m for m in block.modules() if type(m) is torch.nn.Linear]:
            path = self.names[id(inner)]
            if path + ".weight" in self.widths:
                fake = FakeLinear(
                    inner, self.widths[path + ".weight"], self.recipe.group_of(inner.in_features)
                )
                put(self.module, path, fake)
                found[path + ".weight"] = fake
        return found

    def batches(self, order: list[int], size: int) -> Iterator[list[int]]:
        for at in range(0, len(order), size):
            yield order[at : at + size]

    def through(self, block: Any, given: States) -> Iterator[torch.Tensor]:
        with torch.no_grad():
            for which in self.batches(list(range(given.shape[0])), _TOGETHER):
                yield self.walk.run(block, given.rows(which))

    def _error(self, block: Any, given: States, wanted: States) -> float:
        """Mean squared error of the block's outputs, on some of the windows."""
        total, some = 0.0, list(range(0, given.shape[0], -(-given.shape[0] // _PROBED)))
        with torch.no_grad():
            for i in some:
                out = self.walk.run(block, given.rows([i]))
                total += float((out - wanted.rows([i])).double().square().mean())
        return total / len(some)

    def _learn(self, k: int, block: Any, fakes: dict[str, FakeLinear], given: States, wanted: States) -> None:
        recipe = self.recipe
        groups: list[dict[str, Any]] = []
        for fake in fakes.values():
            size = float(fake.scale.detach().mean())  # of a step: rates are shares of it
            groups.append({"params": [fake.scale], "lr": recipe.grid_rate * size})
            groups.append({"params": [fake.zero], "lr": recipe.grid_rate})
            if recipe.learned == "all":
                groups.append({"params": [fake.weight], "lr": recipe.weight_rate * size})
            else:
                fake.weight.requires_grad_(False)
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        rates = [group["lr"] for group in groups]
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + k)
        count = given.shape[0]
        steps = recipe.epochs * -(-count // recipe.batch)
        at = 0
        for _ in range(recipe.epochs):
            for which in self.batches(torch.randperm(count, generator=draw).tolist(), recipe.batch):
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * cosine(at / steps)
                with torch.enable_grad():
                    out = self.walk.run(block, given.rows(which))
                    loss = torch.nn.functional.mse_loss(out, wanted.rows(which))
                    loss.backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                for fake in fakes.values():
                    fake.stay_possible()
                at += 1
        optimiser.state.clear()  # it refers to itself: its moments would wait for the garbage collector
        optimiser.param_groups.clear()


def cosine(at: float) -> float:
    """The share of the learning rate at a share of the way."""
    return _LAST + (1 - _LAST) * (1 + math.cos(math.pi * at)) / 2
