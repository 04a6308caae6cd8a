"""Modules that keep FP8: the same objects with another `forward`, so that weights, names and hooks stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from holdall.errors import BadInput
from holdall.training.coat_functions import Operators, again
from holdall.training.coat_saved import block, shelf

_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class _Coat:
    """What a converted module has beside its class: how it was asked to keep things."""

    coat_flow: bool
    coat_slopes: bool


class _Once(_Coat):
    """A norm or an activation that is written in several operators."""

    def forward(self, x: Tensor) -> Tensor:
        me: Any = self
        return again(super().forward, [x], list(me.parameters(recurse=False)), self.coat_flow)  # type: ignore[misc]


class _Gated(_Coat):
    """down(act(gate(x)) * up(x))"""

    gate_proj: Any
    up_proj: Any
    down_proj: Any
    act_fn: Any

    def forward(self, x: Tensor) -> Any:
        if shelf() is None:
            return super().forward(x)  # type: ignore[misc]
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(again(self._product, [gate, up], [], self.coat_flow))

    def _product(self, gate: Tensor, up: Tensor) -> Tensor:
        product: Tensor = self.act_fn(gate) * up
        return product


class _Block(_Coat):
    def forward(self, *args: Any, **named: Any) -> Any:
        me: Any = self
        if not torch.is_grad_enabled() or shelf() is not None:
            return super().forward(*args, **named)  # type: ignore[misc]
        strange = {t.untyped_storage().data_ptr() for t in (*me.parameters(), *me.buffers())}
        strange |= {t.untyped_storage().data_ptr() for t in _tensors((args, named)) if not t.requires_grad}
        with block(strange), Operators(self.coat_flow, self.coat_slopes):
            return super().forward(*args, **named)  # type: ignore[misc]


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)


def _gated(module: Any) -> bool:
    """Whether it is a product of two projections, one through an activation, and nothing else: tried, not believed."""
    if {name for name, _ in module.named_children()} != _GATED or not isinstance(module.gate_proj, nn.Linear):
        return False
    w = module.gate_proj.weight
    x = torch.linspace(-2, 2, 2 * w.shape[1], dtype=w.dtype, device=w.device).view(1, 2, -1)
    with torch.no_grad():
        try:
            wanted = module(x)
        except TypeError:  # it is called with more than one input
            return False
        ours = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
    return isinstance(wanted, Tensor) and wanted.equal(ours)


def _way(module: nn.Module) -> type[_Coat] | None:
    """How a module within a block keeps less than its operators would, each for itself."""
    name, bare = type(module).__name__, not any(True for _ in module.children())
    if bare and name.endswith(("RMSNorm", "Activation")):
        return _Once
    return _Gated if _gated(module) else None


@cache
def _with(way: Any, kind: Any) -> Any:
    return type(kind)(kind.__name__, (way, kind), {"__module__": kind.__module__, "coat_plain": kind})


def convert(module: nn.Module, blocks: Iterable[str] | None, flow: bool, slopes: bool) -> list[str]:
    """Names of what was converted."""
    if any(isinstance(m, _Coat) for m in module.modules()):
        raise BadInput("module", "one that keeps FP8 already", "one that does not; uncoat_ takes it back")
    named = dict(module.named_modules())
    chosen = list(blocks) if blocks is not None else _blocks(module)
    unknown = [name for name in chosen if name not in named]
    if unknown:
        raise BadInput("blocks", unknown[0], "names of modules in it (named_modules)")
    done: dict[str, type[_Coat]] = {}
    for name in chosen:
        for inner, part in named[name].named_modules(prefix=name):
            way = _Block if inner == name else _way(part)
            if way is not None and part is not module:
                done[inner] = way
    for name, way in done.items():
        part = named[name]
        kinds: tuple[Any, Any] = way, type(part)
        part.__class__ = _with(*kinds)
        vars(part).update(coat_flow=flow, coat_slopes=slopes)
    return list(done)


def _blocks(module: nn.Module) -> list[str]:
    """Elements of the outermost lists of modules: the layers of a network."""
    found: list[str] = []
    for name, part in module.named_modules():
        inside = any(name.startswith(other + ".") for other in found)
        if isinstance(part, nn.ModuleList) and not inside:
            found += [f"{name}.{i}".lstrip(".") for i in range(len(part))]
    if not found:
        raise BadInput("module", "no list of layers (nn.ModuleList)", "blocks=[names of modules to convert]")
    return found


def restore(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, _Coat):
            part.__class__ = part.coat_plain  # type: ignore[assignment]
            del part.coat_flow, part.coat_slopes
