"""fit_training: measure a run, choose what makes it fit at the least loss of time, hand the same three things back."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError, human_bytes
from holdall.kinds import Spend
from holdall.memory import release, return_early
from holdall.optional import lazy
from holdall.parts.losses import default_loss
from holdall.training.base import Run, Trainee, TrainingRuntime
from holdall.training.facts import Facts, facts, within

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="training")

_COAT = 2.08 / 8  # of AdamW's states


@dataclass(frozen=True)
class Way:
    """One that may fit. method: a recipe of the room, or None for torch alone. predicted: bytes of a process."""

    name: str
    method: TrainingRuntime | None
    predicted: int
    exact: bool = True


class Fitted(tuple[Any, Any, Any]):
    """(model, optimizer, loader), to be used as before. way: what was chosen; facts: what it was chosen by. Closing it,
    or leaving its `with` block, gives the module its parameters back."""

    way: Way
    facts: Facts
    session: Trainee | None = None
    hooks: tuple[Any, ...] = ()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        if self.session is not None:
            self.session.close()

    def __enter__(self) -> Fitted:
        return self

    def __exit__(self, _k: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        self.close()


def fit_training(
    model: Any,
    optimizer: Any,
    loader: Any,
    budget: Spend,
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    lossy: bool = False,
    clip: float = 0.0,
    accumulate: int = 1,
    say: Callable[[str], None] | None = None,
) -> Fitted:
    """The same run in that much memory of a process; BudgetError with the least where nothing would do.

    The first batch of the loader is rehearsed on (parts of it, forward and backward), and of what fits by that the
    fastest is taken: torch alone; ZeRO, where torch.distributed is initialised; activations on disk; all on disk.
    lossy: states in 8 bits may be taken too. loss: as `Run` has it. clip: the largest norm of all gradients (0: any);
    accumulate: backward passes of an update. Leave both to this: where gradients are used within backward, clipping
    in the loop would find none. say: where the line about the choice goes (stderr).

        model, optimizer, loader = fit_training(model, optimizer, loader, budget="6GB")
    """
    return_early()  # what is freed goes back at once: otherwise a process stays as large as it ever was
    batch, loader = _first(loader)
    if not clip >= 0 or accumulate < 1:
        raise BadInput("fit_training", f"clip {clip}, accumulate {accumulate}", "clip >= 0, accumulate >= 1")
    run = Run(model, optimizer, loss)
    told = facts(run, batch, loss or default_loss)
    release()  # what the rehearsal left in small pieces
    asked = Budget.parse(budget)
    limit = told.plain if asked is None else asked.limit(told.plain, told.parameters)
    tried = list(ways(run, told, limit, lossy, clip, accumulate))
    way = next((w for w in tried if w.predicted <= limit), None)
    if way is None:
        least = min(w.predicted for w in tried)
        raise BudgetError(limit, least, who="fit_training", why="of all ways that were tried")
    fitted = Fitted((model, optimizer, loader))
    if way.method is not None:
        session = way.method.open(run, limit)
        fitted = Fitted((session.model, session.optimizer, loader))
        fitted.session = session
        if way.name.startswith("training.ssdtrain"):
            saver: Any = session
            fitted.hooks = within(model, saver.saving)
    elif not way.exact:
        fitted = Fitted((model, coated(optimizer), loader))
    if clip and not hasattr(way.method, "clip"):
        fitted.hooks += (_clipped(fitted[1], clip),)
    fitted.way, fitted.facts = way, told
    line = f"torch alone would hold {human_bytes(told.plain)}, {human_bytes(limit)} are allowed: {way.name}"
    line += f", about {human_bytes(way.predicted)}" + (
        "" if way.exact else "; losses differ in the third digit"
    )
    if hasattr(way.method, "clip"):
        line += "; gradients are used within backward: clip by clip=, not in the loop"
    (say or _stderr)(f"fit_training: {line}")
    return fitted


def ways(
    run: Run, told: Facts, limit: int, lossy: bool, clip: float = 0.0, accumulate: int = 1
) -> Iterator[Way]:
    """The fastest first."""
    yield Way("torch alone", None, told.plain)
    yield from _spread(told, clip)
    if lossy and type(run.optimizer).__name__ == "AdamW":
        saved = round(told.states * (1 - _COAT))
        yield Way("training.coat (moments in 8 bits)", None, told.plain - saved, exact=False)
    yield from _on_disk(run, told, limit, clip, accumulate)


def _spread(told: Facts, clip: float) -> Iterator[Way]:
    """ZeRO, where there are workers to spread states over."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from holdall.training.zero import ZeRO

    n = torch.distributed.get_world_size()
    rest = max(0, told.passing - told.gradients)
    for stage in (1, 2, 3) if n > 1 else ():
        states = told.states // n
        gradients = told.gradients // (n if stage >= 2 else 1)
        weights = told.weights // (n if stage == 3 else 1)
        recipe = ZeRO(stage=stage, clip=clip)
        buckets = 3 * 4 * recipe.bucket
        size = states + weights + max(told.passing, gradients + buckets) if stage < 2 else (
            states + weights + gradients + rest + buckets
        )  # fmt: skip
        yield Way(f"training.zero (stage {stage} of {n} workers)", recipe, size)


def _on_disk(run: Run, told: Facts, limit: int, clip: float, accumulate: int) -> Iterator[Way]:
    from holdall.training.fuyou import Fuyou
    from holdall.training.fuyou_memory import shared_out
    from holdall.training.ssdtrain import SSDTrain

    recipe = SSDTrain()
    beside = max(told.passing - told.activations, told.gradients + told.updating)
    least = told.weights + told.states + beside + 2 * recipe.window  # once for what its first step takes
    yield Way("training.ssdtrain (activations on disk)", recipe, max(least, min(limit, told.plain)))
    if type(run.optimizer).__name__ == "AdamW":
        fuyou = Fuyou(clip=clip, accumulate=accumulate)
        try:
            shared_out(fuyou, run, limit)
            yield Way("training.fuyou (states, and what else does not fit, on disk)", fuyou, limit)
        except BudgetError as fault:
            yield Way("training.fuyou", fuyou, int(fault.least))


def _clipped(optimizer: Any, most: float) -> Any:
    """A hook that does what `clip_grad_norm_` would do in the loop, right before each step."""
    params = [p for g in optimizer.param_groups for p in g["params"]]
    return optimizer.register_step_pre_hook(lambda *_: _clip(params, most))


def _clip(params: list[Any], most: float) -> None:
    torch.nn.utils.clip_grad_norm_(params, most)


def coated(optimizer: Any) -> Any:
    """COATAdamW in the place of torch's AdamW, with the states that it has."""
    from holdall.training.coat import COATAdamW

    names = ("lr", "betas", "eps", "weight_decay", "maximize")
    groups = [{"params": g["params"], **{n: g[n] for n in names if n in g}} for g in optimizer.param_groups]
    new = COATAdamW(groups)
    if optimizer.state:
        new.load_state_dict(optimizer.state_dict())
    return new


def _first(loader: Any) -> tuple[Any, Any]:
    """The first batch, and a loader that still has it."""
    some = iter(loader)
    batch = next(some, None)
    if batch is None:
        raise BadInput("loader", "no batches", "at least one")
    return batch, (itertools.chain([batch], some) if some is loader else loader)


def _stderr(line: str) -> None:
    print(line, file=sys.stderr)
