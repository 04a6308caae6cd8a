"""The weights of an engine: opened within what is left for them, with an adapter where there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.engine_plan import Source
from holdall.errors import BadInput, BudgetError

if TYPE_CHECKING:
    import torch

    from holdall.packed import Packed


@dataclass(frozen=True)
class Adapter:
    """What `holdall adapters train` wrote. nbytes: what it takes once its numbers are floats."""

    packed: Packed
    nbytes: int

    @classmethod
    def open(cls, path: str) -> Adapter:
        from holdall.packed import Packed

        packed = Packed.open(path, lazy=False)
        method = packed.meta.get("method")
        if not isinstance(method, dict) or method.get("method") != "weights.binary_adapters":
            raise BadInput("adapter", path, "what `holdall adapters train` wrote")
        bits = method.get("bits")
        each = 32 / bits if isinstance(bits, int) and bits > 0 else math.inf
        return cls(packed, int(sum(a.nbytes for a in packed.arrays.values()) * min(each, 32)))


def opened(source: Source, left: int | None, dtype: torch.dtype, adapter: Adapter | None) -> Any:
    """A running module, or BudgetError with the least that would do."""
    if left is not None and source.packed is not None and source.item == 4 and source.size > left:
        raise BudgetError(left, source.size, who="this method", why="its weights do not stay packed")
    if left is not None and source.packed is None and source.size > left:
        raise BudgetError(left, source.size, who="the model", why="`holdall pack` makes it smaller")
    if source.packed is not None:
        from holdall.verbs import method_of

        method: Any = method_of(source.packed)
        net = method.open(source.packed, left if source.item == 2 else None)
    else:
        from holdall.weights.model import Model

        net = Model.read(source.path).build(dtype if adapter is None else None)
    if adapter is None:
        return net
    from holdall.weights.binary_adapters import BinaryAdapters

    return BinaryAdapters().load(adapter.packed, net)
