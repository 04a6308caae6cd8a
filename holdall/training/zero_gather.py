"""Stage 3: parameters are there while their modules run, forward and backward, and at no other time.

Buckets of the same modules are one run, which comes and goes as a whole; the next runs, by the order of the step
before, are on their way while one works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from holdall.training.zero_buckets import atomic
from holdall.training.zero_rooms import Room
from holdall.training.zero_slices import Slices
from holdall.training.zero_wire import Pending


class Gather:
    """Hooks on a module. `backward` is true from its first gradient to its last."""

    def __init__(self, model: nn.Module, slices: Slices, ahead: int):
        self.slices, self.ahead, self.backward, self.held = slices, ahead, False, False
        self.runs: dict[int, list[Room]] = {}
        for room in slices.rooms:
            self.runs.setdefault(room.buckets[0].run, []).append(room)
        self.here: dict[int, list[Pending]] = {}  # runs whose parameters are there, or on their way
        self.shown: set[int] = set()
        order = list(self.runs)
        self.order = {False: order, True: order[::-1]}  # forward and backward, as it went last
        self.went: dict[bool, dict[int, None]] = {False: {}, True: {}}
        self.prefetched = 0
        self.open: dict[int, int] = dict.fromkeys(self.runs, 0)  # calls whose backward is to come
        inside = {r: [p for room in rooms for p in room.params] for r, rooms in self.runs.items()}
        self.frozen = {r for r, bs in self.runs.items() if not all(room.trained for room in bs)}
        self.count = {r: sum(p.requires_grad for p in inside[r]) for r in self.runs}
        self.left = dict(self.count)
        self.run_of = {p: r for r, params in inside.items() for p in params}
        self.hooks: list[Any] = []
        self.last: dict[int, nn.Module] = {}
        for module, needs in self._users(model):
            self.hooks.append(
                module.register_forward_pre_hook(self._before(needs), with_kwargs=True, prepend=True)
            )
            self.hooks.append(module.register_forward_hook(self._after(module, needs)))
            for r in needs:
                self.last[r] = module  # modules come in the order in which they end

    def _users(self, model: nn.Module) -> Iterator[tuple[nn.Module, list[int]]]:
        """Modules and the runs they need, children first: of parameters of their own, and of whole units."""
        seen: set[nn.Module] = set()

        def walk(module: nn.Module) -> Iterator[tuple[nn.Module, list[int]]]:
            seen.add(module)
            for child in module.children():
                if child not in seen:
                    yield from walk(child)
            own = {self.run_of[p] for p in module.parameters(recurse=False) if p in self.run_of}
            whole = {self.run_of[p] for p in module.parameters() if p in self.run_of}
            if atomic(module) or len(whole) == 1:
                own = whole
            if own:
                yield module, sorted(own)

        return walk(model)

    def _before(self, needs: list[int]) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            for r in needs:
                self.need(r)
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
            if not inputs or self.frozen.isdisjoint(needs) or not torch.is_grad_enabled() or self.backward:
                return
            for r in needs:
                self.open[r] += 1
            torch.autograd.graph.register_multi_grad_hook(inputs, lambda _: self._ended(needs))

        return hook

    def _after(self, module: nn.Module, needs: list[int]) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not self.backward:
                for r in needs:
                    if self.last[r] is module:
                        self.release(r)
            for t in tree_leaves(output):
                if isinstance(t, Tensor) and t.requires_grad:
                    t.register_hook(lambda _: self._reached(needs))

        return hook

    def _reached(self, needs: list[int]) -> None:
        """A gradient arrives at what a module gave."""
        self.begin()
        for r in needs:
            self.need(r)

    def _ended(self, needs: list[int]) -> None:
        """All gradients of what a module was given are there: it needs nothing more for this call."""
        for r in needs:
            self.open[r] -= 1
            self._release_when_done(r)

    def begin(self) -> None:
        if not self.backward:
            self._turn()
            self.backward = True

    def taken(self, p: nn.Parameter) -> None:
        """A parameter's gradient came, which is after everything that needs the parameter."""
        r = self.run_of[p]
        self.left[r] -= 1
        self._release_when_done(r)

    def _release_when_done(self, r: int) -> None:
        if self.left[r] <= 0 and (r not in self.frozen or self.open[r] <= 0):
            self.release(r)

    def need(self, r: int) -> None:
        """A run's parameters, now; and the next ones on their way."""
        if r in self.shown:
            return
        if r not in self.here:
            self._fetch(r)
        for pending in self.here[r]:
            pending.wait()
        with torch.no_grad():
            for room in self.runs[r]:
                room.show()
        self.shown.add(r)
        self.went[self.backward].setdefault(r)
        order = self.order[self.backward]
        at = order.index(r) + 1 if r in order else len(order)
        for later in order[at : at + self.ahead] if not self.held else ():
            if later not in self.here:
                self.prefetched += 1
                self._fetch(later)

    def _fetch(self, r: int) -> None:
        done: list[Pending] = []
        with torch.no_grad():
            try:
                for room in self.runs[r]:
                    done += room.fill()
            except BaseException:
                for room in self.runs[r]:
                    room.empty()
                raise
        self.here[r] = done

    def release(self, r: int) -> None:
        if r not in self.here or self.held:
            return
        for pending in self.here.pop(r):
            pending.wait()
        self.shown.discard(r)
        with torch.no_grad():
            for room in self.runs[r]:
                room.empty()

    def end(self) -> None:
        """A step, or what was done of it, is over: nothing stays."""
        self._turn()
        self.backward = False
        self.left = dict(self.count)
        self.open = dict.fromkeys(self.runs, 0)
        for r in list(self.here):
            self.release(r)

    def _turn(self) -> None:
        """What went by is what will be next time."""
        if self.went[self.backward]:
            self.order[self.backward] = list(self.went[self.backward])
            self.went[self.backward] = {}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All parameters at once."""
        for r in self.runs:
            self.need(r)
        self.held = True
        try:
            yield
        finally:
            self.held = False
            self.end()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
