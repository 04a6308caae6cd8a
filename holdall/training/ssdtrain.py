"""SSDTrain: what a step keeps for backward goes to disk while the step computes, and is back before it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.training.base import Run, Trainee, TrainingRuntime

if TYPE_CHECKING:
    import torch

    from holdall.training.ssdtrain_cache import TensorCache
else:
    torch = lazy("torch", extra="training")

CHOICES = ("adaptive", "all")


@dataclass(frozen=True, kw_only=True)
class SSDTrain(TrainingRuntime):
    """Trains with longer texts or larger batches than memory has room for: activations wait on disk.

    Gradients are the same, bit for bit. In a loop of one's own, use `offloaded(module)` around forward and backward.
    Without a budget as much goes to disk as it can take and give back while the step computes; with one, as little as
    the budget asks for, however slow the disk is. Worth it where activations are most of the memory; parameters and
    states of the optimizer stay where they are. Poor where saved tensors are small, or the disk is slow beside the
    processor. Tensors of a GPU are left alone.

    Shapes:
        saved tensors of any shape, by the memory that they look at: bytes [low, high) of a storage.
    Cost:
        Disk: what is saved, each memory once, written and read once a step. Memory: `window`, what is small, what the
        running operator takes. CPU: a copy of what is written (its memory does not begin at a page) in other threads.
    Knobs:
        small, below which a tensor stays (paper about 1 MB); window, bytes that wait to be written or were read
        ahead; ahead, how many modules' tensors are read ahead in backward (paper 1); choose, `adaptive` (from a
        profile of the first passes with such inputs) or `all`; endurance, bytes that the disk can take, for the
        figure of its life.
    Differs from the paper:
        Through host memory and O_DIRECT instead of GPUDirect Storage. What is written is a memory, not a tensor: all
        views of it find themselves there, whatever their shapes. A scope is what a module saves between two calls of
        others, so that order is the order of saving. Writes that have not begun when backward begins are called off.
        What is changed in place after it was saved raises unless it was on disk already. Places are spans of one file
        without a name, which a killed process leaves to the kernel.
    Example:
        >>> import torch
        >>> from holdall.training import offloaded
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        >>> with offloaded(model, small=1024) as cache:
        ...     model(torch.ones(64, 64)).sum().backward()
        ...     told = cache.traffic()
        >>> bool(model[0].weight.grad.any()), told["saved_bytes"], told["unique_bytes"]
        (True, 32768, 16384)

    Paper: Wu, Park, Zhang, Hidayetoglu, Mailthody, Huang, Lumetta, Hwu, SSDTrain: An Activation Offloading Framework.
    Test: tests/training/test_ssdtrain.py
    """

    name: ClassVar[str] = "ssdtrain"
    paper: ClassVar[Paper] = Paper(
        21,
        "SSDTrain: An Activation Offloading Framework to SSDs for Faster Large Language Model Training",
        "Wu, Park, Zhang, Hidayetoglu, Mailthody, Huang, Lumetta, Hwu (DAC 2025)",
        "https://arxiv.org/abs/2408.10013",
    )
    doors: ClassVar[tuple[str, ...]] = (
        "holdall.parts.paging.Arena.write",
        "holdall.parts.paging.Arena.read",
    )
    skips: ClassVar[dict[str, str]] = {
        "check_the_same_run_counts_the_same": "by default what goes to disk follows the speed of the moment; the test "
        "of this method compares two runs with choose='all'",
        "check_closing_gives_the_memory_back": "between steps nothing is held that a check could see leave; the test "
        "of this method looks for what stays after it was closed",
    }

    small: int = knob(
        1 << 20,
        "below which a saved tensor stays",
        unit="bytes",
        other=1 << 30,
        at={"choose": "all"},
        changes="traffic",
    )
    window: int = knob(
        64 << 20,
        "that wait to be written or were read ahead",
        unit="bytes",
        other=4 << 20,
        at={"choose": "all"},
        changes="nothing",
    )
    ahead: int = knob(
        4,
        "whose tensors are read ahead",
        unit="modules",
        paper=1,
        other=0,
        at={"choose": "all"},
        changes="nothing",
    )
    choose: str = knob("adaptive", "adaptive, or all", other="all", at={"budget": 1 << 30}, changes="traffic")
    endurance: float = knob(
        600e12,
        "that the disk can take",
        unit="bytes",
        other=1e15,
        at={"choose": "all"},
        changes="traffic",
    )

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise BadInput("choose", self.choose, " or ".join(CHOICES))
        if self.small < 0 or self.window < 1 or self.ahead < 0 or not self.endurance > 0:
            got = f"{self.small}, {self.window}, {self.ahead}, {self.endurance}"
            raise BadInput("ssdtrain", got, "small and ahead >= 0, window and endurance > 0")

    def open(
        self, artefact: Run, budget: Spend = None, *, folder: str | None = None, rate: float | None = None
    ) -> Trainee:
        """Under way. folder: on the disk to use; None: the system's folder for temporary files. rate: bytes a second
        of disk at most, for trials."""
        from holdall.training.ssdtrain_session import Offloaded, fixed

        asked = Budget.parse(budget)
        limit = None if asked is None else asked.limit(self.whole(artefact))
        least = self.whole(artefact)
        if limit is not None and limit < least:
            raise BudgetError(limit, least, who=self.full_name(), why="no activations beside a window yet")
        room = None if limit is None else limit - fixed(artefact)
        return Offloaded(self, artefact, self.cache(artefact.model, room, folder=folder, rate=rate))

    def cache(
        self, module: Any, limit: int | None, *, folder: str | None = None, rate: float | None = None
    ) -> TensorCache:
        """What `offloaded` gives. limit: bytes by which resident memory may rise in forward and backward."""
        from holdall.parts.paging import Arena
        from holdall.training.ssdtrain_cache import TensorCache

        arena = Arena(folder, threads=2, rate=rate)
        try:
            return TensorCache(self, module, arena, limit)
        except BaseException:
            arena.close()
            raise

    def whole(self, artefact: Run) -> int:
        """Bytes of parameters, gradients and states, and one window for activations, of which nothing is known yet."""
        from holdall.training.ssdtrain_session import fixed

        return fixed(artefact) + sum(p.nbytes for p in artefact.model.parameters()) + self.window

    @classmethod
    def rehearsal(cls) -> tuple[Run, Sequence[Any]]:
        torch.manual_seed(0)
        layers = [torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Tanh()) for _ in range(4)]
        model = torch.nn.Sequential(torch.nn.Embedding(96, 128), *layers, torch.nn.Linear(128, 96))
        text = torch.frombuffer(bytearray((cls.__doc__ or "").encode()), dtype=torch.uint8).long() % 96
        batches = [(text[a : a + 2300].view(4, 575), text[a + 1 : a + 2301].view(4, 575)) for a in (0, 9, 20)]
        return Run(model, torch.optim.AdamW(model.parameters(), lr=1e-3)), batches


def offloaded(
    module: Any,
    budget: Spend = None,
    *,
    folder: str | None = None,
    rate: float | None = None,
    **knobs: Any,
) -> TensorCache:
    """Around forward and backward in a loop of one's own, of one step or (better: it learns) of all of them.

        with offloaded(model, budget="800MB"):
            for batch in loader:
                model(**batch).loss.backward()
                ...

    budget: bytes by which resident memory may rise in forward and backward, gradients included. knobs: SSDTrain's.
    """
    asked = Budget.parse(budget)
    if asked is not None and asked.bytes is None:
        raise BadInput("budget", str(budget), "bytes: what the step would take is not known yet")
    limit = None if asked is None else asked.bytes
    return SSDTrain(**knobs).cache(module, limit, folder=folder, rate=rate)
