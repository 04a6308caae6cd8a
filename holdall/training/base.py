"""The contract of the room: a training run goes in, and the same run comes out, in less memory.

Optimizers are torch's own contract beside a citation. A runtime takes a `Run` and gives a `Trainee`, which holds the
user's own module and something that stands in the optimizer's place, so that a loop written for torch goes on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.kinds import Runtime, Session, Spend


@dataclass(frozen=True)
class Run:
    """model: a torch module. optimizer: one of torch's, over its parameters (AdamW where a method updates by itself).

    loss: (module, batch) -> scalar; None: the module's own `.loss` where a batch is a dict of named arguments, else
    cross-entropy of pairs (inputs, targets) of whole numbers and squared error of others.
    """

    model: Any
    optimizer: Any
    loss: Callable[[Any, Any], Any] | None = None


class Trainee(Session):
    """A run that is under way. In a loop of one's own: loss.backward(), then `optimizer.step()` and
    `optimizer.zero_grad()`; `step` does all three. Where it is closed, the module has its parameters again, as they
    were trained, and the user's optimizer its states, where these fit into memory."""

    model: Any  # the user's own module
    optimizer: Any  # step, zero_grad, state_dict, load_state_dict, param_groups as torch's

    @abstractmethod
    def step(self, x: Any) -> float:
        """Forward, backward and update with one batch: the loss."""


@dataclass(frozen=True, kw_only=True)
class TrainingRuntime(Runtime):
    """Trains what does not fit. Budgets count all that a process holds for the run: parameters, gradients, states of
    the optimizer and activations; a share is of what plain training would hold."""

    room: ClassVar[str] = "training"
    changes_artefact: ClassVar[bool] = True  # the user's module is trained, not a copy

    @abstractmethod
    def open(self, artefact: Run, budget: Spend = None) -> Trainee:
        """Under way; BudgetError with the least that would do, before anything was changed."""
