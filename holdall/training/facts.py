"""What a run needs: bytes that are known from its tensors, and those that a rehearsal on a part of a batch tells."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.memory import release
from holdall.meter import Meter
from holdall.optional import lazy
from holdall.training.base import Run

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="training")

_LARGE = 1 << 20  # bytes of a memory that may wait on disk
_STATES = {  # numbers of state that torch's optimizers keep for each trained one
    "SGD": 0, "Adagrad": 1, "RMSprop": 1, "Adadelta": 2, "Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Adamax": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Of a run and one batch, in bytes. weights: parameters and buffers, tied ones once. gradients, states: of what is
    trained. updating: what an update holds for a moment. passing: the most that forward and backward hold above the
    weights, gradients included; activations: what autograd keeps of the model's forward pass in memories of a megabyte
    and more, those that may wait on disk. seconds: of forward and backward."""

    parameters: int  # numbers
    weights: int
    gradients: int
    states: int
    updating: int
    passing: int
    activations: int
    seconds: float

    @property
    def plain(self) -> int:
        """The most that plain training holds."""
        return self.weights + self.states + max(self.passing, self.gradients + self.updating)


def facts(run: Run, batch: Any, loss: Callable[[Any, Any], Any]) -> Facts:
    """Measured on a quarter and a half of the batch (dropout, buffers and gradients are put back as they were)."""
    trained = {p for g in run.optimizer.param_groups for p in g["params"] if p.requires_grad}
    if not trained:
        raise BadInput("optimizer", "nothing to train", "parameters that require gradients")
    if _per_number(run.optimizer, run.optimizer.param_groups[0]) is None:
        name = type(run.optimizer).__name__
        raise BadInput("optimizer", name, f"one of torch's or Holdall's ({', '.join(_STATES)})")
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(run.model)}
    gradients = sum(p.nbytes for p in trained)
    count = rows(batch)
    few = sorted({max(1, count // 4), max(1, count // 2), count} if count < 4 else {count // 4, count // 2})
    found = [(n, _rehearsed(run, part(batch, n), loss, count / n)) for n in few[:2]]
    (first, low), (some, high) = found[0], found[-1]
    more = (count - some) / max(some - first, 1)
    passing = max(round(b + max(0, b - a) * more) for a, b in zip(low.peaks, high.peaks, strict=True))
    return Facts(
        parameters=sum(p.numel() for p in run.model.parameters()),
        weights=sum(held.values()),
        gradients=gradients,
        states=states_of(run.optimizer),
        updating=_updating(run.optimizer, trained),
        passing=passing,
        activations=round(high.saved * count / some),
        seconds=high.seconds * count / some,
    )


def states_of(optimizer: Any) -> int:
    """Bytes of state that an optimizer has, or will have where that is known."""
    have = sum(x.nbytes for told in optimizer.state.values() for x in told.values() if torch.is_tensor(x))
    sizes = [(g, p.nbytes) for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    return max(have, round(sum(size * (_per_number(optimizer, g) or 0) for g, size in sizes)))


def _per_number(optimizer: Any, group: Any) -> float | None:
    """Numbers of state for each trained one; None for an optimizer of which that is not known."""
    most = getattr(optimizer, "most_bytes", None)
    if most is not None:
        return float(most) / 4
    found = [_STATES[k.__name__] for k in type(optimizer).__mro__ if k.__name__ in _STATES]
    return (
        found[0] + bool(group.get("amsgrad") or (found[0] == 0 and group.get("momentum"))) if found else None
    )


def _updating(optimizer: Any, trained: Any) -> int:
    """An unfused update holds some tensors as large as the largest parameter; foreach, as all of them."""
    group = optimizer.param_groups[0]
    if group.get("fused") or hasattr(optimizer, "most_bytes"):
        return 0
    sizes = [p.nbytes for p in trained]
    return 2 * (sum(sizes) if group.get("foreach") else max(sizes))


def _tensors(model: Any) -> Any:
    return itertools.chain(model.parameters(), model.buffers())


def within(model: Any, begin: Callable[[], Any]) -> tuple[Any, Any]:
    """Hooks by which each forward pass of the model is in a context of its own that `begin` makes."""
    inside: list[Any] = []

    def enter(*_: Any) -> None:
        inside.append(begin())
        inside[-1].__enter__()

    def leave(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    return model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)


@contextlib.contextmanager
def _counted(model: Any, least: float) -> Iterator[dict[int, int]]:
    """Of each memory of `least` bytes and more that the model's forward pass saves, its bytes."""
    own = {t.untyped_storage().data_ptr() for t in _tensors(model)}
    sizes: dict[int, int] = {}

    def seen(x: Any) -> Any:
        memory = x.untyped_storage()
        if memory.nbytes() >= least and memory.data_ptr() not in own:
            sizes[memory.data_ptr()] = memory.nbytes()  # the graph has it until backward
        return x

    hooks = within(model, lambda: torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x))
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Rehearsed:
    """Of forward and backward with a part of a batch. peaks: the most that was held above what was before, with all
    gradients and without them. A small part peaks where gradients have come, a large one where activations are: each
    grows evenly, their maximum does not. saved: bytes that may wait."""

    peaks: tuple[int, int]
    seconds: float
    saved: int


def _rehearsed(run: Run, batch: Any, loss: Callable[[Any, Any], Any], parts: float) -> _Rehearsed:
    """With the `parts`-th part of a batch."""
    model = run.model
    grads = {p: p.grad for p in model.parameters()}
    kept = [b.clone() for b in model.buffers()]
    try:
        with torch.random.fork_rng():
            _let_go(grads)
            with _counted(model, _LARGE / parts) as saved:
                loss(model, batch).backward()  # and what libraries take at first is not the run's
            _let_go(grads)
            with Meter() as meter:
                _passed(model, batch, loss)
            _let_go(grads)
            hooks = [
                p.register_post_accumulate_grad_hook(lambda p: _let_go([p])) for p in grads if p.requires_grad
            ]
            with Meter() as without:
                _passed(model, batch, loss)
            for hook in hooks:
                hook.remove()
    finally:
        with torch.no_grad():
            for b, was in zip(model.buffers(), kept, strict=True):
                b.copy_(was)
        for p, grad in grads.items():
            p.grad = grad
    peaks = [m.gpu_peak_bytes or m.peak_bytes for m in (meter, without)]
    return _Rehearsed((peaks[0], peaks[1]), meter.seconds, sum(saved.values()))


def _passed(model: Any, batch: Any, loss: Callable[[Any, Any], Any]) -> None:
    value = loss(model, batch)
    value.backward()


def _let_go(params: Iterable[Any]) -> None:
    for p in params:
        p.grad = None
    release()


def rows(batch: Any) -> int:
    """Of the first tensor of a batch."""
    for x in _leaves(batch):
        if torch.is_tensor(x) and x.dim():
            return len(x)
    raise BadInput("batch", type(batch).__name__, "tensors whose first axis is the batch")


def part(batch: Any, count: int) -> Any:
    """The first rows of each tensor of a batch that has as many as the first one."""
    total = rows(batch)

    def cut(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {k: cut(v) for k, v in x.items()}
        if isinstance(x, tuple | list):
            return type(x)(cut(v) for v in x)
        return x[:count] if torch.is_tensor(x) and x.dim() and len(x) == total else x

    return cut(batch)


def _leaves(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        for x in batch.values():
            yield from _leaves(x)
    elif isinstance(batch, tuple | list):
        for x in batch:
            yield from _leaves(x)
    else:
        yield batch
