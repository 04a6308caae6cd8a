"""ByteCheckpoint: checkpoints of many ranks that any other number of ranks, split in any other way, can load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.checkpoints.base import CheckpointStore
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob

if TYPE_CHECKING:
    from holdall.checkpoints.bytecheckpoint_keeper import Kept
    from holdall.checkpoints.bytecheckpoint_ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class ByteCheckpoint(CheckpointStore):
    """Saves training under one parallel layout and loads it under any other, on more ranks or fewer.

    Every rank writes boxes of tensors into a file for each kind of state, and one small file says where each box is.
    Nothing in it depends on how the run was split. What several ranks hold is written by one of them, so that all
    write about as much; training waits for a copy into memory only. At a load each byte is read by one rank, which
    sends it to the others that want it. Where one process trains alone, `checkpoints.datastates` holds it up less.

    Shapes:
        A state as torch has it: dicts and lists of tensors, numbers and text. Shards are DTensors (FSDP2, tensor
        parallelism) or `Piece`s (ranges of flattened tensors). Keys that begin with "optim" go to the file of the
        optimizer; "loader", "extra" and "rng" are each rank's own.
    Cost:
        One copy of what a rank writes, in memory and in time, at a save (or the memory that `open` was given, and then
        the time to write the rest); a plan for each new layout. Loading: one read of every byte, whatever the number
        of ranks.
    Knobs:
        part: bytes of a box at most, which is what is checksummed, read and sent in one piece; split: bytes of a file
        at most; keep: checkpoints that stay (0: all); plans: layouts whose plans are remembered; threads: reads at a
        time; once: each byte is read by one rank; waste: bytes between two reads that are rather read, too; missing:
        strict, partial or model, what to do with names that only one of state and checkpoint has; machine, fanout:
        ranks of a machine, and machines that one other listens to; patience: seconds to wait for a rank.
    Differs from the paper:
        The copy goes into a ring in ordinary memory. Files are written where they belong under a name that nothing
        refers to; remote ones go by way of a local temporary, in a thread of this process. Boxes are cut to `part`
        bytes, each with a checksum. Replicas are cut, too, so that one large tensor does not spoil the balance. Rank 0
        deals out reads as well as writes.
    Example:
        >>> import tempfile, torch
        >>> from holdall.checkpoints import ByteCheckpoint
        >>> state = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "step": 7}
        >>> with tempfile.TemporaryDirectory() as folder, ByteCheckpoint().open(folder) as kept:
        ...     receipt = kept.save(7, state)
        ...     state["model"]["w"].zero_()  # what is saved is as it was
        ...     written, again = receipt.wait(), kept.load()
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
        >>> again["model"]["w"].tolist(), again["step"], kept.recipe.keep
        ([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], 7, 0)

    Paper: Wan et al., ByteCheckpoint: A Unified Checkpointing System for Large Foundation Model Development.
    Test: tests/checkpoints/test_bytecheckpoint.py
    """

    name: ClassVar[str] = "bytecheckpoint"
    paper: ClassVar[Paper] = Paper(
        20,
        "ByteCheckpoint: A Unified Checkpointing System for Large Foundation Model Development",
        "Wan et al., NSDI (2025)",
        "https://arxiv.org/abs/2407.20143",
    )

    part: int = knob(8 << 20, "bytes of a box, at most", unit="bytes", other=1 << 12, changes="traffic")
    split: int = knob(4 << 30, "bytes of a file, at most", unit="bytes", other=1 << 16, changes="traffic")
    keep: int = knob(0, "newest checkpoints that stay; 0: all", other=1)
    plans: int = knob(4, "layouts whose plans are remembered", other=0, changes="traffic")
    threads: int = knob(4, "reads at a time", other=1, changes="nothing")
    once: bool = knob(True, "each byte is read by one rank", other=False, changes="nothing")
    waste: int = knob(
        1 << 16, "bytes between reads that are read, too", unit="bytes", other=0, changes="nothing"
    )
    missing: str = knob("strict", "names that only one side has: strict, partial or model", other="partial")
    machine: int = knob(8, "ranks of a machine, which its first one speaks for", other=2, changes="nothing")
    fanout: int = knob(8, "machines that one other listens to", other=2, changes="nothing")
    patience: float = knob(600.0, "that a rank is waited for", unit="s", other=60.0, changes="nothing")

    def __post_init__(self) -> None:
        from holdall.checkpoints.bytecheckpoint_match import POLICIES

        sizes = min(self.part, self.split, self.threads, self.machine, self.fanout) >= 1
        if not sizes or min(self.keep, self.plans, self.waste) < 0 or self.patience <= 0:
            raise BadInput(
                "bytecheckpoint", str(self.to_dict()), "sizes and numbers of 1 at least, others of 0"
            )
        if self.missing not in POLICIES:
            raise BadInput("missing", self.missing, f"one of {', '.join(POLICIES)}")

    def open(self, url: str, memory: Spend = None, ranks: Ranks | None = None) -> Kept:
        """As every store; all ranks of torch.distributed open it together. ranks: others than these."""
        from holdall.checkpoints.bytecheckpoint_keeper import Kept
        from holdall.checkpoints.bytecheckpoint_ranks import here

        return Kept(self, url, memory, ranks or here(self.patience, self.machine, self.fanout))
