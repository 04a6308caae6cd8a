"""Fuyou: states of the optimizer on disk, and the optimizer at work while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.training.base import Run, Trainee, TrainingRuntime

torch = lazy("torch", extra="training")


@dataclass(frozen=True, kw_only=True)
class Fuyou(TrainingRuntime):
    """Trains with AdamW whose states are on disk, bit for bit as in memory; the optimizer works during backward.

    fp32 parameters and both moments of each block lie in a file. As soon as a block's gradients are there a thread
    reads, updates and writes its states, piece by piece, while the backward pass goes on. Under a tighter budget the
    parameters of blocks leave memory too and are read before they are needed, and of activations what saves the most
    work a byte is kept, in memory, then on disk; the rest is worked out again. Every piece has two places in the file,
    so that a step counts whole or not at all: a fault takes it back, and with a `folder` a killed process goes on with
    the last step that counted. Poor where the disk is much slower than the backward pass (24 bytes a parameter go by in
    each step), for models whose largest parameter is most of them, and for tensors that are shared between blocks.

    Shapes:
        p, m, v fp32 [n] of each piece; of a piece three sections in whole blocks of the file, in two places.
    Cost:
        On disk 24 bytes a parameter. A step reads 12 and writes 12 of each, reads parameters that left memory twice
        more (4 bytes each), and works out again what is not kept (up to a third more time in the forward pass).
        Memory: three pieces, the gradients of two blocks, and what is outside of blocks.
    Knobs:
        overlap: update during backward (paper), or after it; piece: parameters that are updated at a time, less under
        a small budget; ahead: blocks whose parameters are read early; swap: the share of inner activations that is
        kept, None: as planned (paper); accumulate: backward passes of a step; clip: the largest norm of all gradients,
        0: none; norm: "exact" holds gradients until all are known, on disk where memory is short, and then updates,
        "delayed" clips by the norm of the step before; scale: of the loss, for fp16, halved where a gradient is not
        finite and that step taken back; 0: none.
    Differs from the paper:
        The device is the CPU, so that its memory and the host's are one and nothing moves between them; parameters of
        blocks are read as fp32 and have no half-precision copy on disk. The update is awaited at the end of a step:
        only then is it known to count. Two places for every piece (crash safety) are ours, and so are exact clipping
        and the choice of blocks whose parameters stay. FLOPs of a block are counted, its time is that of one pass.
    Example:
        >>> import torch
        >>> from holdall.training import Fuyou, Run
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        >>> x = torch.randn(16, 8)
        >>> with Fuyou().open(Run(model, torch.optim.AdamW(model.parameters(), lr=0.01))) as trainee:
        ...     losses = [trainee.step((x, x.flip(1))) for _ in range(20)]
        >>> losses[-1] < 0.9 * losses[0]
        True

    Paper: Liao et al., Fuyou (2024); LoHan, ICDE 2025.
    Test: tests/training/test_fuyou.py
    """

    name: ClassVar[str] = "fuyou"
    paper: ClassVar[Paper] = Paper(
        74,
        "Adding NVMe SSDs to Enable and Accelerate 100B Model Fine-tuning on a Single GPU",
        "Liao et al., 2024 (LoHan: ICDE 2025)",
        "https://arxiv.org/abs/2403.06504",
    )
    doors: ClassVar[tuple[str, ...]] = (
        "holdall.parts.paging.Arena._fetch",
        "holdall.parts.paging.Arena._store",
    )

    overlap: bool = knob(True, "update during the backward pass", other=False, changes="traffic")
    piece: int = knob(2 << 20, "parameters that are updated at a time", other=1 << 16, changes="traffic")
    ahead: int = knob(
        1, "blocks whose parameters are read early", other=0, at={"budget": "75%"}, changes="traffic"
    )
    swap: float | None = knob(
        None, "share of inner activations that is kept; None: as planned", other=0.0, changes="traffic"
    )
    accumulate: int = knob(1, "backward passes of a step", other=2)
    clip: float = knob(0.0, "largest norm of all gradients; 0: none", other=1e-3)
    norm: str = knob("exact", "exact or delayed, for clipping", other="delayed", at={"clip": 1e-3})
    scale: float = knob(0.0, "of the loss, halved where gradients overflow; 0: none", other=3e38)

    def __post_init__(self) -> None:
        if self.norm not in ("exact", "delayed"):
            raise BadInput("norm", self.norm, '"exact" or "delayed"')
        for name, least in (("piece", 1), ("ahead", 0), ("accumulate", 1), ("clip", 0), ("scale", 0)):
            if getattr(self, name) < least:
                raise BadInput(name, getattr(self, name), f"at least {least}")
        if self.swap is not None and not 0 <= self.swap <= 1:
            raise BadInput("swap", self.swap, "a share from 0 to 1, or None")

    def open(
        self, artefact: Run, budget: Spend = None, *, folder: str | None = None, rate: float | None = None
    ) -> Trainee:
        """Under way. folder: states are kept in its file `fuyou.states`, and a run of the same model goes on from
        what is there; None: in a temporary file without a name. rate: bytes a second of disk at most, for trials."""
        from holdall.parts.paging import Arena
        from holdall.training.fuyou_memory import shared_out, whole
        from holdall.training.fuyou_session import Fuyoued

        asked = Budget.parse(budget)
        size = whole(artefact.model)
        limit = (
            None if asked is None else asked.limit(size, sum(p.numel() for p in artefact.model.parameters()))
        )
        memory = shared_out(self, artefact, limit)
        arena = Arena(folder, threads=2, name="fuyou.states" if folder else None, rate=rate)
        try:
            return Fuyoued(self, artefact, memory, arena, folder is not None)
        except BaseException:
            arena.close()
            raise

    def whole(self, artefact: Run) -> int:
        from holdall.training.fuyou_memory import whole

        return whole(artefact.model)

    @classmethod
    def rehearsal(cls) -> tuple[Run, Sequence[Any]]:
        torch.manual_seed(0)
        sizes = [(256, 256)] * 6 + [(256, 2048), (2048, 256)]  # pieces of the last ones outweigh all states
        layers = [torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.GELU()) for a, b in sizes]
        model = torch.nn.Sequential(*layers)
        batches = [(torch.randn(16, 256), torch.randn(16, 256)) for _ in range(4)]
        run = Run(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
        for p in (
            model.parameters()
        ):  # states as after a step, so that what a session leaves behind is there before
            p.grad = torch.full_like(p, 1e-3)
        run.optimizer.step()
        run.optimizer.zero_grad()
        return run, batches
