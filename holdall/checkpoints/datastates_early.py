"""What may change before the optimizer's step, and so is copied while `save` is called."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from holdall.errors import BadInput
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


class Owners:
    """The optimizers of a run. Their parameters and states stay as they are from one step to the next; other tensors
    of a state (statistics of BatchNorm, moving averages) do not, once it is known which is which."""

    def __init__(self) -> None:
        self._optimizers: list[weakref.ref[Any]] = []
        self._handles: list[Any] = []

    def add(self, optimizer: Any, ready: Callable[[], float]) -> None:
        hook = getattr(optimizer, "register_step_pre_hook", None)
        if hook is None:
            raise BadInput("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer, to hook its step")

        def before(*_: Any) -> None:
            ready()

        self._handles.append(hook(before))
        self._optimizers.append(weakref.ref(optimizer))

    def _alive(self) -> Iterator[Any]:
        return (o for o in (ref() for ref in self._optimizers) if o is not None)

    def memory(self) -> set[int] | None:
        """Addresses of storages that only `step` changes; None where no optimizer is known. Empty where one of them
        may step inside backward, so that nothing may be left for later."""
        known: set[int] | None = None
        for optimizer in self._alive():
            known = set() if known is None else known
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if getattr(p, "_post_accumulate_grad_hooks", None):
                        return set()
                    known.add(_address(p))
            for state in optimizer.state.values():
                values = state.values() if isinstance(state, Mapping) else ()
                known.update(_address(t) for t in values if isinstance(t, torch.Tensor))
        return known

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _address(tensor: Any) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.untyped_storage().data_ptr())


def early(leaves: Mapping[str, Any], owned: set[int] | None, patterns: Sequence[str]) -> set[str]:
    """Names of the leaves that are copied at once: what no optimizer owns, where they are known, else what a pattern
    names; and small tensors of whole numbers (random states, counters) in any case."""
    found = set()
    for name, leaf in leaves.items():
        if owned is not None:
            mine = _address(leaf) not in owned
        else:
            mine = not leaf.is_floating_point() or any(fnmatchcase(name.lower(), p) for p in patterns)
        if mine:
            found.add(name)
    return found
