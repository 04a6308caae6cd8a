"""COAT's other half: a module that keeps 8-bit floats for its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def coat_(
    module: Any, blocks: Iterable[str] | None = None, *, flow: bool = False, slopes: bool = False
) -> Any:
    """Lets a module keep FP8 for its backward, in place, and gives it back: E4M3 with one scale before linear layers,
    with a scale for each sixteen numbers elsewhere. Weights, names and outputs stay as they are.

    blocks: names of the modules within which that is done; by default the elements of its lists of layers. flow:
    calculate from what is kept, with weights in E4M3. slopes: gradients of linear layers' outputs in E5M2. Beside
    activation checkpointing of the same blocks it saves nothing.
    """
    from holdall.memory import return_early
    from holdall.training.coat_modules import convert

    convert(module, blocks, flow, slopes)
    return_early()  # the C library would keep the pages of what is no longer kept
    return module


def uncoat_(module: Any) -> Any:
    """The module as it was before `coat_`."""
    from holdall.training.coat_modules import restore

    restore(module)
    return module


def saved_bytes(forward: Callable[[], Any], module: Any) -> int:
    """Bytes that autograd keeps for backward after `forward()`, each memory once, without the module's weights."""
    from holdall.training import coat_saved

    return coat_saved.saved_bytes(forward, module)
