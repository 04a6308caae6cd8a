"""Floor: a copy of the state in fresh memory, which a thread writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.checkpoints.base import CheckpointStore
from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob

if TYPE_CHECKING:
    from holdall.checkpoints.whole import Whole


@dataclass(frozen=True, kw_only=True)
class DeepCopy(CheckpointStore):
    """Copies a state into fresh memory while training waits, and writes the copy with torch.save in a thread.

    The asynchronous checkpoint that everybody writes first. Each save allocates a whole state anew, whose pages the
    kernel has to clear before they are copied to; the next save waits for the one before. `checkpoints.datastates`
    copies while the state cannot change anyway, into memory that is there already.

    Shapes: any state that torch.load reads with weights_only; file: state.pt in the folder of the step.
    Cost: memory for one more state, and the time of one copy into fresh memory, for each save.
    Knobs:
        keep: checkpoints that stay (0: all).
    Differs from the paper: no paper; this is a floor.
    Example:
        >>> import tempfile, torch
        >>> from holdall.checkpoints import DeepCopy
        >>> state = {"w": torch.ones(3), "step": 5}
        >>> with tempfile.TemporaryDirectory() as folder, DeepCopy().open(folder) as kept:
        ...     receipt = kept.save(5, state)
        ...     state["w"] *= 0  # the copy is as it was
        ...     written, again = receipt.wait(), kept.load()
        >>> again["w"].tolist(), again["step"]
        ([1.0, 1.0, 1.0], 5)

    Paper: 000, no paper
    Test: tests/checkpoints/test_store_faults.py
    """

    name: ClassVar[str] = "copying"
    paper: ClassVar[Paper] = Paper(0, "A deep copy and a thread", "no paper")

    keep: int = knob(0, "newest checkpoints that stay; 0: all", other=1)

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise BadInput("keep", self.keep, "0 or more")

    def open(self, url: str, memory: Spend = None) -> Whole:
        from holdall.checkpoints.whole import Whole

        return Whole(self, url, memory, background=True)
