"""Where the training of a block starts: its grids, and weights that already make up for each other's rounding.

minmax    the paper's: grids between the smallest and the largest weight of a group
search    such grids, shrunk to what rounds each group best
feedback  `search`, and what rounding a column does wrong is taken up by the columns behind it, as the inputs say
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit

from holdall.weights.fake_quant import starts

if TYPE_CHECKING:
    from holdall.weights.block_training import BlockTraining, FakeLinear
    from holdall.weights.unfinished import States

SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_DAMP = 0.02  # share of the mean second moment that is added to each


def started(
    kind: str, training: BlockTraining, block: Any, fakes: Mapping[str, FakeLinear], given: States
) -> None:
    """Give each of the block's linears its start."""
    grams = _grams(training, block, fakes, given) if kind == "feedback" else {}
    for name, fake in fakes.items():
        weight = fake.weight.detach().clone()
        if name in grams:
            weight, scale, zero = compensated(weight, grams[name], fake.bits, fake.group)
        else:
            scale, zero = starts(weight, fake.bits, fake.group, (1.0,) if kind == "minmax" else SHRINKS)
        fake.start(weight, scale, zero)


def _grams(
    training: BlockTraining, block: Any, fakes: Mapping[str, FakeLinear], given: States
) -> dict[str, torch.Tensor]:
    """Second moments of the inputs [I, I]; linears with the same input share them."""
    found: dict[str, torch.Tensor] = {}
    last: list[Any] = [None, ""]

    def watch(name: str) -> Any:
        def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            if args[0] is last[0]:
                found[name] = found[last[1]]
                return
            last[:] = [args[0], name]
            x = args[0].reshape(-1, args[0].shape[-1])
            if name not in found:
                found[name] = torch.zeros(x.shape[1], x.shape[1])
            found[name].addmm_(x.T, x)

        return hook

    handles = [fake.register_forward_pre_hook(watch(name)) for name, fake in fakes.items()]
    try:
        for _ in training.through(block, given):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def compensated(
    w: torch.Tensor, gram: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W, s, z): weights that round to what the error feedback chose, on grids of the weights as they then are."""
    w = w.clone()
    factor = _factor(gram)
    scales, zeros = [], []
    for first in range(0, w.shape[1], group):
        last = min(first + group, w.shape[1])
        part = w[:, first:last].contiguous()
        scale, zero = starts(part, bits, group, SHRINKS)
        errors = torch.zeros_like(part)
        inside = factor[first:last, first:last].contiguous().numpy()
        _feed(part.numpy(), scale[:, 0].contiguous().numpy(), zero[:, 0].contiguous().numpy(), bits, inside,
              errors.numpy())  # fmt: skip
        w[:, first:last] = part
        w[:, last:] -= errors @ factor[first:last, last:]
        scales.append(scale)
        zeros.append(zero)
    return w, torch.cat(scales, 1), torch.cat(zeros, 1)


def _factor(gram: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the second moments."""
    full = gram.double()
    mean = float(full.diagonal().mean())
    full = full + torch.eye(len(full), dtype=torch.float64) * (_DAMP * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(full))
    return torch.linalg.cholesky(inverse, upper=True).float()


@njit(nogil=True, cache=True)
def _feed(w, scale, zero, bits, factor, errors):  # type: ignore[no-untyped-def]
    top = np.float32((1 << bits) - 1)
    for r in range(w.shape[0]):
        step, at = scale[r], zero[r]
        for j in range(w.shape[1]):
            q = min(max(np.rint(w[r, j] / step) + at, np.float32(0)), top)
            error = (w[r, j] - (q - at) * step) / factor[j, j]
            errors[r, j] = error
            for i in range(j + 1, w.shape[1]):
                w[r, i] -= error * factor[j, i]
