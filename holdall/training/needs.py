"""What each method would need for a model that nobody has loaded: by its shapes alone, without any numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.errors import BudgetError
from holdall.optional import lazy
from holdall.training.base import Run
from holdall.training.zero_plan import planned

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="training")

_BLOCKS = 2  # whose activations are in memory while others are on their way


@dataclass(frozen=True)
class Need:
    """One way to train. memory: bytes of a process (with zero_offload, of the device); disk: bytes there; exact:
    whether the same parameters come out as with plain training."""

    method: str
    how: str
    memory: int
    disk: int
    exact: bool


def needs(
    described: Callable[[str], Any], batch: int, length: int, workers: Sequence[int] = (2, 4, 8)
) -> list[Need]:
    """For a language model that `described` makes on a device (its parameters have no numbers), in float32 with AdamW;
    the plain way first."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return _needs(described("cpu"), batch, length, workers)


def _needs(model: Any, batch: int, length: int, workers: Sequence[int]) -> list[Need]:
    count = sum(p.numel() for p in model.parameters())
    saved, largest = activations(model, batch, length)
    found = [
        Need("plain", "torch", 16 * count + saved, 0, True),
        Need(
            "training.ssdtrain",
            "activations on disk",
            16 * count + min(saved, _BLOCKS * largest),
            saved,
            True,
        ),
        Need("training.sgd_sai", "one moment; another optimizer", 12 * count + saved, 0, False),
        Need("training.coat", "moments in 8 bits", round(10.08 * count) + saved, 0, False),
    ]
    for n in workers:
        for plan in planned(count, n, weight=4, gradient=4, states=8)[1:]:
            told = f"stage {plan.stage}, {n} workers"
            found.append(Need("training.zero", told, round(plan.total) + saved, 0, True))
    device = 2 * count + saved // 2
    found.append(
        Need("training.zero_offload", "bfloat16 on the device, 16 bytes a number beside", device, 0, False)
    )
    found.append(
        Need("training.fuyou", "all of it on disk", _paged(model) + largest, 12 * count + saved, True)
    )
    return found


def activations(model: Any, batch: int, length: int) -> tuple[int, int]:
    """(bytes that autograd keeps of a batch, of that the most between two inputs of a layer).

    Each storage once, without parameters. A layer is an element of the model's longest list of modules.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Any] = []  # storages must live, or their numbers come again
    marks: list[int] = []

    def pack(x: Any) -> Any:
        storage = x.untyped_storage()
        if storage._cdata not in own and storage._cdata not in sizes:
            sizes[storage._cdata] = storage.nbytes()
            kept.append(storage)
        return x

    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len, default=())
    hooks = [m.register_forward_pre_hook(lambda *_: marks.append(sum(sizes.values()))) for m in layers]
    try:
        ids = torch.zeros(batch, length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.train()(input_ids=ids, labels=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    whole = sum(sizes.values())
    steps = [b - a for a, b in zip(marks, [*marks[1:], whole], strict=True)]
    return whole, max(steps, default=whole)


def _paged(model: Any) -> int:
    """What fuyou says of itself, where nothing would do."""
    from holdall.training.fuyou import Fuyou
    from holdall.training.fuyou_memory import shared_out

    try:
        shared_out(Fuyou(), Run(model, torch.optim.AdamW(model.parameters())), 1)
    except BudgetError as fault:
        return int(fault.least)
    raise AssertionError("one byte cannot do")
