"""A frozen module with adapters on it: a copy that shares the weights of the one it was made of.

Imported only where torch is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.weights.adapter_linear import Parallel, QLinear
from holdall.weights.adapter_places import Places, reached
from holdall.weights.packed_linear import put
from holdall.weights.stored import absorb

if TYPE_CHECKING:
    from holdall.weights.binary_adapters import BinaryAdapters

NAME = "holdall_adapters"  # of the adapters in the module that has them
_SLAB = 1 << 18


class Adapters(torch.nn.Module):
    """All adapters of a module, and where they and the learned head are."""

    def __init__(self, recipe: BinaryAdapters, places: Places, width: int, head: str | None, base: str):
        super().__init__()
        self.recipe, self.places, self.width, self.head, self.base = recipe, places, width, head, base
        self.beside = torch.nn.ModuleList()
        self.learned_head: QLinear | None = None  # it also stands in the module itself

    def matrices(self) -> Iterator[QLinear]:
        """All that learn at the recipe's bits, in the order of the file."""
        for adapter in self.beside:
            assert isinstance(adapter, Parallel)
            yield from (adapter.down, adapter.up)
        if self.learned_head is not None and self.recipe.head != "full":
            yield self.learned_head

    def whole(self) -> QLinear | None:
        """A head that is kept in single precision."""
        return self.learned_head if self.recipe.head == "full" else None


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares all weights, for none of which gradients are made, ready for inference."""
    if hasattr(module, NAME):
        raise BadInput("module", "one with adapters", "the module that they were made for")
    memo: dict[int, Any] = {id(b): b for b in module.buffers()}
    for p in module.parameters():
        memo[id(p)] = torch.nn.Parameter(p.detach(), requires_grad=False)
    for part in module.modules():
        for held in (part.__dict__.get("held"), part.__dict__.get("holdall_stack")):
            memo[id(held)] = held
    return copy.deepcopy(module, memo).eval()


def adapted(module: torch.nn.Module, adapters: Adapters) -> torch.nn.Module:
    """The same weights with new adapters on them, which learn; the module itself is left as it is."""
    made = frozen(module)
    recipe = adapters.recipe
    for spot, _, source, sink in adapters.places.each(made):
        new = Parallel(
            spot.columns, spot.rows, adapters.width, recipe.bits, scale=recipe.scale,
            curved=recipe.placement == "adaptformer", dropout=recipe.dropout, start=spot.start,
        )  # fmt: skip
        new.hang(source, sink)
        adapters.beside.append(new)
    if adapters.head is not None:
        new_head = _head(reached(made, adapters.head), 32 if recipe.head == "full" else recipe.bits)
        put(made, adapters.head, new_head)
        adapters.learned_head = new_head
    made.add_module(NAME, adapters.eval())
    return made


def _head(old: Any, bits: int) -> QLinear:
    """It goes on from the head that is there."""
    if not hasattr(old, "in_features"):
        raise CorruptArtefact("an adapter", f"a head that learned in place of a {type(old).__name__}")
    new = QLinear(old.in_features, old.out_features, bits)
    weight = torch.from_numpy(old.held.dense()) if hasattr(old, "held") else old.weight.detach()
    if float(weight.std(correction=0)) > 0:
        new.weight.data.copy_(weight)
    return new


def adapters_of(module: torch.nn.Module) -> Adapters:
    found = getattr(module, NAME, None)
    if not isinstance(found, Adapters):
        raise BadInput("module", type(module).__name__, "one that `attach` has put adapters on")
    return found


def digest(module: torch.nn.Module) -> str:
    """The same for the same weights, packed or plain, on every machine."""
    total = xxhash.xxh3_128()
    absorb(total, module.state_dict().items())
    seen: set[int] = set()
    for name, part in module.named_modules():
        held = getattr(part, "held", None)
        if held is not None:
            total.update(f"{name} {held.shape}".encode())
            for array in _arrays(held) if id(held) not in seen else ():
                total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            seen.add(id(held))
    return total.hexdigest()


def _arrays(held: Any) -> Iterator[np.ndarray]:
    """What a packed matrix consists of; its numbers, for a kind of matrix that is not known here."""
    if hasattr(held, "coded"):
        for band in held.coded.bands:
            told = f"{band.columns} {band.bits} {band.group} {band.level}".encode()
            parts = (band.rows, band.tiles, band.scale, band.low, band.table)
            yield from (np.frombuffer(told, np.uint8), *(a for a in parts if a is not None))
    elif hasattr(held, "parts"):
        for part in held.parts:
            yield from (part.words, part.a, part.b)
    else:
        rows, columns = held.shape
        step = max(1, _SLAB // columns)
        yield from (held.rows(np.arange(at, min(at + step, rows))) for at in range(0, rows, step))
