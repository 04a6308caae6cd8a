"""Gradients of a step: their norm, whether they are finite, and where they wait until the norm of all is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.parts.paging import Arena, Span
from holdall.training.fuyou_groups import Group

if TYPE_CHECKING:
    from holdall.training.fuyou import Fuyou

torch = lazy("torch", extra="training")


class Norms:
    """spills: gradients that have to wait do so on disk, not in memory. `last`: what gradients of this step that do not
    wait are multiplied with."""

    def __init__(self, recipe: Fuyou, groups: list[Group], arena: Arena, spills: bool):
        self._recipe, self._arena, self._spills = recipe, arena, spills
        self._order = [id(p) for group in groups for p in group.params]
        self._of: dict[int, Any] = {}
        self._held: list[tuple[Group, list[Any]]] = []
        self._spans: dict[int, Span] = {}
        self._leaving: deque[tuple[Future[int], Any]] = deque()
        self.last, self._known = 1.0, False
        self.told = {"bytes_of_gradients_spilled": 0}

    @property
    def holds(self) -> bool:
        """Whether no gradient is used before all are there: with exact clipping, and in the first step of a delayed
        one, which has no norm to go by."""
        return bool(self._recipe.clip) and (self._recipe.norm == "exact" or not self._known)

    def finite(self, group: Group) -> bool:
        from holdall.training.adam_kernel import squares

        return all(squares(_flat(p)) < float("inf") for p in group.params if p.grad is not None)

    def seen(self, group: Group, scale: float) -> bool:
        """Take note of a group's gradients; whether they have to wait."""
        if self._recipe.clip:
            for p in group.params:
                if p.grad is not None:
                    self._of[id(p)] = torch.linalg.vector_norm(p.grad, dtype=torch.float32) / scale
        return self.holds

    def taken(self, group: Group) -> list[Any]:
        grads = [None if p.grad is None else _flat(p) for p in group.params]
        for p in group.params:
            p.grad = None
        return grads

    def put_by(self, group: Group) -> None:
        grads = self.taken(group)
        for i, (p, g) in enumerate(zip(group.params, grads, strict=True)):
            if g is None or not self._spills:
                continue
            if id(p) not in self._spans:
                self._spans[id(p)] = self._arena.place(g.nbytes)
            span = self._spans[id(p)]
            self._leaving.append((self._arena.write(span, g), g))
            self.told["bytes_of_gradients_spilled"] += g.nbytes
            grads[i] = span, g.dtype
            while len(self._leaving) > 2:
                self._leaving.popleft()[0].result()
        self._held.append((group, grads))

    def held(self) -> Iterator[tuple[Group, list[Any]]]:
        """What waited, in order; from disk where it was put there."""
        while self._leaving:
            self._leaving.popleft()[0].result()
        while self._held:
            group, grads = self._held.pop(0)
            yield group, [self._back(g, p) for g, p in zip(grads, group.params, strict=True)]

    def factor(self) -> float:
        """What gradients that waited are multiplied with; from now on that of the next step is known."""
        if not self._recipe.clip:
            return 1.0
        norms = [self._of[i] for i in self._order if i in self._of]
        exact = self.holds
        found = 1.0
        if norms:  # as torch's clip_grad_norm_ does it, so that bits are equal
            total = torch.linalg.vector_norm(torch.stack(norms))
            found = float(torch.clamp(self._recipe.clip / (total + 1e-6), max=1.0))
        used, self._next = (found if exact else self.last), found
        return used

    def done(self) -> None:
        """The step counts: what it measured is what a delayed norm goes by."""
        if self._recipe.clip:
            self.last, self._known = self._next, True

    def clear(self) -> None:
        while self._leaving:
            self._leaving.popleft()[
                0
            ].exception()  # of a step that is over; its writes end before memory goes
        self._of.clear()
        self._held.clear()

    def _back(self, g: Any, p: Any) -> Any:
        if not isinstance(g, tuple):
            return g
        out = torch.empty(p.numel(), dtype=g[1])
        self._arena.read(g[0], out).result()
        return out


def _flat(p: Any) -> Any:
    if p.grad.layout != torch.strided:
        raise BadInput("gradient", str(p.grad.layout), "dense gradients (an embedding without sparse=True)")
    return p.grad.contiguous().view(-1)
