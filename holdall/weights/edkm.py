"""eDKM: weights of two to four bits as palettes that are learned by differentiable k-means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.base import WeightCodec
from holdall.weights.coded import WIDTHS
from holdall.weights.model import Model

if TYPE_CHECKING:
    from holdall.weights.packed_linear import Held

_LEARNS = {"learn": "always", "windows": 4, "window": 32, "steps": 2}  # where knobs of training matter


@dataclass(frozen=True, kw_only=True)
class EDKM(WeightCodec):
    """Fine-tunes a model so that each matrix uses only 4 to 16 different numbers, found by differentiable k-means.

    With calibration text all matrices learn from it, each weight a soft choice between a few centroids, which are means
    of the weights that choose them; at the end it is the nearest one. Without text it is post-training k-means alone,
    and poor below 5 bits. Costs minutes of training; worth it at 2 to 4 bits. A budget chooses the width of each
    matrix, by what its error costs. `holdall.weights.palettize_` does the same in a training loop of your own.

    Shapes:
        W [O, I] as codes of `bits` and a table of 2**bits half-precision numbers; a scale for each row.
    Cost:
        bits + 16 / I bits a weight, less what entropy coding saves. Training: 4 bytes a weight four times over
        (weights, gradients, AdamW's two moments) beside the model, 2 more for the clusters' way back; one forward and
        backward pass a step.
    Knobs:
        bits of linears and table_bits of embeddings and heads (None: 3 and 8, the paper's, or what a budget allows);
        rows that share a table; group of columns that share a scale (0: whole rows; None: none, the paper); start exact
        or plusplus; weighted centroids; rounds of a step's k-means; attention soft (paper) or hard; tau of the first
        step and cooled of the last, in squared gaps between centroids; windows x window tokens, batch, steps, rate,
        distill, clip; learn from given text only, or always; seed.
    Differs from the paper:
        Rows have a scale (.03 bits). With text, k-means is weighted by what an error in each row and column costs,
        which is worth more than the first steps of training. Maps are computed for the different values of a weight
        alone: equal to the paper's to rounding and much cheaper, so that its memory mechanisms (`saved_tensors`:
        marshaling, uniquification, sharding) are for whoever asks for the paper's maps. tau starts at a tenth of the
        squared gap and cools. The float model says what to learn (`distill`): from the text alone a model learns that
        text and loses others. The stop at 1e-4 is relative to the inertia. The rate is a share of the gap. What is
        saved is not moved to another device. Models without a next-token loss are not trained, only weighted.
    Example:
        >>> import torch
        >>> from holdall.weights import EDKM, Model
        >>> w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
        >>> back = EDKM(bits=3).decode(EDKM(bits=3).encode(Model({"w": w}))).state["w"]
        >>> float((back - w).norm() / w.norm()) < 0.2
        True

    Paper: Cho et al., eDKM: An Efficient and Accurate Train-time Weight Clustering for Large Language Models.
    Test: tests/weights/test_edkm.py
    """

    name: ClassVar[str] = "edkm"
    trains: ClassVar[bool] = True
    brief: ClassVar[Mapping[str, Any]] = {"table_bits": 4}
    paper: ClassVar[Paper] = Paper(
        73,
        "eDKM: An Efficient and Accurate Train-time Weight Clustering for Large Language Models",
        "Cho, Vahid, Fu, Adya, Del Mundo, Rastegari, Naik, Zatloukal (Apple, IEEE CAL 2024)",
        "https://arxiv.org/abs/2309.00964",
    )

    bits: int | None = knob(
        None, "bits of linears; None is what a budget allows, 3 without one", unit="bit", paper=3, other=2
    )
    table_bits: int | None = knob(
        None, "bits of embeddings and heads; None is what a budget allows, 8 without one", unit="bit", paper=8,
        other=3,
    )  # fmt: skip
    rows: int = knob(0, "rows that share a table; 0 is all of a matrix", unit="rows", other=64)
    group: int | None = knob(
        0, "columns that share a scale; 0 is whole rows, None is no scale", unit="columns", other=64
    )
    start: str = knob("exact", "exact or plusplus: the first k-means", other="plusplus")
    weighted: bool = knob(
        True, "centroids go where the text says that errors cost", paper=False, other=False, at=_LEARNS
    )
    rounds: int = knob(3, "of k-means in a step, at most", other=1, at={**_LEARNS, "tau": 0.5})
    attention: str = knob("soft", "soft or hard: what a weight is in training", other="hard", at=_LEARNS)
    tau: float = knob(0.1, "of the first step", unit="gap^2", other=0.5, at=_LEARNS)
    cooled: float = knob(0.02, "tau of the last step", unit="gap^2", other=0.5, at=_LEARNS)
    windows: int = knob(256, "calibration windows", other=2, at=_LEARNS)
    window: int = knob(256, "tokens a window", unit="tokens", paper=2048, other=16, at=_LEARNS)
    batch: int = knob(2, "windows a step", other=1, at=_LEARNS)
    steps: int = knob(100, "of training", other=1, at=_LEARNS)
    rate: float = knob(5e-3, "learning rate, as a share of the gap between centroids", other=0.1, at=_LEARNS)
    distill: float = knob(
        1.0,
        "share of the float model's word in the loss; the rest is the text's",
        paper=0.0,
        other=0.0,
        at=_LEARNS,
    )
    clip: float = knob(1.0, "most that the gradient's norm may be", other=1e-6, at=_LEARNS)
    learn: str = knob(
        "given", "given: from text that is given; always: without it from Python's language reference",
        other="always", at={k: v for k, v in _LEARNS.items() if k != "learn"},
    )  # fmt: skip
    seed: int = knob(0, "of the order of windows and of k-means++", other=1, at=_LEARNS)

    def __post_init__(self) -> None:
        words = (("start", "exact plusplus"), ("attention", "soft hard"), ("learn", "given always"))
        for field, wanted in ((field, told.split()) for field, told in words):
            if getattr(self, field) not in wanted:
                raise BadInput(field, getattr(self, field), " or ".join(wanted))
        for field in ("bits", "table_bits"):
            if getattr(self, field) not in (None, *WIDTHS):
                raise BadInput(field, getattr(self, field), f"one of {', '.join(map(str, WIDTHS))}")
        if (
            min(self.windows, self.batch, self.rounds) < 1
            or self.window < 2
            or min(self.steps, self.rows) < 0
        ):
            raise BadInput(
                "edkm", str(self.to_dict()), "windows, batch, rounds >= 1, window >= 2, steps, rows >= 0"
            )
        positive = min(self.tau, self.cooled, self.rate, self.clip) > 0 and (self.group or 0) >= 0
        if not positive or not 0 <= self.distill <= 1:
            need = "tau, cooled, rate, clip above 0, group at least 0, distill 0 to 1"
            raise BadInput("edkm", str(self.to_dict()), need)

    def palette(self) -> dict[str, Any]:
        """What palettes are made with."""
        return {"rows": self.rows, "group": self.group, "start": self.start, "seed": self.seed, "rounds": self.rounds,
                "share": self.tau}  # fmt: skip

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        from holdall.weights.edkm_run import Run

        return Run(self, x, self.allowed(x, budget)).packed().kept(to)

    def decode(self, packed: Packed) -> Model:
        return coded_file.decode(packed)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        return coded_file.held(packed, memory)
