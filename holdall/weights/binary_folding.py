"""Batch normalisations that binary layers take in: which ones, and what becomes of scale and shift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdall.weights.binary_layers import binary_layers, shown
from holdall.weights.conv_graph import NORMS, normalising


class _Watched(Tensor):
    """A layer's output that counts what is done with it."""

    uses: int

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in _watched([args, kwargs]):
            one.uses += 1
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def _watched(given: Any) -> Iterator[_Watched]:
    """All of them in what a function takes or a module gives."""
    if isinstance(given, _Watched):
        yield given
    elif isinstance(given, Mapping):
        yield from _watched(list(given.values()))
    elif is_dataclass(given):
        yield from _watched(list(vars(given).values()))
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _watched(one)


def foldable(module: nn.Module, example: Any) -> dict[str, str]:
    """Binary layers whose output goes into one batch normalisation and nowhere else: layer -> normalisation.

    Seen by running a batch, so that it does not matter how the module is written.
    """
    layers = dict(binary_layers(module))
    norms = {n: m for n, m in module.named_modules() if type(m) in NORMS}
    made: dict[str, list[Any]] = {n: [] for n in layers}
    taken: dict[str, list[Any]] = {n: [] for n in norms}

    def leave(name: str) -> Any:
        def hook(_m: Any, _a: Any, out: Tensor) -> Tensor:
            made[name].append(out.as_subclass(_Watched))
            made[name][-1].uses = 0
            watched: Tensor = made[name][-1]
            return watched

        return hook

    def enter(name: str) -> Any:
        def hook(_m: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            taken[name] += args[:1] or [None]  # nothing: it was given by name
            return tuple(a.as_subclass(Tensor) for a in args)  # which counts as no use

        return hook

    hooks = [m.register_forward_hook(leave(n)) for n, m in layers.items()]
    hooks += [m.register_forward_pre_hook(enter(n)) for n, m in norms.items()]
    for one in _watched(shown(module, example, hooks)):
        one.uses += 1
    pairs = {}
    for name, outs in made.items():
        users = [
            n for n, given in taken.items() if len(outs) == 1 and len(given) == 1 and given[0] is outs[0]
        ]
        if users and outs[0].uses == 0 and takes_in(layers[name], norms[users[0]], outs[0].ndim):
            pairs[name] = users[0]
    return pairs


def takes_in(layer: Any, norm: Any, dimensions: int | None = None) -> bool:
    """Whether the normalisation is of this layer's output channels. dimensions: of the output, where known."""
    if type(norm) not in NORMS or norm.running_mean is None or norm.num_features != layer.weight.shape[0]:
        return False
    return not isinstance(layer, nn.Linear) or dimensions in (2, None)


def folded(scale: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift after which nothing is left to normalise."""
    by, shift = normalising(norm)
    if bias is not None:
        shift = shift + bias.double() * by
    return (scale.double() * by).float(), shift.float()
