"""A run whose optimizer works while the backward pass goes on, with its states on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.memory import release, return_early
from holdall.optional import lazy
from holdall.parts.losses import default_loss
from holdall.parts.paging import Arena
from holdall.training.base import Run, Trainee
from holdall.training.fuyou_activations import Activations
from holdall.training.fuyou_clip import Norms
from holdall.training.fuyou_groups import Group
from holdall.training.fuyou_memory import Memory
from holdall.training.fuyou_pager import Pager
from holdall.training.fuyou_profile import Profile
from holdall.training.fuyou_states import States
from holdall.training.fuyou_update import Job, Updater

if TYPE_CHECKING:
    import torch

    from holdall.training.fuyou import Fuyou
else:
    torch = lazy("torch", extra="training")


class Fuyoued(Trainee):
    """What Fuyou opened. `optimizer` is a stand-in: schedulers of torch work on the user's own, whose settings are
    read at each update. `steps`: done so far, in earlier processes too where a folder was given."""

    def __init__(self, recipe: Fuyou, run: Run, memory: Memory, arena: Arena, kept: bool):
        self.recipe, self.run, self.model, self._memory = recipe, run, run.model, memory
        self._groups, self._arena, self.scale = memory.groups, arena, recipe.scale or 1.0
        self._states = States(self._groups, memory.piece, arena, kept)
        if not self._states.resumed:
            self._states.begin(run.optimizer)
        run.optimizer.state.clear()
        self._updater = Updater(self._states, memory.buffers, memory.gradients)
        pageable = {g.block: g for g in memory.pageable if g.block is not None}
        self._pager = Pager(self._states, pageable, recipe.ahead)
        self._activations = Activations(memory.blocks, arena, self._pager)
        self._norms = Norms(recipe, self._groups, arena, memory.spills)
        self._profile = Profile(recipe, memory, self._pager, self._activations, arena, self._updater)
        self._told = dict.fromkeys(("steps", "updates", "updates_in_backward", "overflows"), 0)
        self._submitted: set[Group] = set()
        self._overflow, self._open, self._micro = False, True, 0
        self.optimizer = StandIn(self)
        if memory.paged:
            self._pager.staying = set()
            for block in pageable:
                self._pager.release(block)
        if memory.limit is not None:
            return_early()  # else what blocks leave stays with this process
        self._handles = [
            p.register_post_accumulate_grad_hook(self._hook(group, n))
            for group in self._groups
            for n, p in enumerate(group.params)
        ]

    @property
    def steps(self) -> int:
        return self._states.step

    def step(self, x: Any) -> float:
        self._checked()
        try:
            with self._profile.forward():
                loss = (self.run.loss or default_loss)(self.model, x)
            (loss * (self.scale / self.recipe.accumulate)).backward()
            self._micro += 1
            if self._micro % self.recipe.accumulate == 0:
                self.finish()
        except BaseException:
            self._taken_back()
            raise
        return float(loss.detach())

    def finish(self) -> None:
        """The step's end: all is updated and on disk, or nothing of it was done."""
        self._checked()
        try:
            for group in self._groups:
                if group not in self._submitted and any(p.grad is not None for p in group.params):
                    self._ready(group, late=True)
            factor = self._norms.factor() / self.scale
            for group, grads in self._norms.held():
                self._submit(group, grads, factor)
            self._updater.drain()
        except BaseException:
            self._taken_back()
            raise
        if self._overflow:
            self._taken_back()
            self.scale /= 2
            self._told["overflows"] += 1
            return
        done, self._updater.done = self._updater.done, {}
        self._states.commit(done, self._states.step + 1)
        self._told["steps"] += 1
        self._norms.done()
        self._cleared()
        self._profile.planned()

    def traffic(self) -> Mapping[str, float]:
        self._checked()
        told = {**self._told, **self._pager.told, **self._activations.told, **self._norms.told}
        told["state_bytes_a_step"] = 24 * sum(g.count for g in self._groups)
        return {**told, **self._arena.traffic(), "adam_seconds": self._updater.busy}

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """The module with all parameters in memory, for `state_dict` and the like; they leave again after it."""
        self._checked()
        away = [b for b in range(len(self._memory.blocks)) if not self._pager.here(b)]
        self._pager.all_here()
        yield self.model
        for block in away:
            self._pager.release(block)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._updater.close()
        for handle in self._handles:
            handle.remove()
        try:
            self._pager.all_here()
            if self._memory.fits:
                self.run.optimizer.state.update(self._states.pulled())
        finally:
            self._activations.close()
            self._profile.close()
            self._arena.close()
            for group in self._groups:
                group.pieces.clear()

    def _checked(self) -> None:
        if not self._open:
            raise BadInput("session", "closed", "one that is open")

    def _hook(self, group: Group, n: int) -> Any:
        def came(_p: Any) -> None:
            if group in self._submitted:
                got = "a gradient of what was updated already"
                raise BadInput("backward", got, "optimizer.step() first, or Fuyou(accumulate=...)")
            group.counts[n] += 1
            if min(group.counts) >= self.recipe.accumulate:
                self._ready(group)

        return came

    def _ready(self, group: Group, late: bool = False) -> None:
        """All of its gradients are there: they are put to use, or by until the norm of all is known."""
        self._submitted.add(group)
        self._told["updates_in_backward"] += not late and self.recipe.overlap and not self._norms.holds
        if self.recipe.scale and not self._norms.finite(group):
            self._overflow = True
        if self._norms.seen(group, self.scale) or not self.recipe.overlap:
            self._norms.put_by(group)
        elif not self._overflow:
            self._submit(group, self._norms.taken(group), self._norms.last / self.scale)
        if group.block is not None:
            self._pager.release(group.block)
            if self._memory.paged:
                release()  # small tensors of the block leave holes that a large gradient does not fit into

    def _submit(self, group: Group, grads: list[Any], factor: float) -> None:
        from holdall.training.adam_kernel import Hyper

        if self._overflow:
            return
        steps = [t + (g is not None) for t, g in zip(group.t, grads, strict=True)]
        hypers = [Hyper.of(home, max(t, 1)) for home, t in zip(group.homes, steps, strict=True)]
        lives = self._pager.stays(group.block)
        self._updater.submit(Job(group, grads, hypers, factor, steps, lives))
        self._told["updates"] += 1
        if not self.recipe.overlap:
            self._updater.drain()

    def _taken_back(self) -> None:
        """As it was before the step: what was updated already is read again as it counted."""
        with contextlib.suppress(Exception):  # the fault that is on its way says more than what it caused
            self._updater.drain()
        self._updater.done = {}
        self._pager.forget()
        touched = [g for g in self._submitted if self._pager.stays(g.block) and self._pager.here(g.block)]
        self._states.restore(touched)
        for block in range(len(self._memory.blocks)):
            self._pager.release(block)
        self._cleared()

    def _cleared(self) -> None:
        self._submitted.clear()
        self._norms.clear()
        self._overflow, self._micro = False, 0
        for group in self._groups:
            group.counts = [0] * len(group.params)
            for p in group.params:
                p.grad = None

    def load(self, states: Mapping[str, Any]) -> None:
        """States of torch's AdamW, in place of what is there."""
        with self.whole():
            self.run.optimizer.load_state_dict(states)
            self._states.begin(self.run.optimizer)
        self.run.optimizer.state.clear()

    def pulled(self) -> dict[str, Any]:
        self.run.optimizer.state.update(self._states.pulled())
        try:
            return self.run.optimizer.state_dict()
        finally:
            self.run.optimizer.state.clear()


class StandIn(torch.optim.Optimizer):
    """In the optimizer's place in a loop of one's own, for schedulers too: most of a step is done when `backward`
    returns."""

    def __init__(self, trainee: Fuyoued):
        optimizer = trainee.run.optimizer
        super().__init__([torch.nn.Parameter(torch.empty(0))], dict(optimizer.defaults))
        self.param_groups = optimizer.param_groups
        self._trainee = trainee

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._trainee.finish()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients were given back where they were used."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW tells it: all states are read into memory."""
        return self._trainee.pulled()

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        self._trainee.load(states)
