"""The same run by torch's own FSDP2, with units chosen as ZeRO's are."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from holdall.errors import BadInput, BudgetError
from holdall.parts.losses import default_loss
from holdall.training.base import Run, Trainee
from holdall.training.zero_ledger import parts
from holdall.training.zero_plan import planned

if TYPE_CHECKING:
    from holdall.training.zero import ZeRO


class Fsdp(Trainee):
    """A run under FSDP2. `model` is a wrapped copy that takes the place of the user's module until this is closed;
    `optimizer` is the user's class over its parts, and its state_dict goes to torch.distributed.checkpoint."""

    def __init__(self, recipe: ZeRO, run: Run, limit: int | None, group: Any):
        from holdall.training.zero_optimizer import Inner

        self.recipe, self.run, self.loss = recipe, run, run.loss or default_loss
        self.closed, self.steps, self.own = False, 0, not dist.is_initialized()
        if any(run.optimizer.state.values()):
            raise BadInput("optimizer", "one that has stepped", "a new one: fsdp2 begins with no states")
        each = Inner(run.optimizer).each
        if limit is not None:
            self._fits(limit, each, dist.get_world_size(group) if not self.own else 1)
        if self.own:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            self._wrap(group)
        except BaseException:
            self._leave()
            raise

    def _fits(self, limit: int, each: float, workers: int) -> None:
        trained = [p for g in self.run.optimizer.param_groups for p in g["params"]]
        size, count = trained[0].element_size(), sum(p.numel() for p in trained)
        plan = planned(count, workers, weight=size, gradient=size, states=each)[self.recipe.stage]
        whole = max((p.nbytes for p in self.run.model.parameters()), default=0) + 4 * self.recipe.bucket
        if plan.total + whole > limit:
            raise BudgetError(
                limit, int(plan.total + whole) + 1, who="training.zero by fsdp2", why="no activations yet"
            )

    def _wrap(self, group: Any) -> None:
        given = self.run.model
        kind = next(given.parameters()).device.type
        mesh = DeviceMesh.from_group(group or dist.distributed_c10d._get_default_group(), kind)
        again = {p: nn.Parameter(p.detach(), p.requires_grad) for p in given.parameters()}  # the same memory
        self.model = copy.deepcopy(given, {id(p): q for p, q in again.items()})
        names = {p: n for n, p in given.named_parameters()}
        for unit in _units(self.model, self.recipe.bucket):
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.recipe.stage == 3)
        now = dict(self.model.named_parameters())
        groups = [
            {**{k: v for k, v in g.items() if k != "params"}, "params": [now[names[p]] for p in g["params"]]}
            for g in self.run.optimizer.param_groups
        ]
        self.optimizer = object.__new__(type(self.run.optimizer))
        self.optimizer.__dict__.update({k: v for k, v in vars(self.run.optimizer).items() if k != "step"})
        self.optimizer.state = type(self.run.optimizer.state)(dict)
        self.optimizer.param_groups = groups
        self.names = names
        with torch.no_grad():
            for p in given.parameters():
                p.data = p.new_full((), torch.nan).expand(p.shape)  # the wrapped copy has them now

    def clip_grad_norm_(self, most: float) -> torch.Tensor:
        """Gradients of all workers to a norm of at most that; the norm that they had."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), most)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self, x: Any) -> float:
        if self.closed:
            raise BadInput("session", "one that was closed", "an open one")
        total = torch.zeros(1, dtype=torch.float64)
        try:
            for part, weight in parts(x, self.recipe.micro):
                loss = self.loss(self.model, part) * weight
                total += loss.detach().double().cpu()
                loss.backward()
            if self.recipe.clip:
                self.clip_grad_norm_(self.recipe.clip)
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad()
        self.steps += 1
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def traffic(self) -> Mapping[str, float]:
        """Bytes of a worker's parts; torch does not count what it sends."""
        if self.closed:
            raise BadInput("session", "one that was closed", "an open one")
        held = [p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        states = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        local = [v.to_local() if isinstance(v, DTensor) else v for v in states]
        return {
            "steps": self.steps,
            "params_bytes": sum(t.nbytes for t in held),
            "states_bytes": sum(t.nbytes for t in local),
        }

    @torch.no_grad()
    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        theirs = dict(self.model.named_parameters())
        for p, name in self.names.items():
            whole = theirs[name].detach()
            p.data = whole.full_tensor().clone() if isinstance(whole, DTensor) else whole
            for key, value in self.optimizer.state.get(theirs[name], {}).items():
                self.run.optimizer.state[p][key] = (
                    value.full_tensor() if isinstance(value, DTensor) else value
                )
        del self.model, self.optimizer
        self._leave()

    def _leave(self) -> None:
        if self.own and dist.is_initialized():
            dist.destroy_process_group()


def _units(module: nn.Module, capacity: int) -> list[nn.Module]:
    """Modules to wrap, inner ones first: those that fit a bucket with all that is in them, and the whole, which has
    what modules share."""
    names = Counter(p for _, p in module.named_parameters(remove_duplicate=False))
    shared = {p for p, count in names.items() if count > 1}
    found: list[nn.Module] = []

    def walk(parent: nn.Module) -> None:
        for child in parent.children():
            inside = list(child.parameters())
            listed = isinstance(child, nn.ModuleList | nn.Sequential)
            if listed or not shared.isdisjoint(inside) or sum(p.numel() for p in inside) > capacity:
                walk(child)
            elif inside:
                found.append(child)

    walk(module)
    return [*found, module]
