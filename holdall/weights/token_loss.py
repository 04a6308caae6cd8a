"""What whole-model training learns from: windows in a new order each time round, the next token, a teacher's word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from holdall.weights.block_training import half_is_fast


def shuffled(tokens: torch.Tensor, batch: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """`count` batches [batch, length] of windows [n, length]; all of them before any comes again."""
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(count):
        while len(order) < batch:
            order += torch.randperm(len(tokens), generator=draw).tolist()
        yield tokens[order[:batch]]
        order = order[batch:]


class TokenLoss:
    """Cross-entropy of a model's next-token words with the text (1 - share) and with a teacher's words (share)."""

    def __init__(self, teacher: Any, share: float, half: bool = False):
        self.teacher, self.share, self.half = teacher if share else None, share, half and half_is_fast()

    def _logits(self, module: Any, ids: torch.Tensor) -> torch.Tensor:
        how: AbstractContextManager[Any] = (
            torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext()
        )
        with how:
            logits: torch.Tensor = module(input_ids=ids, use_cache=False).logits
        return logits[:, :-1].float().flatten(0, 1)

    def __call__(self, module: Any, ids: torch.Tensor) -> torch.Tensor:
        logits = self._logits(module, ids)
        found = (1 - self.share) * torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self._logits(self.teacher, ids).softmax(-1)
            found = found + self.share * torch.nn.functional.cross_entropy(logits, wanted)
        return found
