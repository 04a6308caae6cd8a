"""Holdall: fit AI into what you have, and measure what it costs.

    import holdall
    packed = holdall.pack("app.log", to="app.hold")                     # the room is sniffed
    method = holdall.get("kv.snapkv")(window=32)                        # a method is a frozen recipe
    holdall.methods("logs")                                             # what there is

Importing this loads no room, no torch and no numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError, CorruptArtefact, HoldallError, NeedsExtra, UnknownMethod

if TYPE_CHECKING:
    from holdall.meter import Meter
    from holdall.method import Cited, Method, Paper
    from holdall.packed import Packed
    from holdall.registry import get, methods
    from holdall.report import Report
    from holdall.verbs import pack, unpack

__version__ = "0.1.0"
__all__ = [
    "BadInput",
    "Budget",
    "BudgetError",
    "Cited",
    "CorruptArtefact",
    "HoldallError",
    "Meter",
    "Method",
    "NeedsExtra",
    "Packed",
    "Paper",
    "Report",
    "UnknownMethod",
    "get",
    "methods",
    "pack",
    "unpack",
]

_HOME = {
    "Cited": "method", "Method": "method", "Paper": "method", "Meter": "meter", "Packed": "packed",
    "Report": "report", "get": "registry", "methods": "registry", "pack": "verbs", "unpack": "verbs",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The nouns that need numpy arrive at first use: `import holdall` stays under 100 ms."""
    if name not in _HOME:
        raise AttributeError(f"module 'holdall' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"holdall.{_HOME[name]}"), name)
    globals()[name] = value
    return value
