"""Refusal: what a whole cache would need of a budget, where a method cannot hold the one that it is given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from holdall.budget import Budget
from holdall.errors import BudgetError

if TYPE_CHECKING:
    from holdall.dropins.transformers import Cache
    from holdall.kv.base import KVSelector


def refusal(cache: Cache, method: KVSelector, asked: Budget | None, fault: BudgetError) -> BudgetError:
    """Of all layers together, in the terms of the budget that was asked for: a layer's own bytes say little."""
    layers = [layer.state.judged().within_reach() for layer in cache.layers]
    sizes = [method.smallest(x) for x in layers]
    who, why = method.full_name(), method.why()
    if asked is None or asked.bytes is not None:
        return BudgetError(fault.asked, max(sum(sizes), int(fault.least)), who=who, why=why)
    if method.portion(0) is None:
        share = sum(sizes) / sum(x.original for x in layers)
    else:
        share = max(n / x.original for n, x in zip(sizes, layers, strict=True))
    if asked.bits is not None:
        each = layers[0].keys.element_size() * 8
        return BudgetError(str(asked), f"{math.ceil(share * each * 100) / 100:g}bit", "", who, why)
    return BudgetError(str(asked), f"{math.ceil(share * 1000) / 10:g}%", "", who, why)
