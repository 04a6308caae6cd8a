"""DataStates-LLM: checkpoints that are copied while they cannot change, and written while training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.checkpoints.base import CheckpointStore
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob

if TYPE_CHECKING:
    from holdall.checkpoints.bytecheckpoint_ranks import Ranks
    from holdall.checkpoints.datastates_keeper import Kept

HOWS = ("ring", "fork", "auto")


@dataclass(frozen=True, kw_only=True)
class DataStates(CheckpointStore):
    """Saves a run as often as you like, and hardly holds it up: in a fixed window of memory, safe against any kill.

    Parameters and the optimizer's states stay as they are from one `optimizer.step()` to the next. So `save` only
    notes what there is; a thread copies it into a ring of memory during the next forward and backward, and another
    writes it to disk as it comes. `ready()` waits, before the step, for copies that are not done: never forget it,
    or let `attach(optimizer)` call it. Poor where a step is shorter than it takes to write what the ring does not
    hold, since then every checkpoint waits for the disk; save less often, or give it more memory.

    Shapes:
        A state as torch has it: dicts, lists and tuples of tensors and arrays of any type and stride, numbers, text,
        None. Tensors that share memory are written once. Of a DTensor each rank writes its own shard.
    Cost:
        The memory that `open` was given (64 MB), and one copy of the state per save in threads of their own. A save
        holds the caller for max(0, time to copy - time to the next step); `datastates_cost.predict` tells how long
        that is, and how often to save. Loading reads every byte once, into place.
    Knobs:
        how: ring; fork, where a child process writes its copy-on-write image (CPU only; memory for what training
        changes meanwhile, and where that is more than was given `ready` waits for the child); or auto, fork where it
        is safe and a copy of the state fits into the memory, else ring; chunk: bytes that are copied and written in
        one piece; keep: newest checkpoints that stay (0: all); early: names of what may change before the step, which
        `save` copies at once where no optimizer is attached; tier: a folder on a faster disk, where checkpoints go
        first ("temporary": one that is gone afterwards, as there is for every URL that is not a disk); rate: bytes a
        second that are written at most (0: no limit); direct: past the page cache; threads: reads at a time; patience:
        seconds to wait for a rank.
    Differs from the paper:
        Tensors are cut to chunks and packed together, so that the pipeline's grain is the chunk: a tensor larger than
        the ring needs no special case. What is no tensor is JSON in the file's header, not a pickle. Checksums of all
        tensors, a fork as another way, and `attach` are additions. On a GPU the ring is pinned and copies have a
        stream of their own; this was not run, for want of one.
    Example:
        >>> import tempfile, torch
        >>> from holdall.checkpoints import DataStates
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as folder, DataStates().open(folder, "4MB") as kept:
        ...     kept.attach(optimizer)
        ...     for step in range(4):
        ...         model(torch.ones(1, 3)).sum().backward()
        ...         optimizer.step()
        ...         state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        ...         receipt = kept.save(step, state)
        ...     written, steps, again = receipt.wait(), kept.steps(), kept.load()
        AdamW...
        >>> steps, again["step"], torch.equal(again["model"]["weight"], model.weight), written % 4096
        ([2, 3], 3, True, 0)

    Paper: Maurya et al., DataStates-LLM: Lazy Asynchronous Checkpointing for Large Language Models.
    Test: tests/checkpoints/test_datastates.py
    """

    name: ClassVar[str] = "datastates"
    paper: ClassVar[Paper] = Paper(
        30,
        "DataStates-LLM: Lazy Asynchronous Checkpointing for Large Language Models",
        "Maurya, Underwood, Rafique, Cappello, Nicolae, HPDC (2024)",
        "https://arxiv.org/abs/2406.10707",
    )

    how: str = knob("ring", "ring, fork or auto", other="fork", changes="traffic")
    chunk: int = knob(
        4 << 20, "bytes copied and written at once", unit="bytes", other=1 << 14, changes="traffic"
    )
    keep: int = knob(2, "newest checkpoints that stay; 0: all", other=1)
    early: str = knob(
        "*running_*,*num_batches_tracked,*ema*",
        "names that may change before the step, with commas",
        other="*",
        changes="traffic",
    )
    tier: str = knob(
        "", "a folder on a faster disk to go to first, or: temporary", other="temporary", changes="traffic"
    )
    rate: float = knob(
        0.0, "written a second at most; 0: no limit", unit="bytes", other=5e7, changes="traffic"
    )
    direct: bool = knob(True, "past the page cache", other=False, changes="nothing")
    threads: int = knob(2, "reads at a time", other=1, changes="nothing")
    patience: float = knob(600.0, "that a rank is waited for", unit="s", other=60.0, changes="nothing")

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise BadInput("how", self.how, f"one of {', '.join(HOWS)}")
        if min(self.chunk, self.threads) < 1 or min(self.keep, self.rate) < 0 or self.patience <= 0:
            raise BadInput(
                "datastates", str(self.to_dict()), "chunk, threads >= 1; keep, rate >= 0; patience > 0"
            )

    @property
    def patterns(self) -> list[str]:
        return [p.strip().lower() for p in self.early.split(",") if p.strip()]

    def open(self, url: str, memory: Spend = None, ranks: Ranks | None = None) -> Kept:
        """As every store; all ranks of torch.distributed open it together. ranks: others than these."""
        from holdall.checkpoints.bytecheckpoint_ranks import here
        from holdall.checkpoints.datastates_keeper import Kept

        return Kept(self, url, memory, ranks or here(self.patience))
