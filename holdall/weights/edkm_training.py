"""Fine-tuning a model whose matrices are palettes: the next-token loss, AdamW on the weights, a tau that cools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.progress import track
from holdall.weights.block_training import cosine
from holdall.weights.coded import Coded
from holdall.weights.dkm import gap
from holdall.weights.model import Model
from holdall.weights.palettes import palettes, put_palettes
from holdall.weights.palettizing import coded_weights, cool_
from holdall.weights.token_loss import TokenLoss, shuffled

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
        self.loss = TokenLoss(model.build() if recipe.distill else None, recipe.distill, half=True)
        self.losses: list[float] = []

    def run(self) -> dict[str, Coded]:
        recipe = self.recipe
        batches = shuffled(self.tokens, recipe.batch, recipe.steps, recipe.seed)
        groups = []
        for palette, weight in self.learning.values():
            size = gap(palette.centroids[0]) * (float(palette.scale.mean()) if palette.group else 1.0)
            groups.append({"params": [weight], "lr": recipe.rate * size})
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        rates = [group["lr"] for group in optimiser.param_groups]
        self.module.train()
        for at, ids in enumerate(track(batches, "training the palettes", total=recipe.steps)):
            way = at / recipe.steps
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (at + 1) / max(1.0, _WARM * recipe.steps)) * cosine(way)
            cool_(self.module, recipe.tau * (recipe.cooled / recipe.tau) ** way)
            with torch.enable_grad():
                loss = self.loss(self.module, ids)
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
