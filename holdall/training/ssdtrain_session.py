"""A run whose activations wait on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from holdall.errors import BadInput
from holdall.parts.losses import default_loss
from holdall.training.base import Run, Trainee
from holdall.training.facts import states_of
from holdall.training.ssdtrain_cache import TensorCache

if TYPE_CHECKING:
    from holdall.training.ssdtrain import SSDTrain


def fixed(run: Run) -> int:
    """Bytes of parameters, buffers and states of the optimizer; those that it has, or will have."""
    held = {t.untyped_storage()._cdata: t.nbytes for t in (*run.model.parameters(), *run.model.buffers())}
    return sum(held.values()) + states_of(run.optimizer)


class Offloaded(Trainee):
    """What SSDTrain opened. The optimizer is the user's own. In a loop of one's own: `with session.saving():` around
    the forward pass and its loss."""

    def __init__(self, recipe: SSDTrain, run: Run, cache: TensorCache):
        self.recipe, self.model, self.optimizer = recipe, run.model, run.optimizer
        self.loss, self.cache, self._open = run.loss or default_loss, cache, True

    def step(self, x: Any) -> float:
        self._check()
        try:
            with self.saving():
                loss = self.loss(self.model, x)
            loss.backward()
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)
            self.cache.leave()
            raise
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def saving(self) -> Any:
        """What is saved within goes to disk."""
        self._check()
        return torch.autograd.graph.saved_tensors_hooks(self.cache.pack, self.cache.unpack)

    def traffic(self) -> Mapping[str, float]:
        self._check()
        return self.cache.traffic()

    def flow(self) -> Mapping[str, float]:
        self._check()
        return self.cache.flow()

    def close(self) -> None:
        self._open = False
        self.cache.close()

    def _check(self) -> None:
        if not self._open:
            raise BadInput("session", "closed", "one that is open")
