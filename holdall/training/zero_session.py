"""A run whose states, gradients and parameters are spread over workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from holdall.errors import BadInput, BudgetError, HoldallError
from holdall.memory import release, return_early
from holdall.parts.losses import default_loss
from holdall.training import zero_ledger, zero_state
from holdall.training.base import Run, Trainee
from holdall.training.zero_gather import Gather
from holdall.training.zero_optimizer import Facade
from holdall.training.zero_slices import Slices
from holdall.training.zero_wire import Wire

if TYPE_CHECKING:
    from holdall.training.zero import ZeRO

_PATIENCE = 2000  # steps without overflow after which the loss scale doubles, as in mixed precision training


class Sharded(Trainee):
    """A run under ZeRO. In a loop of one's own: `backward(loss)` or loss.backward(), `clip_grad_norm_`, then
    `optimizer.step()`; all workers have to do the same. Gradients are consumed by the step."""

    def __init__(self, recipe: ZeRO, run: Run, limit: int | None, group: Any):
        self.recipe, self.model, self.loss = recipe, run.model, run.loss or default_loss
        self.wire = Wire(group, recipe.timeout)
        self.user, self.limit, self.closed, self.stale = run.optimizer, limit, False, False
        self.steps, self.skipped, self.scale, self.calm = 0, 0, recipe.scale, 0
        self.held: dict[str, int] = {}
        try:
            self.slices = Slices(self.model, self.user, recipe.stage, recipe.bucket, self.wire)
            self.need = self.slices.need(recipe.prefetch)
            least = sum(self.need.values())
            if limit is not None and least > limit:
                raise BudgetError(
                    limit, least, who=f"training.zero, stage {recipe.stage}", why="no activations yet"
                )
            self.slices.hold()
        except BaseException:
            self.wire.close()
            raise
        zero_state.take_over(self.slices, self.user)
        self.gather = Gather(self.model, self.slices, recipe.prefetch) if recipe.stage == 3 else None
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._came)
            for v in self.slices.vectors
            for p in v.params
            if p.requires_grad
        ]
        self._queued = False
        self.optimizer = Facade(self, self.user)
        return_early()  # what was whole before, and each bucket from now on

    # a loop of one's own

    def _came(self, p: nn.Parameter) -> None:
        """A gradient is there, and autograd goes on with the rest."""
        slices = self.slices
        slices.reduce.fresh = True
        if slices.stage < 2:
            return
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._went_back)
        with torch.no_grad():
            if any(b.trained for b in slices.reduce.of[p]):
                slices.reduce.take(p)
            if self.gather is not None:
                self.gather.begin()
                self.gather.taken(p)

    def _went_back(self) -> None:
        """A backward pass is over."""
        self._queued = False
        with torch.no_grad():
            self.slices.reduce.flush()
        if self.gather is not None:
            self.gather.end()

    def backward(self, loss: Tensor) -> None:
        """loss.backward(), scaled where there is a loss scale."""
        (loss * self.scale if self.scale else loss).backward()

    @torch.no_grad()
    def clip_grad_norm_(self, most: float) -> Tensor:
        """Gradients of all workers to a norm of at most that; the norm that they had. Before `optimizer.step()`."""
        self._check()
        self.slices.reduce.complete()
        norm = self.slices.norm() / (self.scale or 1.0)
        factor = float(most / (norm + 1e-6))
        if factor < 1:
            self.slices.scale(factor)
        return norm

    @torch.no_grad()
    def update(self) -> None:
        """What `optimizer.step()` does."""
        self._check()
        self._look()
        self.slices.reduce.complete()
        if self.gather is not None:
            self.gather.end()
        if self.scale and not bool(self.slices.norm().isfinite()):  # the same on all workers
            self.scale, self.calm = self.scale / 2, 0
            self.skipped += 1
            self.zero_grad()
            return
        if self.recipe.clip:
            self.clip_grad_norm_(self.recipe.clip)
        if self.scale:
            self.slices.scale(1 / self.scale)
            self.calm += 1
            if self.calm == _PATIENCE:
                self.scale, self.calm = self.scale * 2, 0
        self.stale = True
        self.slices.update()
        self.stale = False
        self.steps += 1
        self._look(after=True)

    def zero_grad(self) -> None:
        self._check()
        for b in self.slices.buckets:
            b.grad = None
        self.slices.reduce.fresh = False
        self.slices.drop(p for group in self.user.param_groups for p in group["params"])

    # step by step

    def step(self, x: Any) -> float:
        """One batch of this worker: the mean of all workers' losses."""
        self._check()
        try:
            if self.stale:  # an update that failed on its way out
                self.slices.spread()
                self.stale = False
            total = torch.zeros(1, dtype=torch.float64)
            with zero_ledger.within(self.limit, self.need, self.slices):
                for part, weight in zero_ledger.parts(x, self.recipe.micro):
                    loss = self.loss(self.model, part) * weight
                    total += loss.detach().double().cpu()
                    self.backward(loss)
            self.optimizer.step()
            release()  # holes that activations left; under a millisecond where a step of 23 million took 1.3 s
            return float(self.wire.sum(total)) / self.wire.size
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        self._queued = False
        if self.gather is not None and not self.wire.broken:
            self.gather.end()
        self.slices.forget()
        release()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All parameters at once, to read: for evaluation beside the module, averages, files of one's own."""
        self._check()
        with self.gather.whole() if self.gather is not None else nullcontext():
            yield

    # states

    def state_dict(self) -> dict[str, Any]:
        self._check()
        return zero_state.shard(self)

    def load_state_dict(self, shards: Any) -> None:
        """A shard, or all shards of a run with any number of workers, at any stage."""
        self._check()
        zero_state.load(self, [shards] if isinstance(shards, Mapping) else list(shards))

    # what it holds

    def ledger(self) -> dict[str, int]:
        """Bytes of live tensors by class, by their storages, each once."""
        return zero_ledger.live(self.slices)

    def _look(self, after: bool = False) -> None:
        """The most that each class had before and after updates."""
        for name, size in self.ledger().items():
            if name == "states" or not after:
                self.held[name] = max(self.held.get(name, 0), size)

    def traffic(self) -> Mapping[str, float]:
        """Counts so far; bytes by class as they were before updates, those of buffers at their peak."""
        self._check()
        told: dict[str, float] = {"steps": self.steps, "skipped": self.skipped, "scale": self.scale}
        told.update(
            {k: self.wire.counts[k] for k in ("gathers", "reductions", "sent_elements", "sent_bytes")}
        )
        told.update({f"{k}_bytes": v for k, v in self.held.items()})
        told["buffers_bytes"] = self.slices.live.peak
        told["prefetched"] = self.gather.prefetched if self.gather else 0
        return {**told, "micro": self.recipe.micro, "waited_seconds": self.wire.waited}

    def _check(self) -> None:
        if self.closed:
            raise BadInput("session", "one that was closed", "an open one")
        if self.wire.broken:
            raise HoldallError("a rank was lost earlier; start all ranks again from the last checkpoint")

    # the end

    def close(self) -> None:
        """Whole parameters back into the module, and the optimizer's states into it where the budget has room."""
        self._close(restore=True)

    def __exit__(self, kind: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        self._close(
            restore=kind is None or self.wire.size == 1
        )  # after an error others may not come to restore

    @torch.no_grad()
    def _close(self, restore: bool) -> None:
        if self.closed:
            return
        for hook in self._hooks:
            hook.remove()
        try:
            if not self.wire.broken:
                if self.gather is not None:
                    self.gather.end()
                if restore:
                    zero_state.give_back(self)
        finally:
            self.closed = True
            if self.gather is not None:
                self.gather.close()
            self.slices.forget()
            self.wire.close()
            del self.slices, self.gather
