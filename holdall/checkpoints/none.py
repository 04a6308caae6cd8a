"""Floor: torch.save, while training waits."""

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
class TorchSave(CheckpointStore):
    """Writes a state with torch.save while training waits, into a file that appears whole or not at all.

    What the others are compared with. Needs no memory to speak of, and holds training up for as long as the disk takes.
    A plain torch.save over the last good file loses both the old state and the new one where it is killed; this does
    not. Loading takes memory for a second state.

    Shapes: any state that torch.load reads with weights_only; file: state.pt in the folder of the step.
    Cost: one write of the state for each save, in the step that it is asked for; one read and a checksum at a load.
    Knobs:
        keep: checkpoints that stay (0: all).
    Differs from the paper: no paper; this is a floor.
    Example:
        >>> import tempfile, torch
        >>> from holdall.checkpoints import TorchSave
        >>> with tempfile.TemporaryDirectory() as folder, TorchSave(keep=1).open(folder) as kept:
        ...     for step in (1, 2):
        ...         receipt = kept.save(step, {"w": torch.full((3,), float(step))})
        ...     kept.steps(), kept.load()["w"].tolist()
        ([2], [2.0, 2.0, 2.0])

    Paper: 000, no paper
    Test: tests/checkpoints/test_store_faults.py
    """

    name: ClassVar[str] = "none"
    paper: ClassVar[Paper] = Paper(0, "torch.save", "no paper")

    keep: int = knob(0, "newest checkpoints that stay; 0: all", other=1)

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise BadInput("keep", self.keep, "0 or more")

    def open(self, url: str, memory: Spend = None) -> Whole:
        from holdall.checkpoints.whole import Whole

        return Whole(self, url, memory, background=False)
