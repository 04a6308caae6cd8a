"""Matrices whose columns are scaled: beside `w/<i>` a file has `c/<i>`, float16 [I], and W = coded * columns.

Columns that matter much get fine steps by it, at no bytes a row; a running matrix scales its inputs instead. (A scale
for each column is not in `Coded` because its kernels have no use for one.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.kinds import Spend
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.model import Model
from holdall.weights.stored import described, section

if TYPE_CHECKING:
    import torch

    from holdall.weights.coded_linear import CodedMatrix, Inputs
    from holdall.weights.packed_linear import Held
else:
    torch = lazy("torch", extra="weights")


def even(upper: torch.Tensor, strength: float) -> np.ndarray:
    """float16 [I]: scales of columns under which an error in any of them costs alike, to the power of `strength`.

    upper: as `compensation.factor` gives it; a column's error costs 1 / upper[j, j]^2.
    """
    size = upper.diagonal().double().log()
    scale = ((size - size.mean()) * strength).clamp(-6, 6).exp()
    return scale.numpy().astype(np.float16)


def added(packed: Packed, columns: Mapping[str, np.ndarray]) -> Packed:
    """The file, with the scales of some of its matrices."""
    arrays = dict(packed.arrays)
    for i, (name, _, _) in enumerate(described(packed)):
        if name in columns:
            arrays[f"c/{i}"] = columns[name]
    return Packed(arrays, packed.meta)


def scales(packed: Packed) -> dict[str, np.ndarray]:
    """By matrix, float32 [I], checked."""
    found, held = {}, set(packed.arrays)
    for i, (name, _, shape) in enumerate(described(packed)):
        if f"c/{i}" not in held:
            continue
        scale = section(packed, f"c/{i}")
        if f"w/{i}" not in held or len(shape) != 2 or scale.dtype != np.float16 or scale.shape != shape[1:]:
            raise CorruptArtefact(
                f"tensor {name}", f"{scale.dtype} {scale.shape} to scale the columns of {shape}"
            )
        if not np.isfinite(scale).all():
            raise CorruptArtefact(f"tensor {name}", "scales of columns that are not finite")
        found[name] = scale.astype(np.float32)
    return found


def decode(packed: Packed) -> Model:
    found, columns = coded_file.decode(packed), scales(packed)
    for name, scale in columns.items():
        tensor = found.state[name]
        found.state[name] = (tensor.float() * torch.from_numpy(scale)).to(tensor.dtype)
    return found


def held(packed: Packed, memory: Spend = None) -> tuple[Model, dict[str, Held]]:
    from holdall.weights.coded_linear import CodedMatrix

    shell, found = coded_file.held(packed, memory)
    columns = scales(packed)
    for name, inner in found.items():
        if name in columns and isinstance(inner, CodedMatrix):
            found[name] = Scaled(inner, columns[name])
    return shell, found


class Scaled:
    """A packed matrix times a scale for each column."""

    def __init__(self, inner: CodedMatrix, columns: np.ndarray):
        self._inner, self._columns, self._times = inner, columns, torch.from_numpy(columns)

    @property
    def shape(self) -> tuple[int, int]:
        return self._inner.shape

    @property
    def nbytes(self) -> int:
        return self._inner.nbytes + self._columns.nbytes

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return self._inner.multiply(x * self._times)

    def into(self, given: Inputs, out: np.ndarray) -> None:
        """The same, into an array [T, O]: what the lean decoder calls."""
        from holdall.weights.coded_linear import Inputs

        self._inner.into(Inputs(given.x * self._columns), out)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self._inner.rows(ids) * self._columns

    def dense(self) -> np.ndarray:
        return self._inner.dense() * self._columns
