"""ZeRO-Offload: weights and matrix products on the device, states and the update in host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.training.base import Run, Trainee, TrainingRuntime

torch = lazy("torch", extra="training")


@dataclass(frozen=True, kw_only=True)
class ZeROOffload(TrainingRuntime):
    """Trains on a device that has room for half-precision weights alone; AdamW runs in host memory, in one pass.

    The device holds weights (2 bytes a parameter), activations and two buckets of gradients; a bucket that is full goes
    to host memory while backward goes on and is free again. Host memory holds fp32 weights and both moments; tiles go
    up while the next is updated. With `delay` the update runs beside the next step, whose weights are then one update
    old. Under torch.distributed each rank updates its slices (ZeRO-2) and weights are gathered. Poor where the link is
    slow and batches are small: 4 bytes a parameter go over it in each step. On a CPU there is no other memory to save:
    the device is an account of bytes that refuses more than the budget, for trials and plans (`zero_offload_plan`).

    Shapes:
        weights [N] in one vector; p, m, v fp32 [N / ranks], gradients [N / ranks] in the format of the weights.
    Cost:
        Device: 2 N, two buckets, one gradient, activations. Host: 12 N / ranks, 2 N / ranks of gradients (4 where they
        are summed up, twice that with `delay`) and two tiles. Over the link 2 N each way and step.
    Knobs:
        weights: their type on the device (paper float16); bucket and tile, elements that go down and up at once;
        overlap: copy beside backward and update; accumulate: backward passes of a step; clip: the largest norm of all
        gradients, 0: none; scale: of the loss, halved where a gradient is not finite and that step skipped, doubled
        after 2000 good ones, 0: none; delay: from which step on the update is late by one (paper 40; None: never);
        threads of the update; link: bytes a second each way at most, 0: as fast as it goes.
    Differs from the paper:
        AdamW, not Adam. bf16 by default. Gradients are summed up in host memory in fp32. With `delay` no step is left
        out at the switch: the first late update is of the step itself. The device of a CPU is played; CUDA streams and
        pinned memory are written and were not run on a GPU.
    Example:
        >>> import torch
        >>> from holdall.training import Run, ZeROOffload
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        >>> x = torch.randn(16, 8)
        >>> with ZeROOffload().open(Run(model, torch.optim.AdamW(model.parameters(), lr=0.01)), "4kB") as trainee:
        ...     losses = [trainee.step((x, x.flip(1))) for _ in range(20)]
        >>> losses[-1] < 0.9 * losses[0], trainee.device.peak <= 4000
        (True, True)

    Paper: Ren et al., ZeRO-Offload, USENIX ATC 2021.
    Test: tests/training/test_zero_offload.py
    """

    name: ClassVar[str] = "zero_offload"
    paper: ClassVar[Paper] = Paper(
        95,
        "ZeRO-Offload: Democratizing Billion-Scale Model Training",
        "Ren et al., USENIX ATC 2021",
        "https://arxiv.org/abs/2101.06840",
    )
    doors: ClassVar[tuple[str, ...]] = ("holdall.training.zero_offload_link.Link._moved",)
    skips: ClassVar[Mapping[str, str]] = {
        "check_budget_is_kept": "budgets are of the device; a CPU's is an account, its states are in the same memory"
    }

    weights: str = knob("bfloat16", "type of weights on the device", paper="float16", other="float32")
    bucket: int = knob(1 << 17, "gradients that go down at once", other=1 << 15, changes="traffic")
    tile: int = knob(1 << 17, "weights that go up at once", other=1 << 15, changes="traffic")
    overlap: bool = knob(True, "copy beside backward and update", other=False, changes="traffic")
    accumulate: int = knob(1, "backward passes of a step", other=2)
    clip: float = knob(0.0, "largest norm of all gradients; 0: none", other=1e-3)
    scale: float = knob(0.0, "of the loss, for fp16; 0: none", other=3e38)
    delay: int | None = knob(
        None, "step from which updates are late by one; None: never", paper=40, other=1, unit="steps"
    )
    threads: int = knob(1, "threads of the update", other=2, changes="nothing")
    link: float = knob(0.0, "bytes a second each way at most; 0: any", other=1e9, changes="nothing")

    def __post_init__(self) -> None:
        if self.weights not in ("float32", "bfloat16", "float16"):
            raise BadInput("weights", self.weights, "float32, bfloat16 or float16")
        least = {"bucket": 1, "tile": 1, "accumulate": 1, "clip": 0, "scale": 0, "threads": 1, "link": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise BadInput(name, getattr(self, name), f"at least {low}")
        if self.delay is not None and self.delay < 0:
            raise BadInput("delay", self.delay, "a step, or None")

    def open(self, artefact: Run, budget: Spend = None, *, group: Any = None) -> Trainee:
        """Under way. budget: of the device. group: of torch.distributed; None: all ranks, where there are some."""
        from holdall.training.fuyou_groups import need_adamw
        from holdall.training.zero_offload_host import Cut
        from holdall.training.zero_offload_link import Device
        from holdall.training.zero_offload_session import Offloaded

        need_adamw(artefact.optimizer)
        ours = {id(p) for g in artefact.optimizer.param_groups for p in g["params"]}
        params = [p for p in artefact.model.parameters() if p.requires_grad and id(p) in ours]
        if not params or len({p.device for p in params}) > 1:
            raise BadInput("parameters", len(params), "some to train, on one device")
        limit = self._limit(artefact, budget, params)
        wire = self._wire(group)
        owners, owner = (1, 0) if wire is None else (wire.size, wire.rank)
        cut = Cut.of([p.numel() for p in params], self.bucket, owners, owner)
        return Offloaded(self, artefact, Device(limit), cut, params, wire)

    def _limit(self, run: Run, budget: Spend, params: list[Any]) -> int | None:
        """Bytes of the device, or BudgetError with the least that weights, buckets and one gradient take."""
        asked, count = Budget.parse(budget), sum(p.numel() for p in params)
        limit = None if asked is None else asked.limit(self.whole(run), count)
        each = getattr(torch, self.weights).itemsize
        least = each * (count + 2 * min(self.bucket, count) + max(p.numel() for p in params))
        if limit is not None and limit < least:
            raise BudgetError(limit, least, who=self.full_name(), why="weights and buckets on the device")
        return limit

    def _wire(self, group: Any) -> Any:
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return None
        from holdall.training.zero_wire import Wire

        wire = Wire(group)
        return wire if wire.size > 1 else None

    def whole(self, artefact: Run) -> int:
        """Weights and gradients in half precision, fp32 weights and two moments: 16 bytes a parameter."""
        return 16 * sum(p.numel() for p in artefact.model.parameters() if p.requires_grad)

    @classmethod
    def rehearsal(cls) -> tuple[Run, Sequence[Any]]:
        from holdall.training.fuyou import Fuyou

        return Fuyou.rehearsal()
