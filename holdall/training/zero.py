"""ZeRO: a model whose training does not fit one worker, its states spread over all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.training.base import Run, Trainee, TrainingRuntime

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="training")

ENGINES = ("own", "fsdp2")


@dataclass(frozen=True, kw_only=True)
class ZeRO(TrainingRuntime):
    """Trains a model whose states do not fit one worker: each of n workers keeps a part, and no update changes.

    Stage 1 spreads states of the optimizer, stage 2 gradients as well, stage 3 parameters as well. Start a process
    for each worker, initialise torch.distributed as for DDP, open the run, and train with batches of each worker's
    own: updates are those of one process with all batches. With one worker nothing is spread, and this only costs
    time; use other methods of the room there. What a worker sends is a half more at stage 3 than at the others.

    Shapes:
        parameters of a group and type as one vector [P], in buckets [n, share]; a worker's slice is one row of each.
    Cost:
        Bytes of a worker with float32 and AdamW: 16P; 8P + 8P/n; 4P + 12P/n; 16P/n, and three buckets, at stage 3
        those of the modules that run. Elements sent by a worker in a step: 2P, 2P, 2P, 3P times (n - 1)/n.
    Knobs:
        stage (paper: up to 3); bucket, numbers of a buffer (paper 5e8, on clusters); prefetch, runs of modules fetched
        ahead at stage 3; clip, the most that the norm of all gradients may be (0: any); micro, parts of a batch that
        are computed one after another; scale, the loss scale of float16 (0: none), halved when a gradient of any
        worker overflows; timeout, after which a rank that does not come is named; engine, `own` or torch's `fsdp2`.
    Differs from the paper:
        A worker owns an equal slice of each bucket, not one slice of the whole vector: reductions then keep all links
        busy alike, and no owner needs room for n buckets. With a bucket as large as the vector it is the same. Sums go
        in the order of ranks, over an all-to-all where the backend has no true reduce-scatter. Gradients that a step
        never produced count as zeros, where plain torch skips the update. At stages 0 and 1 gradients are reduced in
        the step, not during backward. At stage 3 buckets end where modules do, tied parameters stay from their first
        to their last module, and who uses a parameter without calling its module reads NaN (`session.gathered()`).
        Activations are the business of `zero_activations` (P_a), not of this class.
    Example:
        >>> import torch
        >>> from holdall.training import ZeRO
        >>> from holdall.training.base import Run
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> run = Run(model, torch.optim.AdamW(model.parameters(), lr=0.01))
        >>> batch = torch.ones(3, 4), torch.tensor([0, 1, 1])
        >>> with ZeRO(stage=3, clip=1.0).open(run) as session:
        ...     losses = [session.step(batch) for _ in range(5)]
        ...     there = bool(model[0].weight.isfinite().all())
        >>> losses[-1] < losses[0], there, bool(model[0].weight.isfinite().all())
        (True, False, True)

    Paper: Rajbhandari, Rasley, Ruwase, He, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models.
    Test: tests/training/test_zero.py
    """

    name: ClassVar[str] = "zero"
    paper: ClassVar[Paper] = Paper(
        41,
        "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        "Rajbhandari, Rasley, Ruwase, He (SC 2020)",
        "https://arxiv.org/abs/1910.02054",
    )
    doors: ClassVar[tuple[str, ...]] = (
        "holdall.training.zero_wire.Wire.gather",
        "holdall.training.zero_wire.Wire.scatter",
    )

    stage: int = knob(
        3, "what is spread: 1 states, 2 gradients too, 3 parameters too", other=1, changes="traffic"
    )
    bucket: int = knob(
        262_144, "numbers of a buffer", unit="numbers", paper=500_000_000, other=1_000_000, changes="traffic"
    )
    prefetch: int = knob(
        1, "runs of modules that are fetched ahead", other=0, at={"bucket": 100_000}, changes="traffic"
    )
    clip: float = knob(0.0, "the most that the norm of all gradients may be; 0: any", other=0.01)
    micro: int = knob(1, "parts of a batch, computed one after another", other=2)
    scale: float = knob(0.0, "loss scale of float16, at first; 0: none", other=1024.0, changes="traffic")
    timeout: float = knob(
        600.0, "after which a missing rank is named", unit="seconds", other=60.0, changes="nothing"
    )
    engine: str = knob("own", "own, or torch's fsdp2", other="fsdp2", changes="traffic")

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise BadInput("stage", self.stage, "0, 1, 2 or 3")
        if self.bucket < 1 or self.prefetch < 0 or self.micro < 1:
            raise BadInput(
                "zero",
                f"{self.bucket}, {self.prefetch}, {self.micro}",
                "bucket and micro >= 1, prefetch >= 0",
            )
        if min(self.clip, self.scale) < 0 or not self.timeout > 0:
            raise BadInput(
                "zero", f"{self.clip}, {self.scale}, {self.timeout}", "clip, scale >= 0 and a timeout"
            )
        if self.engine not in ENGINES:
            raise BadInput("engine", self.engine, " or ".join(ENGINES))
        if self.engine == "fsdp2" and (self.stage < 2 or self.scale):
            raise BadInput(
                "engine", "fsdp2", "stage 2 or 3 without a loss scale: it spreads gradients at least"
            )

    def open(self, artefact: Run, budget: Spend = None, *, group: Any = None) -> Trainee:
        """Under way, on all workers of the group (None: all that there are) at the same time."""
        asked = Budget.parse(budget)
        limit = None if asked is None else asked.limit(self.whole(artefact))
        if not torch.distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput(
                "workers", "no process group", "torch.distributed.init_process_group(...) first, as for DDP"
            )
        if self.engine == "fsdp2":
            from holdall.training.zero_fsdp import Fsdp

            return Fsdp(self, artefact, limit, group)
        from holdall.training.zero_session import Sharded

        return Sharded(self, artefact, limit, group)

    def whole(self, artefact: Run) -> int:
        """Bytes of parameters, gradients and states of plain training; its activations are known to no one yet."""
        from holdall.training.zero_optimizer import Inner

        trained = {p for g in artefact.optimizer.param_groups for p in g["params"]}
        each = Inner(artefact.optimizer).each
        states = sum(p.numel() * (each + (4 if p.element_size() < 4 else 0)) for p in trained)
        return int(
            sum(p.nbytes for p in artefact.model.parameters()) + sum(p.nbytes for p in trained) + states
        )

    @classmethod
    def rehearsal(cls) -> tuple[Run, Sequence[Any]]:
        torch.manual_seed(0)
        layers = [torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Tanh()) for _ in range(4)]
        model = torch.nn.Sequential(torch.nn.Embedding(96, 512), *layers, torch.nn.Linear(512, 96))
        text = torch.frombuffer(bytearray((cls.__doc__ or "").encode()), dtype=torch.uint8).long() % 96
        batches = [(text[a : a + 96].view(4, 24), text[a + 1 : a + 97].view(4, 24)) for a in (0, 96, 192)]
        return Run(model, torch.optim.AdamW(model.parameters(), lr=1e-3)), batches
