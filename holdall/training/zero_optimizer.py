"""The user's optimizer, once as what updates slices and once as what the user's loop calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdall.errors import BadInput


class Inner:
    """A copy of an optimizer without parameters, which updates one slice after another.

    It has the options that the user's groups have at that moment. Only optimizers that treat each number by itself may
    see slices: that is tried on a few numbers, whole and cut. each: bytes of state for each number.
    """

    def __init__(self, optimizer: Any):
        self.user = optimizer
        self.copy = _like(optimizer)
        self.state: dict[Any, dict[str, Any]] = self.copy.state
        self.each = self._try()

    def step(self, one: nn.Parameter, grad: Tensor, group: int) -> None:
        self._step(self.copy, one, grad, group)

    def _step(self, optimizer: Any, one: nn.Parameter, grad: Tensor, group: int) -> None:
        options = {k: v for k, v in self.user.param_groups[group].items() if k != "params"}
        one.grad = grad
        optimizer.param_groups = [{**options, "params": [one]}]
        try:
            optimizer.step()
        finally:
            one.grad, optimizer.param_groups = None, []

    def _try(self) -> float:
        """Three steps of a small matrix and of its halves as vectors: the same numbers, or a refusal."""
        name = type(self.user).__name__
        wanted = f"an optimizer that treats each number by itself (AdamW, SGD, ...): {name} does not"
        draw = torch.Generator().manual_seed(0)
        start = torch.randn(4, 6, generator=draw)
        whole, halves = _like(self.user), _like(self.user)
        one = nn.Parameter(start.clone())
        two = [nn.Parameter(part.clone()) for part in start.view(-1).split(12)]
        for optimizer, params in ((whole, [one]), (halves, two)):
            for p in params:
                optimizer.state[p] = self._first(p)
        try:
            for _ in range(3):
                grad = torch.randn(4, 6, generator=draw) * torch.tensor([[1.0], [1.0], [20.0], [20.0]])
                self._step(whole, one, grad.clone(), 0)
                for part, its in zip(two, grad.view(-1).split(12), strict=True):
                    self._step(halves, part, its.clone(), 0)
        except (TypeError, ValueError, AssertionError, LookupError, RuntimeError) as fault:
            raise BadInput("optimizer", f"{name}: {fault}", wanted) from fault
        if not torch.allclose(one.view(-1), torch.cat([t.detach() for t in two]), rtol=1e-5, atol=1e-7):
            raise BadInput("optimizer", name, wanted)
        held = [s for s in whole.state[one].values() if isinstance(s, Tensor) and s.dim() > 0]
        if any(s.shape != one.shape for s in held):
            raise BadInput("optimizer", name, wanted)
        return sum(s.nbytes for s in held) / one.numel()

    def _first(self, p: nn.Parameter) -> dict[str, Any]:
        """A state as the user's optimizer has them already: some are made with the optimizer, not by its first step."""
        known: dict[str, Any] = next((s for s in self.user.state.values() if s), {})
        return {
            k: (p.new_full(p.shape, float(s.reshape(-1)[0]), dtype=s.dtype) if s.dim() else s.clone())
            if isinstance(s, Tensor)
            else s
            for k, s in known.items()
        }


def _like(optimizer: Any) -> Any:
    """An optimizer of the same class and settings, with neither parameters nor states."""
    made = object.__new__(type(optimizer))
    own = {k: v for k, v in vars(optimizer).items() if k != "step"}  # schedulers put a wrapped step there
    made.__dict__.update(own, state=defaultdict(dict), param_groups=[])
    return made


class Facade(torch.optim.Optimizer):
    """What stands in the optimizer's place: groups and options are the user's own, step and states those of slices."""

    def __init__(self, session: Any, optimizer: torch.optim.Optimizer):
        super().__init__([nn.Parameter(torch.empty(0))], dict(optimizer.defaults))
        self.param_groups = optimizer.param_groups
        self.session = session

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.session.update()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.session.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """This worker's shard: slices with the places that they have in whole vectors."""
        return self.session.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """A shard, or a list of all shards, of as many workers as there were."""
        self.session.load_state_dict(state_dict)
