"""E2E-QP: the whole model at its packed numbers learns its step sizes, and nothing else, from text.

Numbers and zero points stay as they are; matrices are made dense where they are used, and again on the way back (blocks
are checkpointed), so that beside the packed numbers only one block is dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
from holdall.weights.unfinished import Unfinished

if TYPE_CHECKING:
    from holdall.weights.efficientqat import EfficientQAT

_KEEP = 20  # steps of training after which what was learned is kept on disk


class Steps(torch.nn.Module):
    """A packed matrix whose steps can be learned."""

    def __init__(self, coded: Coded):
        super().__init__()
        (band,) = coded.bands
        self.bits, self.group, self.shape = band.bits, band.group, coded.shape
        self.stream = pack_fixed(band.codes().reshape(-1), band.bits)
        scale, zero = band.grids()
        assert zero is not None
        self.zero = torch.from_numpy(zero.astype(np.float32))
        self.scale = torch.nn.Parameter(torch.from_numpy(scale.astype(np.float32)))
        self.least = self.scale.detach() / 16

    def codes(self) -> np.ndarray:
        return unpack_fixed(self.stream, self.shape[0] * self.shape[1], self.bits).reshape(self.shape)

    def dense(self) -> torch.Tensor:
        return Dequantise.apply(self.codes, self.scale, self.zero, self.group)

    def settled(self) -> Coded:
        scale = self.scale.detach().clamp(min=LEAST_STEP).numpy()
        return Coded.of(self.codes(), self.bits, scale=scale, zero=self.zero.numpy(), group=self.group)


class StepLinear(torch.nn.Module):
    def __init__(self, steps: Steps, bias: torch.Tensor | None):
        super().__init__()
        self.steps, self.bias, self.short = steps, bias, half_is_fast()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.steps.dense(), self.bias, self.short)


class StepEmbedding(torch.nn.Module):
    def __init__(self, steps: Steps, inner: torch.nn.Module):
        super().__init__()
        self.steps, self.factor = steps, getattr(inner, "embed_scale", None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.embedding(ids, self.steps.dense())
        return found if self.factor is None else found * self.factor


class EndToEnd:
    """run() -> the coded matrices with the steps that were learned, by tensor name."""

    def __init__(self, recipe: EfficientQAT, model: Model, tokens: torch.Tensor, coded: dict[str, Coded],
                 work: Unfinished):  # fmt: skip
        self.recipe, self.model, self.tokens, self.work = recipe, model, tokens, work
        self.module: Any = model.build()
        self.steps = {
            n: Steps(c) for n, c in coded.items() if len(c.bands) == 1 and c.bands[0].level == "zero"
        }
        self.coded = coded
        self._install()
        self.teacher: Any = model.build() if recipe.distill else None

    def _install(self) -> None:
        owners = dict(self.module.named_modules())
        names = [(n, n) for n in self.steps] + [
            (t, k) for t, k in tied(self.module).items() if k in self.steps
        ]
        for name, kept in names:
            path = name.removesuffix(".weight")
            owner, steps = owners.get(path), self.steps[kept]
            if type(owner) is torch.nn.Linear:
                put(self.module, path, StepLinear(steps, owner.bias))
            elif isinstance(owner, torch.nn.Embedding):
                put(self.module, path, StepEmbedding(steps, owner))
        self.steps = {n: s for n, s in self.steps.items() if any(m is s for m in self.module.modules())}
        for block in block_list(self.module):
            block.forward = _checkpointed(block.forward)

    def run(self) -> dict[str, Coded]:
        recipe = self.recipe
        parameters = [s.scale for s in self.steps.values()]
        groups = [{"params": [p], "lr": recipe.step_rate * float(p.detach().mean())} for p in parameters]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        rates = [group["lr"] for group in optimiser.param_groups]
        begin = self._resumed(optimiser)
        batches = list(self._batches())
        for at in track(range(begin, len(batches)), "training the steps", total=len(batches) - begin):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(at / len(batches))
            with torch.enable_grad():
                loss = self.loss(batches[at])
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                for steps in self.steps.values():
                    torch.maximum(steps.scale, steps.least, out=steps.scale.data)
            if (at + 1) % _KEEP == 0:
                self._keep(at + 1, optimiser)
        return {**self.coded, **{n: s.settled() for n, s in self.steps.items()}}

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Of the next token, or of the float model's word on it."""
        logits = self.module(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
        share = self.recipe.distill
        found = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()) * (1 - share)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
            found = found + share * torch.nn.functional.cross_entropy(logits, wanted.softmax(-1))
        return found

    def _batches(self) -> Iterator[torch.Tensor]:
        """`steps` batches; the windows in a new order each time round."""
        draw = torch.Generator().manual_seed(self.recipe.seed)
        order: list[int] = []
        for _ in range(self.recipe.steps):
            while len(order) < self.recipe.batch:
                order += torch.randperm(len(self.tokens), generator=draw).tolist()
            yield self.tokens[order[: self.recipe.batch]]
            order = order[self.recipe.batch :]

    def _keep(self, at: int, optimiser: Any) -> None:
        arrays: dict[str, np.ndarray] = {}
        for i, steps in enumerate(self.steps.values()):
            told = optimiser.state[steps.scale]
            arrays |= {f"{i}/s": steps.scale.detach().numpy(), f"{i}/m": told["exp_avg"].numpy(),
                       f"{i}/v": told["exp_avg_sq"].numpy()}  # fmt: skip
        self.work.put("steps", Packed(arrays, {"room": "weights", "method": {}, "at": at}))

    def _resumed(self, optimiser: Any) -> int:
        part = self.work.get("steps")
        if part is None:
            return 0
        at = int(part.meta["at"])
        for i, steps in enumerate(self.steps.values()):
            s, m, v = (torch.from_numpy(part.arrays[f"{i}/{k}"].copy()) for k in "smv")
            steps.scale.data = s
            optimiser.state[steps.scale] = {"step": torch.tensor(float(at)), "exp_avg": m, "exp_avg_sq": v}
        return at


def _checkpointed(forward: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    def run(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **named)
        return checkpoint(forward, *args, use_reentrant=False, **named)

    return run
