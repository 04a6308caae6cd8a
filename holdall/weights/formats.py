"""Eight-bit formats: each matrix in the one that loses least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.base import WeightCodec
from holdall.weights.coded import Coded
from holdall.weights.float_formats import BY_NAME, FORMATS, INT8, Format, codes, quantised, searched, sqnr
from holdall.weights.format_theory import recommended
from holdall.weights.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdall.weights.packed_linear import Held

_LEAST = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Formats(WeightCodec):
    """Store each matrix in the 8-bit format that suits it: INT8 or one of four 8-bit floats.

    Near lossless, quick, and needs no data: use it where a quarter of float32 is small enough. Says of each matrix
    which format lost least (`holdall.weights.formats.chosen`), and `format_theory` what hardware pays for it. Poor
    below 7 bits a weight: there is no narrower width here; take `rtn` or `mixllm`.

    Shapes:
        matrices [O, I], with a range for each row or for all; everything else stays in half precision.
    Cost:
        8 bits a weight less what entropy coding saves (about one bit), 2 bytes a row; the search tries 100 ranges for
        each of the formats. Floats are multiplied through a table of 256 numbers, INT8 in whole numbers.
    Knobs:
        format: INT8, E2M5, E3M4, E4M3, E5M2 (exponent and mantissa bits), or auto: the best of each matrix; limit dB
        by which a float must be better than INT8 to be taken (hardware pays for floats: 20 is a thrifty choice);
        search: try ranges for the least squared error (all formats alike), else take the largest weight; rows: a range
        for each row (paper's "per channel"), else for the matrix.
    Differs from the paper:
        The paper studies formats in simulation; this stores them. Quantisers, flexible bias and the search are the
        paper's. Ranges are kept in half precision and codes chosen for the rounded ones. Activations are studied in the
        benchmark only. Gates are counted by a formula of our own, not measured; nothing is trained.
    Example:
        >>> import torch
        >>> from holdall.weights import Formats, Model
        >>> w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
        >>> back = Formats().decode(Formats().encode(Model({"w": w}))).state["w"]
        >>> float((back - w).norm() / w.norm()) < 0.01
        True

    Paper: van Baalen et al., FP8 versus INT8 for efficient deep learning inference.
    Test: tests/weights/test_formats.py
    """

    name: ClassVar[str] = "formats"
    paper: ClassVar[Paper] = Paper(
        49,
        "FP8 versus INT8 for efficient deep learning inference",
        "van Baalen, Kuzmin, Nair, Ren, Mahurin, Patel, Subramanian, Lee, Nagel, Soriaga, Blankevoort (Qualcomm, 2023)",
        "https://arxiv.org/abs/2303.17951",
    )

    format: str = knob("auto", "INT8, E2M5, E3M4, E4M3, E5M2, or auto", other="E4M3")
    limit: float = knob(0.0, "how much better a float must be than INT8", unit="dB", other=60.0)
    search: bool = knob(True, "try ranges for the least squared error", other=False)
    rows: bool = knob(True, "a range for each row", other=False)

    def __post_init__(self) -> None:
        if self.format != "auto" and self.format not in BY_NAME:
            raise BadInput("format", self.format, f"auto or one of {', '.join(BY_NAME)}")

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(x, budget)
        coded, taken = {}, {}
        for name, tensor in x.state.items():
            if tensor.is_floating_point() and tensor.ndim == 2 and tensor.numel():
                coded_file.finite(name, tensor)
                taken[name], coded[name] = self._matrix(tensor.detach().float().numpy())
        packed = coded_file.write(self, x, coded, formats=taken)
        if limit is not None and packed.nbytes > limit:
            raise BudgetError(
                limit, packed.nbytes, who="weights.formats", why="eight bits a weight, entropy coded"
            )
        return packed.kept(to)

    def _matrix(self, w: np.ndarray) -> tuple[str, Coded]:
        forms = FORMATS if self.format == "auto" else (BY_NAME[self.format],)
        ranges = {f.name: self.ranges(w, f) for f in forms}
        if self.format == "auto":
            ratios = {f.name: sqnr(w, quantised(w, f, ranges[f.name])) for f in forms}
            name = recommended(ratios, self.limit)
        else:
            name = self.format
        return name, stored(w, BY_NAME[name], ranges[name])

    def ranges(self, w: np.ndarray, form: Format) -> np.ndarray:
        """The clipping value of each row [O, 1], or of all [1, 1], as half precision will hold it."""
        axis = 1 if self.rows else None
        c = searched(w, form, axis) if self.search else np.abs(w).max(axis=axis, keepdims=True)
        return _scale(form, c).astype(np.float64) * _top(form)

    def decode(self, packed: Packed) -> Model:
        return coded_file.decode(packed)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        return coded_file.held(packed, memory)


def _top(form: Format) -> float:
    """What a scale of one reaches to."""
    return 127.0 if form is INT8 else form.reach


def _scale(form: Format, c: np.ndarray) -> np.ndarray:
    if float(np.max(c, initial=0.0)) > 65504:
        raise BadInput("weights", "magnitudes beyond half precision", "weights below 65504")
    return np.maximum(c / _top(form), _LEAST).astype(np.float16)


def stored(w: np.ndarray, form: Format, c: np.ndarray) -> Coded:
    """A matrix in `form`, with the clipping values c of `Formats.ranges`."""
    scale = np.broadcast_to(_scale(form, c), (len(w), 1))
    if form is INT8:
        step = scale.astype(np.float64)
        return Coded.of((np.clip(np.rint(w / step), -127, 127) + 128).astype(np.uint8), 8, scale=scale)
    return Coded.of(codes(w, form, c), form.bits, scale=scale, table=form.table())


def chosen(packed: Packed) -> dict[str, str]:
    """The format of each matrix."""
    return {str(n): str(f) for n, f in dict(packed.meta.get("formats", {})).items()}
