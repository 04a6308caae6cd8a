"""EfficientQAT: two to four bits a weight, learned block by block, then steps learned end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.base import WeightCodec
from holdall.weights.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdall.weights.packed_linear import Held

_QUICK = {"windows": 4, "window": 64, "steps": 4}  # where knobs are shown to matter


@dataclass(frozen=True, kw_only=True)
class EfficientQAT(WeightCodec):
    """Trains a model at two to four bits a weight: block by block, then its step sizes end to end.

    Each block's weights, steps and zero points learn to give what the float block gives, from inputs that the packed
    blocks before it made; then the whole model learns its steps from text. Costs minutes to hours instead of seconds;
    worth it below about four bits. A budget chooses the width of each matrix and how fine tables are. Killed, it
    goes on where it was: finished blocks wait in `<output>.unfinished`. A lone matrix (no config) is only rounded.

    Shapes:
        W [O, I]; codes [O, I] of 2 to 8 bits; s, z [O, ceil(I / group)]; hidden states [windows, window, H] on disk.
    Cost:
        bits + (about 12 + bits) / group bits a weight, less what entropy coding saves; tables from about one bit a
        number on. Beside the model: a block's weights six times over, then a byte or less a weight end to end. One
        forward pass, `epochs` trainings of each block, `steps` * `batch` windows through the whole model.
    Knobs:
        bits of linears (None: a budget's choice by measured sensitivity, else the paper's 2); group (64, 128 in the
        paper); table_bits of embeddings and heads (16 in the paper, which leaves them); start; learned; windows x
        window tokens, epochs, batch; grid_rate and weight_rate in a block; steps, step_rate, clip, distill end to end;
        seed. Rates are shares of a matrix's mean step (the paper's 1e-4 and 2e-5 are about .005 and .001 of Llama's).
    Differs from the paper:
        Starts from grids shrunk to what rounds best and from weights that take up each other's rounding errors
        (`start="minmax"` is the paper): with little text that is worth more than training. Rates follow the step size.
        Grids always reach 0, so that a zero point fits. Steps stay above a 16th of their start. Tables are rounded
        (to one step a row, entropy coded), and their steps learn end to end too. Widths may differ between matrices.
        Matrix products are bfloat16 where the processor is fast at it. No early stop on validation windows.
    Example:
        >>> import torch
        >>> from holdall.weights import EfficientQAT, Model
        >>> w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
        >>> packed = EfficientQAT(bits=3).encode(Model({"w": w}))
        >>> back = EfficientQAT().decode(packed).state["w"]
        >>> float((back - w).norm() / w.norm()) < 0.25
        True

    Paper: Chen et al., EfficientQAT: Efficient Quantization-Aware Training for Large Language Models.
    Test: tests/weights/test_efficientqat.py
    """

    name: ClassVar[str] = "efficientqat"
    brief: ClassVar[Mapping[str, Any]] = _QUICK
    trains: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        93,
        "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
        "Chen, Shao, Xu, Wang, Gao, Zhang, Luo (ACL 2025)",
        "https://arxiv.org/abs/2407.11062",
    )

    bits: int | None = knob(
        None, "bits of linears; None is what a budget allows, 2 without one", unit="bit", other=4, at=_QUICK
    )
    group: int = knob(
        64, "columns that share a step and a zero point; 0 is whole rows", unit="columns", other=16, at=_QUICK
    )
    table_bits: float | None = knob(
        None, "bits a number of embeddings and heads, 16: as they are; None is what a budget leaves, 5 without one",
        unit="bit", paper=16.0, other=3.0, at=_QUICK,
    )  # fmt: skip
    start: str = knob("feedback", "minmax, search or feedback", paper="minmax", other="minmax", at=_QUICK)
    learned: str = knob("all", "of a block: all, grids (s, z) or nothing", other="grids", at=_QUICK)
    windows: int = knob(64, "calibration windows", paper=4096, other=8, at={"window": 64, "steps": 4})
    window: int = knob(
        256, "tokens a window", unit="tokens", paper=2048, other=128, at={"windows": 4, "steps": 4}
    )
    epochs: int = knob(2, "times that each block sees the windows", other=1, at=_QUICK)
    batch: int = knob(2, "windows a step", other=4, at=_QUICK)
    grid_rate: float = knob(1e-3, "learning rate of z, and of s in mean steps", other=1e-2, at=_QUICK)
    weight_rate: float = knob(5e-3, "learning rate of W, in mean steps", other=2e-2, at=_QUICK)
    steps: int = knob(60, "steps of training end to end", paper=128, other=0, at=_QUICK)
    step_rate: float = knob(1e-3, "learning rate of s end to end, in mean steps", other=1e-2, at=_QUICK)
    clip: float = knob(0.3, "most that the gradient's norm may be end to end", other=1e-4, at=_QUICK)
    distill: float = knob(
        0.0, "share of the end-to-end loss that is the float model's word, 0 to 1", other=1.0, at=_QUICK
    )
    seed: int = knob(0, "of the order of windows", other=1, at=_QUICK)

    def __post_init__(self) -> None:
        words = (("start", "minmax search feedback"), ("learned", "all grids nothing"))
        for field, wanted in ((field, told.split()) for field, told in words):
            if getattr(self, field) not in wanted:
                raise BadInput(field, getattr(self, field), " or ".join(wanted))
        if self.bits not in (None, 2, 3, 4, 5, 6, 8) or self.group < 0:
            raise BadInput(
                "bits and group", f"{self.bits}, {self.group}", "2, 3, 4, 5, 6 or 8, and at least 0"
            )
        if min(self.windows, self.epochs, self.batch) < 1 or self.window < 2 or self.steps < 0:
            raise BadInput(
                "efficientqat", str(self.to_dict()), "windows, epochs, batch >= 1, window >= 2, steps >= 0"
            )
        if (self.table_bits is not None and not 1 <= self.table_bits <= 16) or not 0 <= self.distill <= 1:
            raise BadInput("table_bits, distill", f"{self.table_bits}, {self.distill}", "1 to 16, and 0 to 1")

    def group_of(self, columns: int) -> int:
        return min(self.group or columns, columns)

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        from holdall.weights.qat_run import Run

        limit = self.allowed(x, budget)
        for name, tensor in x.state.items():
            if tensor.is_floating_point():
                coded_file.finite(name, tensor)
        return Run(self, x, to, limit).packed().kept(to)

    def decode(self, packed: Packed) -> Model:
        return coded_file.decode(packed)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        return coded_file.held(packed, memory)
