"""A packed model as a GGUF file: matrices whose grid GGUF has keep their codes, others are rounded if so asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from holdall.dropins import gguf_out
from holdall.errors import BadInput
from holdall.weights.gguf_grids import fitted

if TYPE_CHECKING:
    from holdall.weights.model import Model
    from holdall.weights.packed_linear import Held

    Typed = tuple[str, np.ndarray]

_NEAR = "Q8_0"


def write(x: Model, held: Mapping[str, Held], url: str, form: str | None = None) -> dict[str, str]:
    """Write `x` and the matrices that stay packed; the type of each tensor.

    form: the type of matrices that are no blocks of GGUF as they are; None: they must be exact, so such a packed matrix
    is refused, and one that was never packed stays F16, or F32 where that would change a number.
    """
    if form is not None and form.upper() not in gguf_out.FORMS:
        raise BadInput("--gguf", form, f"one of {', '.join(gguf_out.FORMS)}")
    form = None if form is None else form.upper()
    naming = gguf_out.Naming(x)
    made: dict[str, Typed] = {}
    lost = []
    for name, matrix in held.items():
        found = _exact(naming, name, matrix)
        if found is None and form is None:
            lost.append(name)
        else:
            made[name] = found or _near(_ordered(naming, name, matrix.dense()), form or _NEAR)
    if lost:
        what = f"{len(lost)} of {len(held)} packed matrices on grids that GGUF has no type for ({lost[0]})"
        raise BadInput(
            "a GGUF of the same numbers", what,
            f"--gguf {_NEAR}, which is nearest, or another type to round them to: {', '.join(gguf_out.FORMS)}",
        )  # fmt: skip
    for name, tensor in x.state.items():
        plain = naming.plain(name, tensor)
        made[name] = ("F32", plain) if plain.ndim < 2 else _unpacked(plain, form)
    gguf_out.write(url, naming, x.name, x.files, made)
    return {naming.name(n): kind for n, (kind, _) in made.items()}


def _exact(naming: gguf_out.Naming, name: str, matrix: Held) -> Typed | None:
    from holdall.weights.coded_linear import CodedMatrix

    if not isinstance(matrix, CodedMatrix):
        return None
    return fitted(matrix.coded, naming.order(name, matrix.shape[0]))


def _ordered(naming: gguf_out.Naming, name: str, matrix: np.ndarray) -> np.ndarray:
    order = naming.order(name, len(matrix))
    return matrix if order is None else matrix[order]


def _unpacked(matrix: np.ndarray, form: str | None) -> Typed:
    if form is not None:
        return _near(matrix, form)
    with np.errstate(over="ignore"):
        half = matrix.astype(np.float16)
    return ("F16", half) if np.array_equal(half.astype(np.float32), matrix) else ("F32", matrix)


def _near(matrix: np.ndarray, form: str) -> Typed:
    """In that type; F16 where its blocks do not divide the rows, and F32 where that cannot hold it."""
    if matrix.shape[1] % gguf_out.row_of(form):
        form = "F16"
    if form == "F16" and np.abs(matrix).max(initial=0) > 65504:
        form = "F32"
    return form, gguf_out.rounded(np.ascontiguousarray(matrix), form)
