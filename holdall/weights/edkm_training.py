"""Fine-tuning a model whose matrices are palettes: the next-token loss, AdamW on the weights, a tau that cools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.progress import track
from holdall.weights.block_training import cosine, half_is_fast
from holdall.weights.coded import Coded
from holdall.weights.dkm import gap
from holdall.weights.model import Model
from holdall.weights.palettes import palettes, put_palettes
from holdall.weights.palettizing import coded_weights, cool_

if TYPE_CHECKING:
    from holdall.weights.edkm import EDKM

_WARM = 0.1  # of the steps, in which the rate rises


class FineTuning:
    """run() -> the coded matrices that are palettes of some linear, convolution or embedding, by tensor name."""

    def __init__(self, recipe: EDKM, model: Model, tokens: torch.Tensor, widths: dict[str, int],
                 felt: Mapping[str, tuple[np.ndarray, np.ndarray]]):  # fmt: skip
        self.recipe, self.tokens = recipe, tokens
        self.module: Any = model.build()
        for parameter in self.module.parameters():
            parameter.data = parameter.data.clone()  # the model's own stay as they are
        put_palettes(self.module, widths, 8, felt=felt, hard=recipe.attention == "hard", **recipe.palette())
        self.learning = palettes(self.module)
        for _, weight in self.learning.values():
            weight.requires_grad_(True)
        self.losses: list[float] = []

    def run(self) -> dict[str, Coded]:
        recipe = self.recipe
        groups = []
        for palette, weight in self.learning.values():
            size = gap(palette.centroids[0]) * (float(palette.scale.mean()) if palette.group else 1.0)
            groups.append({"params": [weight], "lr": recipe.rate * size})
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        rates = [group["lr"] for group in optimiser.param_groups]
        self.module.train()
        for at, ids in enumerate(track(self._batches(), "training the palettes", total=recipe.steps)):
            way = at / recipe.steps
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (at + 1) / max(1.0, _WARM * recipe.steps)) * cosine(way)
            cool_(self.module, recipe.tau * (recipe.cooled / recipe.tau) ** way)
            with torch.enable_grad():
                loss = self.loss(ids)
                loss.backward()
            self.losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_([w for _, w in self.learning.values()], recipe.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        optimiser.state.clear()  # it refers to itself: its moments would wait for the garbage collector
        optimiser.param_groups.clear()
        with torch.no_grad():
            self._last_pass()
        self.module.eval()
        return coded_weights(self.module)

    def _last_pass(self) -> None:
        """Centroids of the weights as they are after the last step."""
        for palette, weight in self.learning.values():
            palette(weight)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Of the next token."""
        with torch.autocast("cpu", torch.bfloat16, enabled=half_is_fast()):
            logits = self.module(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())

    def _batches(self) -> Iterator[torch.Tensor]:
        """`steps` batches; the windows in a new order each time round."""
        draw = torch.Generator().manual_seed(self.recipe.seed)
        order: list[int] = []
        for _ in range(self.recipe.steps):
            while len(order) < self.recipe.batch:
                order += torch.randperm(len(self.tokens), generator=draw).tolist()
            yield self.tokens[order[: self.recipe.batch]]
            order = order[self.recipe.batch :]
