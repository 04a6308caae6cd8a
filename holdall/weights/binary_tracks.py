"""The six tracks on which binary networks are judged, a number each: large is good, 1 is as good as float.

Means are quadratic: a setting in which an operator does well weighs more than one in which it fails. Everything is a
pure function of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

WORD_GAIN, BIT_GAIN = 64, 32  # what a product and a number shrink to in theory


def mean(values: Sequence[float]) -> float:
    if not values:
        raise BadInput("settings", "none", "at least one")
    return sum(values) / len(values)


def quadratic_mean(values: Sequence[float]) -> float:
    return math.sqrt(mean([v * v for v in values]))


def accuracy_track(settings: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    """Learning tasks, and architectures: setting -> (accuracy binary, accuracy float) of its runs."""
    return quadratic_mean([mean(_ratios("accuracy of float", runs)) for runs in settings.values()])


def robustness_track(corruptions: Mapping[str, tuple[float, float]]) -> float:
    """Corruption -> (generalisation gap of float, of binary), each clean less corrupted accuracy."""
    return quadratic_mean([_ratios(f"binary gap under {n}", [gaps])[0] for n, gaps in corruptions.items()])


def gap(clean: float, corrupted: Sequence[float]) -> float:
    """What a corruption costs, over its severities."""
    return clean - mean(corrupted)


def training_track(seconds: Sequence[tuple[float, float]], spread: Sequence[tuple[float, float]]) -> float:
    """(float, binary) of training times, and of how far accuracies spread over optimisers, rates and schedules."""
    return _both(_ratios("binary seconds", seconds), _ratios("binary spread", spread))


def complexity_track(operations: Sequence[float], storage: Sequence[float]) -> float:
    """Ratios of `Complexity`, an architecture each."""
    return _both(operations, storage)


def inference_track(seconds: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]]) -> float:
    """(float, binary) of measured times and of bytes on disk."""
    return _both(_ratios("binary seconds", seconds), _ratios("binary bytes", sizes))


def _ratios(below: str, pairs: Sequence[tuple[float, float]]) -> list[float]:
    """The first over the second, which `below` names."""
    if any(second == 0 for _, second in pairs):
        raise BadInput(below, "0", "a number to divide by: settings that cost something")
    return [first / second for first, second in pairs]


def _both(first: Sequence[float], second: Sequence[float]) -> float:
    return math.sqrt((mean(first) ** 2 + mean(second) ** 2) / 2)


def deviation(values: Sequence[float]) -> float:
    """Of accuracies, with the mean of all settings: how sensitive training is to its settings."""
    middle = mean(values)
    return math.sqrt(mean([(v - middle) ** 2 for v in values]))


@dataclass(frozen=True)
class Complexity:
    """Products and numbers of a network, and how many of them are binary."""

    products: int
    binary_products: int
    numbers: int
    binary_numbers: int

    @property
    def operations(self) -> float:
        """How many times fewer operations, 64 products of signs counted as one."""
        rest = self.products - self.binary_products
        return self.products / (rest + self.binary_products / WORD_GAIN)

    @property
    def storage(self) -> float:
        """How many times fewer bits."""
        rest = self.numbers - self.binary_numbers
        return self.numbers / (rest + self.binary_numbers / BIT_GAIN)


def complexity(module: torch.nn.Module, binary: Sequence[str], example: Any) -> Complexity:
    """Of a float module, if the layers `binary` were. example: a batch, to count products of a sample."""
    nn = torch.nn
    counted = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}
    products = dict.fromkeys(counted, 0)

    def look(name: str, layer: Any) -> Any:
        def hook(_m: Any, _a: Any, out: torch.Tensor) -> None:
            products[name] += out[0].numel() * math.prod(layer.weight.shape[1:])

        return hook

    from holdall.weights.binary_layers import shown

    shown(module, example, [m.register_forward_hook(look(n, m)) for n, m in counted.items()])
    numbers = sum(p.numel() for p in module.parameters())
    return Complexity(
        sum(products.values()), sum(products[n] for n in binary), numbers,
        sum(counted[n].weight.numel() for n in binary),
    )  # fmt: skip
