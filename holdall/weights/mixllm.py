"""MixLLM: more bits for the rows that the whole model's loss feels most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.weights import by_column, coded_file
from holdall.weights.allotment import ARMS
from holdall.weights.base import WeightCodec
from holdall.weights.coded import WIDTHS
from holdall.weights.model import Model
from holdall.weights.sensitivity import SALIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from holdall.weights.mixing import Mixed
    from holdall.weights.packed_linear import Held

_PAPER = (8, 4)
_TIGHT = {"budget": "12%"}  # where every knob of a step a row matters


@dataclass(frozen=True, kw_only=True)
class MixLLM(WeightCodec):
    """Give most bits to the rows that the whole model's loss feels most; the quality to have from 2.5 to 5 bits.

    With a budget each row of each matrix, embeddings too, has its own rounding step, entropy coded: the least loss in
    the bytes, as far as gradients on calibration text can tell. Without one it is the paper's form: the tenth of all
    rows that 4 bits hurt most has 8 bits. Either way errors are made good by columns to come (GPTQ). Poor below about
    2.5 bits a weight, and on text unlike the calibration text, which should be the user's own.

    Shapes:
        a matrix [O, I] in bands of rows of one width; grids of `group` columns (two widths) or of whole rows (a step a
        row), there with a scale for each column of the matrix.
    Cost:
        calibration is a forward and a backward pass over `windows` x `window` tokens and about as much again for
        second moments, which take 4 I^2 bytes a matrix (SmolLM2: 0.5 GB); rounding O I^2 / 2 products a matrix.
        Opened, codes have whole widths: a quarter to a third more bytes than the file.
    Knobs:
        widths falling widths of rows in bits (paper 8, 4), None: a step for each row where there is a budget; with a
        budget the last width is the widest that fits and the others get as many rows as fit; shares of all rows that
        each width but the last gets without one (paper 0.1 or 0.2); group columns of a grid (paper 128); salience
        first, second or diagonal; by global (paper), layer, random, magnitude; clip (paper True); compensate (paper
        True); damp share of the mean moment; weighted (paper False) moments; for a step a row: even, trust, prior,
        thrift; windows x window tokens of calibration; tune steps of training end to end, with rate and distill
        (1: what the float model says, 0: the text).
    Differs from the paper:
        `widths=(8, 4), group=128, weighted=False` is the paper's, but that embeddings and head are rows like all
        others (the paper leaves them in half precision), that zero is always within a grid, and that a last group may
        be shorter. A step for each row (`widths=None` under a budget) is ours: cost * step^2 is alike for all rows,
        columns are scaled so that an error in each costs alike, and codes are entropy coded; `tune` lets steps and
        columns learn, as in EfficientQAT. Second moments weigh
        tokens by their squared gradients. Lookups count in a step a row, not in salience. Activations stay floats here
        (`holdall.weights.two_step` is the product with 8-bit ones); the fused CUDA kernel is not built.
    Example:
        >>> import torch
        >>> from holdall.weights import MixLLM, Model
        >>> w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
        >>> packed = MixLLM().encode(Model({"w": w}), "14%")
        >>> packed.nbytes <= 0.14 * w.nbytes
        True
        >>> float((MixLLM().decode(packed).state["w"] - w).norm() / w.norm()) < 0.2
        True

    Paper: Zheng et al., MixLLM: LLM Quantization with Global Mixed-precision between Output-features.
    Test: tests/weights/test_mixllm.py
    """

    name: ClassVar[str] = "mixllm"
    brief: ClassVar[Mapping[str, Any]] = {"windows": 4, "window": 128}
    paper: ClassVar[Paper] = Paper(
        89,
        "MixLLM: LLM Quantization with Global Mixed-precision between Output-features and Highly-efficient System "
        "Design",
        "Zheng, Song, Liu (Microsoft, 2024; v2 2026)",
        "https://arxiv.org/abs/2412.14590",
    )

    widths: tuple[int, ...] | None = knob(
        None, "falling widths of rows; None: 8 and 4 without a budget, a step for each row with one", unit="bit",
        paper=_PAPER, other=(8, 3),
    )  # fmt: skip
    shares: tuple[float, ...] = knob((0.1,), "of all rows, that get each width but the last", other=(0.2,))
    group: int = knob(
        64, "columns that share a grid of such rows; 0 is whole rows", unit="columns", paper=128, other=32
    )
    salience: str = knob("first", "first, second (without the first-order term) or diagonal", other="second")
    by: str = knob("global", "global, layer, random or magnitude: how salient rows are told", other="layer")
    clip: bool = knob(True, "search how far to clip each group", other=False)
    compensate: bool = knob(True, "GPTQ's error compensation", other=False)
    damp: float = knob(0.05, "share of the mean second moment added to each", other=0.5)
    weighted: bool = knob(True, "weigh tokens by their gradients in second moments", paper=False, other=False)
    even: float = knob(
        0.25, "how far columns are scaled to cost alike, 0 to 1", paper=0.0, other=0.0, at=_TIGHT
    )
    trust: float = knob(
        0.75, "power of the costs that gradients tell; 0: as if all cost alike", other=0.25, at=_TIGHT
    )
    thrift: float = knob(
        0.05, "of a step, that rounding favours the smaller code by", unit="step", other=0.2, at=_TIGHT
    )
    prior: float = knob(0.05, "of the mean cost, added to each row's", other=1.0, at=_TIGHT)
    windows: int = knob(16, "calibration windows", other=1)
    window: int = knob(512, "tokens a window", unit="tokens", other=64)
    tune: int = knob(0, "steps of training end to end, of two windows each", other=2, at=_TIGHT)
    rate: float = knob(1e-3, "learning rate then, in mean steps", other=1e-2, at=_TIGHT | {"tune": 2})
    distill: float = knob(1.0, "share of the float model's word then", other=0.0, at=_TIGHT | {"tune": 2})

    def __post_init__(self) -> None:
        widths, shares = self.widths or _PAPER, self.shares
        if not set(widths) <= set(WIDTHS) or list(widths) != sorted(set(widths), reverse=True):
            raise BadInput("widths", self.widths, f"falling ones of {', '.join(map(str, WIDTHS))}")
        if len(shares) != len(widths) - 1 or min((*shares, 0)) < 0 or sum(shares) > 1:
            raise BadInput("shares", shares, "one for each width but the last, of at most 1 together")
        if self.salience not in SALIENCE or self.by not in ARMS:
            wanted = ", ".join((*ARMS, *SALIENCE))
            raise BadInput("rows", f"by {self.by}, {self.salience}", f"one of {wanted}")
        if min(self.group, self.windows, self.damp, self.prior) < 0 or self.window < 2:
            raise BadInput("mixllm", str(self.to_dict()), "group, windows, damp and prior of at least 0")
        if (
            not all(0 <= v <= 1 for v in (self.even, self.trust, 2 * self.thrift, self.distill))
            or self.tune < 0
        ):
            raise BadInput(
                "mixllm", str(self.to_dict()), "even, trust, distill from 0 to 1, thrift to 0.5, tune >= 0"
            )

    def columns(self, w: np.ndarray) -> int:
        """Columns of a group of this matrix."""
        return min(self.group or w.shape[1], w.shape[1])

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        from holdall.weights.mixing import Mixed
        from holdall.weights.stepping import Stepped

        limit = self.allowed(x, budget)
        if limit is not None and self.widths is None:
            made = Stepped(self, x)
            return (made.tuned(limit, to) if self.tune else made.fit(limit)).kept(to)
        widths = self.widths or _PAPER
        both = Mixed(self, x, widths)
        if limit is None:
            return (self._file(x, both, self.shares, widths)).kept(to)
        return (self._within(x, both, limit, widths)).kept(to)

    def _file(self, x: Model, made: Mixed, shares: tuple[float, ...], widths: tuple[int, ...]) -> Packed:
        return coded_file.write(self, x, made.coded(made.rows(shares, widths)))

    def _within(self, x: Model, made: Mixed, limit: int, widths: tuple[int, ...]) -> Packed:
        """The widest last width that fits, and then as many rows of the others, in the shares' proportion."""
        for count in range(1, len(widths) + 1):
            some, shares = widths[:count], self.shares[: count - 1]
            best = self._file(x, made, (0.0,) * (count - 1), some)
            if best.nbytes <= limit:
                break
        else:
            raise BudgetError(limit, best.nbytes, who="weights.mixllm", why=f"all rows at {widths[-1]} bits")
        if count == 1 or not sum(shares):
            return best
        rest = best.nbytes - made.guess(made.rows((0.0,) * (count - 1), some))
        low, high = 0.0, 1 / sum(shares)
        for _ in range(14):
            middle = (low + high) / 2
            fits = made.guess(made.rows(tuple(middle * s for s in shares), some)) + rest < limit
            low, high = (middle, high) if fits else (low, middle)
        while low > 1e-4:
            found = self._file(x, made, tuple(low * s for s in shares), some)
            if found.nbytes <= limit:
                return found
            low -= max(0.003, 0.01 * low)
        return best

    def decode(self, packed: Packed) -> Model:
        return by_column.decode(packed)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        return by_column.held(packed, memory)
