"""The whole model at its packed numbers learns its step sizes, and nothing else, from text (EfficientQAT's E2E-QP).

Numbers and zero points stay as they are; matrices are made dense where they are used, and again on the way back (blocks
are checkpointed), so that beside the packed numbers only one block is dense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from holdall.packed import Packed
from holdall.parts.entropy import pack_fixed, unpack_fixed
from holdall.progress import track
from holdall.weights.block_training import cosine, half_is_fast, product
from holdall.weights.coded import Coded
from holdall.weights.fake_quant import LEAST_STEP, Dequantise
from holdall.weights.model import Model, tied
from holdall.weights.packed_linear import put
from holdall.weights.scaling import block_list
from holdall.weights.token_loss import TokenLoss, shuffled
from holdall.weights.unfinished import Unfinished

_KEEP = 20  # steps of training after which what was learned is kept on disk


@dataclass(frozen=True)
class Schedule:
    """`count` steps of AdamW, `batch` windows each; rate: in means of each tensor; distill: share of the loss."""

    count: int
    batch: int
    rate: float
    clip: float
    distill: float
    seed: int = 0


class Learned(torch.nn.Module, ABC):
    """A packed matrix of which some numbers can be learned: its parameters."""

    @abstractmethod
    def dense(self) -> torch.Tensor: ...


class Steps(Learned):
    """A matrix in groups whose steps can be learned."""

    def __init__(self, coded: Coded):
        super().__init__()
        (band,) = coded.bands
        self.bits, self.group, self.shape = band.bits, band.group, coded.shape
        self.stream = pack_fixed(band.codes().reshape(-1), band.bits)
        scale, zero = band.grids()
        assert zero is not None
        self.zero = torch.from_numpy(zero.astype(np.float32))
        self.scale = torch.nn.Parameter(torch.from_numpy(scale.astype(np.float32)))

    def codes(self) -> np.ndarray:
        return unpack_fixed(self.stream, self.shape[0] * self.shape[1], self.bits).reshape(self.shape)

    def dense(self) -> torch.Tensor:
        return Dequantise.apply(self.codes, self.scale, self.zero, self.group)

    def settled(self) -> Coded:
        scale = self.scale.detach().clamp(min=LEAST_STEP).numpy()
        return Coded.of(self.codes(), self.bits, scale=scale, zero=self.zero.numpy(), group=self.group)


class StepLinear(torch.nn.Module):
    def __init__(self, steps: Learned, bias: torch.Tensor | None):
        super().__init__()
        self.steps, self.bias, self.short = steps, bias, half_is_fast()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.steps.dense(), self.bias, self.short)


class StepEmbedding(torch.nn.Module):
    def __init__(self, steps: Learned, inner: torch.nn.Module):
        super().__init__()
        self.steps, self.factor = steps, getattr(inner, "embed_scale", None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.embedding(ids, self.steps.dense())
        return found if self.factor is None else found * self.factor


class EndToEnd:
    """run() trains the parameters of `matrices`, by tensor name, where they are."""

    def __init__(self, schedule: Schedule, model: Model, tokens: torch.Tensor, matrices: Mapping[str, Learned],
                 work: Unfinished):  # fmt: skip
        self.schedule, self.tokens, self.work = schedule, tokens, work
        self.module: Any = model.build()
        self.matrices = dict(matrices)
        self._install()
        self.loss = TokenLoss(model.build() if schedule.distill else None, schedule.distill)

    def _install(self) -> None:
        owners = dict(self.module.named_modules())
        names = [(n, n) for n in self.matrices]
        names += [(t, k) for t, k in tied(self.module).items() if k in self.matrices]
        for name, kept in names:
            path = name.removesuffix(".weight")
            owner, matrix = owners.get(path), self.matrices[kept]
            if type(owner) is torch.nn.Linear:
                put(self.module, path, StepLinear(matrix, owner.bias))
            elif isinstance(owner, torch.nn.Embedding):
                put(self.module, path, StepEmbedding(matrix, owner))
        used = set(self.module.modules())
        self._parameters = [p for m in self.matrices.values() if m in used for p in m.parameters()]
        for block in block_list(self.module):
            block.forward = _checkpointed(block.forward)

    def run(self) -> None:
        parameters = self._parameters
        rates = [self.schedule.rate * float(p.detach().mean()) for p in parameters]
        least = [p.detach() / 16 for p in parameters]
        groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        begin = self._resumed(optimiser)
        schedule = self.schedule
        batches = list(shuffled(self.tokens, schedule.batch, schedule.count, schedule.seed))
        for at in track(range(begin, len(batches)), "training the steps", total=len(batches) - begin):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(at / len(batches))
            with torch.enable_grad():
                loss = self.loss(self.module, batches[at])
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.schedule.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                for parameter, low in zip(parameters, least, strict=True):
                    torch.maximum(parameter, low, out=parameter.data)
            if (at + 1) % _KEEP == 0:
                self._keep(at + 1, optimiser)

    def _keep(self, at: int, optimiser: Any) -> None:
        arrays: dict[str, np.ndarray] = {}
        for i, parameter in enumerate(self._parameters):
            told = optimiser.state[parameter]
            arrays |= {f"{i}/s": parameter.detach().numpy(), f"{i}/m": told["exp_avg"].numpy(),
                       f"{i}/v": told["exp_avg_sq"].numpy()}  # fmt: skip
        self.work.put("steps", Packed(arrays, {"room": "weights", "method": {}, "at": at}))

    def _resumed(self, optimiser: Any) -> int:
        part = self.work.get("steps")
        if part is None:
            return 0
        at = int(part.meta["at"])
        for i, parameter in enumerate(self._parameters):
            s, m, v = (torch.from_numpy(part.arrays[f"{i}/{k}"].copy()) for k in "smv")
            parameter.data = s
            optimiser.state[parameter] = {"step": torch.tensor(float(at)), "exp_avg": m, "exp_avg_sq": v}
        return at


def _checkpointed(forward: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    def run(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **named)
        return checkpoint(forward, *args, use_reentrant=False, **named)

    return run
