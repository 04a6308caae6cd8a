"""The order in which modules run forward, so that what backward wants next can be read ahead."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from holdall.training.ssdtrain_entry import Entry


def backward_now() -> int:
    """A number for the backward pass that goes on in this thread, or -1."""
    return torch._C._current_graph_task_id()


class Scope:
    """What one module saved between its beginning and that of another, or its end."""

    __slots__ = ("_entries", "index", "name")

    def __init__(self, name: str, index: int):
        self.name, self.index = name, index
        self._entries: list[weakref.ref[Entry]] = []

    def add(self, entry: Entry) -> None:
        self._entries.append(weakref.ref(entry))

    def entries(self) -> list[Entry]:
        """Those that somebody still wants, the last one first."""
        self._entries = [r for r in self._entries if r() is not None]
        return [e for e in (r() for r in reversed(self._entries)) if e is not None]


class Scopes:
    """Hooks on all modules. began: told of each outermost call, with its module and arguments.

    What checkpointed regions run again during backward leaves the order alone. Of an entry that several scopes want,
    each knows.
    """

    def __init__(self, module: nn.Module, began: Callable[[nn.Module, Any, Any], None]):
        self._began, self._running = began, list[str]()
        self._chain: list[Scope] = []
        self._current: Scope | None = None
        self._hooks: list[Any] = []
        for name, m in module.named_modules():
            self._hooks.append(m.register_forward_pre_hook(self._begins(name), with_kwargs=True))
            self._hooks.append(m.register_forward_hook(self._ended, always_call=True))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._chain.clear()

    def add(self, entry: Entry) -> Scope:
        """What is saved now belongs to the module that runs now."""
        if self._current is None:
            name = self._running[-1] if self._running else "outside"
            self._current = Scope(name, len(self._chain))
            self._chain.append(self._current)
        self._current.add(entry)
        return self._current

    def back_from(self, scope: Scope, ahead: int) -> Iterator[Entry]:
        """In the order in which backward wants them: entries of this scope, and of `ahead` earlier ones with any."""
        index = scope.index
        while index >= 0 and ahead >= 0:
            found = self._chain[index].entries()
            yield from found
            ahead -= bool(found) or index == scope.index
            index -= 1

    def purge(self) -> None:
        """Scopes of which nothing is wanted any more are forgotten."""
        self._chain = [s for s in self._chain if s.entries()]
        for i, s in enumerate(self._chain):
            s.index = i
        self._current = None

    def reset(self) -> None:
        """After a forward pass that did not end."""
        self._running.clear()
        self._current = None

    def _begins(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def begins(module: nn.Module, args: Any, named: Any) -> None:
            if backward_now() != -1:
                return
            if not self._running and torch.is_grad_enabled():
                self._began(module, args, named)
            self._running.append(name or type(module).__name__)
            self._current = None

        return begins

    def _ended(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        if backward_now() == -1 and self._running:
            self._running.pop()
            self._current = None
