"""Round to nearest: every group of weights on its own small grid, the classic of weight compression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.base import WeightCodec
from holdall.weights.coded import Coded
from holdall.weights.model import Model
from holdall.weights.stored import described, files_of, section

if TYPE_CHECKING:
    import torch

    from holdall.weights.packed_linear import Held
else:
    torch = lazy("torch", extra="weights")

BITS = (8, 6, 5, 4, 3, 2)
_FIRST = (8, 4, 3, 2)  # widths of files that were written before matrices were `Coded`


@dataclass(frozen=True, kw_only=True)
class RoundToNearest(WeightCodec):
    """Round each group of weights to 2 to 8 bits between its smallest and its largest value.

    Fast, needs no data, and hard to beat from about 4.5 bits a weight on. Collapses at 2 bits. One size a bit
    width: a budget takes the widest that fits, embeddings included. Opened, matrices stay packed.

    Shapes:
        rows of a matrix are cut into groups of `group` columns; a last group may be shorter.
    Cost:
        bits + 32 / group bits a weight, less what entropy coding saves on disk; everything else is half precision.
    Knobs:
        bits (None: the widest that fits, 4 without a budget); group of columns that share a grid, 0 for whole rows;
        entropy: code what gets smaller by it (it does not change what is decoded).
    Differs from the paper:
        there is no single paper; this is the asymmetric min/max grid with half-precision scale and minimum.
    Example:
        >>> import torch
        >>> from holdall.weights import Model, RoundToNearest
        >>> w = torch.linspace(-1, 1, 640).reshape(10, 64)
        >>> back = RoundToNearest(bits=8).decode(RoundToNearest(bits=8).encode(Model({"w": w}))).state["w"]
        >>> float((back - w).abs().max()) < 0.001
        True

    Paper: none.
    Test: tests/weights/test_floors.py
    """

    name: ClassVar[str] = "rtn"
    tries: ClassVar[tuple[Mapping[str, Any], ...]] = ({}, {"group": 32}, {"group": 0})
    paper: ClassVar[Paper] = Paper(0, "Group-wise rounding to nearest", "no single paper claims it")

    bits: int | None = knob(
        None, "bits a weight: 2, 3, 4, 5, 6, 8; None is the widest that fits", unit="bit", other=2
    )
    group: int = knob(64, "columns that share scale and minimum; 0 is whole rows", unit="columns", other=16)
    entropy: bool = knob(True, "entropy code what gets smaller by it", other=False)

    def __post_init__(self) -> None:
        if self.bits not in (None, *BITS) or self.group < 0:
            raise BadInput(
                "rtn",
                f"bits {self.bits}, group {self.group}",
                "bits of 2, 3, 4, 5, 6 or 8, group of at least 0",
            )

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(x, budget)
        widths = (self.bits,) if self.bits else (4,) if limit is None else BITS
        least = 0
        for bits in widths:
            packed = self._made(x, bits)
            if limit is None or packed.nbytes <= limit:
                return packed.kept(to)
            least = packed.nbytes
        raise BudgetError(limit, least, who="weights.rtn", why=f"{widths[-1]} bits in groups of {self.group}")

    def _made(self, x: Model, bits: int) -> Packed:
        coded = {}
        for name, tensor in x.state.items():
            if tensor.is_floating_point() and tensor.ndim == 2 and tensor.numel():
                coded_file.finite(name, tensor)
                coded[name] = rounded(tensor.detach().float().numpy(), bits, self.group)
        return coded_file.write(self, x, coded, entropy=self.entropy, bits=bits, group=self.group)

    def decode(self, packed: Packed) -> Model:
        if any(name.startswith("q/") for name in packed.arrays):
            return _first(packed)
        return coded_file.decode(packed)

    def held(self, packed: Packed, memory: Spend = None) -> tuple[Model, Mapping[str, Held]]:
        if any(name.startswith("q/") for name in packed.arrays):
            return _first(packed), {}
        return coded_file.held(packed, memory)


def rounded(w: np.ndarray, bits: int, group: int = 0) -> Coded:
    """A float32 matrix [O, I] on min/max grids of `group` columns (0: whole rows)."""
    n = w.shape[1]
    starts = np.arange(0, n, group or n)
    low, high = np.minimum.reduceat(w, starts, axis=1), np.maximum.reduceat(w, starts, axis=1)
    if max(abs(low).max(), abs(high).max(), (high - low).max()) > 65000:
        raise BadInput("weights", "magnitudes beyond half precision", "weights below 65000")
    steps = (1 << bits) - 1
    scale = np.maximum((high - low) / steps, 6e-8).astype(np.float16)
    least = low.astype(np.float16)
    wide = np.diff(np.append(starts, n))
    by = np.repeat(scale.astype(np.float32), wide, axis=1)
    codes = np.clip(np.rint((w - np.repeat(least.astype(np.float32), wide, axis=1)) / by), 0, steps)
    return Coded.of(codes.astype(np.uint8), bits, scale=scale, low=least, group=group)


def _first(packed: Packed) -> Model:
    """Files of the first kind: a flat bit stream q/<i> and grids s/<i> [m, groups, 2] for each matrix."""
    state = {}
    bits, group = packed.meta.get("bits"), packed.meta.get("group")
    if bits not in _FIRST or type(bits) is not int or type(group) is not int or group < 1:
        raise CorruptArtefact("the header", f"{bits} bits in groups of {group}")
    for i, (name, dtype, shape) in enumerate(described(packed)):
        if f"t/{i}" in set(packed.arrays):
            array = section(packed, f"t/{i}")
            if array.shape != shape:
                raise CorruptArtefact(f"tensor {name}", f"{array.shape} where {shape} was written")
        else:
            codes, scales = section(packed, f"q/{i}"), section(packed, f"s/{i}")
            array = _restored(codes, scales, shape, bits, group)
        state[name] = torch.from_numpy(array.copy()).to(getattr(torch, dtype))
    return Model(state, files_of(packed), str(packed.meta.get("name", "model")))


def _restored(
    stream: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], bits: int, group: int
) -> np.ndarray:
    m, n = shape if len(shape) == 2 else (0, 0)
    wanted = (m, -(-n // group), 2)
    if m * n == 0 or scales.dtype != np.float16 or scales.shape != wanted or stream.dtype != np.uint8:
        raise CorruptArtefact("a rounded matrix", f"scales {scales.shape} for {shape}")
    if stream.size != -(-m * n * bits // 8):
        raise CorruptArtefact("a rounded matrix", f"{stream.size} bytes of codes for {shape}")
    from holdall.parts.entropy import unpack_fixed

    codes = unpack_fixed(stream, m * n, bits).reshape(m, n).astype(np.float32)
    wide = np.diff(np.append(np.arange(0, n, group), n))
    scale, least = (np.repeat(scales[..., i].astype(np.float32), wide, axis=1) for i in (0, 1))
    with np.errstate(invalid="ignore", over="ignore"):  # a forged scale decodes to what it says
        return codes * scale + least
