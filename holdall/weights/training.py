"""What the room's trainers share: batches and losses, measures of modules, and a small real task to train on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import xxhash

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kinds import Spend, Trainer
from holdall.optional import lazy, need
from holdall.parts.losses import default_loss
from holdall.weights.stored import absorb

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

Batch = Any  # (inputs, targets), or a dict of named arguments
Loss = Callable[[Any, Batch], Any]


@dataclass(frozen=True, kw_only=True)
class WeightTrainer(Trainer):
    """A trainer of this room."""

    room: ClassVar[str] = "weights"

    @staticmethod
    def allowed(module: torch.nn.Module, budget: Spend) -> int | None:
        """The budget in bytes of the file."""
        asked = Budget.parse(budget)
        if asked is None:
            return None
        return asked.limit(parameter_bytes(module), sum(p.numel() for p in module.parameters()))

    @staticmethod
    def look(module: torch.nn.Module, data: Iterable[Batch]) -> None:
        """Whether there is anything to train and to train on."""
        if next(iter(data), None) is None:
            raise BadInput("data", "no batches", "at least one")
        if next(module.parameters(), None) is None:
            raise BadInput("module", type(module).__name__, "one with parameters")
        for name, parameter in module.named_parameters():
            if not bool(parameter.detach().isfinite().all()):
                raise BadInput("weights", f"{name} with NaN or infinite numbers", "finite ones")


def learn(
    module: torch.nn.Module,
    data: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    loss: Loss = default_loss,
    *,
    schedule: str = "cosine",
    each: Callable[[float], None] | None = None,
) -> None:
    """Steps over the data, each batch once an epoch in the order given.

    schedule: rates fall to 0 along half a cosine ("cosine"), to a tenth after half and three quarters of the way
    ("step"), or not at all ("flat"). each: told before each step which share of the training is over.
    """
    module.train()
    total = epochs * sum(1 for _ in data)
    rates, step = [group["lr"] for group in optimizer.param_groups], 0
    for _ in range(epochs):
        for batch in data:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * SCHEDULES[schedule](step / total)
            if each is not None:
                each(step / total)
            optimizer.zero_grad()
            missed = loss(module, batch)
            if not bool(missed.detach().isfinite()):
                raise BadInput("training", f"a loss of {float(missed)} after {step} steps", "a smaller rate")
            missed.backward()
            optimizer.step()
            step += 1


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "step": lambda done: 0.1 ** (int(done >= 0.5) + int(done >= 0.75)),
    "flat": lambda done: 1.0,
}


@contextlib.contextmanager
def evaluated(module: torch.nn.Module) -> Iterator[None]:
    """In evaluation and without gradients, then in the mode that it was in."""
    before = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(before)


def outputs(module: torch.nn.Module, data: Iterable[Batch]) -> torch.Tensor:
    """What an evaluated module gives for all batches, on end."""
    given = []
    with evaluated(module):
        for batch in data:
            out = module(**batch).logits if isinstance(batch, dict) else module(batch[0])
            given.append(out.float().flatten(0, -2))
    return torch.cat(given)


def held_out_loss(module: torch.nn.Module, data: Sequence[Batch], loss: Loss = default_loss) -> float:
    """Mean of the batches' losses, evaluated."""
    with evaluated(module):
        return float(sum(loss(module, batch) for batch in data)) / len(data)


def accuracy(module: torch.nn.Module, data: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Share of the targets that have the largest output."""
    right = outputs(module, data).argmax(-1) == torch.cat([y.flatten() for _, y in data])
    return float(right.float().mean())


def parameter_bytes(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def fingerprint(module: torch.nn.Module) -> bytes:
    """Of all parameters and buffers, their names, types and values."""
    total = xxhash.xxh3_128()
    absorb(total, module.state_dict().items())
    return total.digest()


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    found = need("sklearn.datasets", "test").load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(found.images).float()[order, None] / 8 - 1
    return images, torch.from_numpy(found.target).long()[order]


def digits(batch: int = 64) -> tuple[list[Any], list[Any]]:
    """Training and held-out batches of 1,797 handwritten digits: ([B, 1, 8, 8] from -1 to 1, [B])."""
    images, targets = _digits()
    batches = list(zip(images.split(batch), targets.split(batch), strict=True))
    apart = len(batches) * 4 // 5
    return batches[:apart], batches[apart:]
