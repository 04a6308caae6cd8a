"""Round to nearest: every group of weights on its own small grid, the classic of weight compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.base import WeightCodec, finish
from holdall.weights.model import Model
from holdall.weights.stored import describe, described, file_sections, files_of, section

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

BITS = (8, 4, 3, 2)


@dataclass(frozen=True, kw_only=True)
class RoundToNearest(WeightCodec):
    """Round each group of weights to 2, 3, 4 or 8 bits between its smallest and its largest value.

    Fast, needs no data, and hard to beat from about 4.5 bits a weight on. Collapses at 2 bits. One size a bit
    width: a budget takes the widest that fits, embeddings included.

    Shapes:
        rows of a matrix are cut into groups of `group` columns; a last group may be shorter.
    Cost:
        bits + 32 / group bits a weight; everything else is half precision.
    Knobs:
        bits (None: the widest that fits, 4 without a budget); group of columns that share a grid.
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
    paper: ClassVar[Paper] = Paper(0, "Group-wise rounding to nearest", "no single paper claims it")

    bits: int | None = knob(
        None, "bits a weight: 2, 3, 4, 8; None is the widest that fits", unit="bit", other=2
    )
    group: int = knob(64, "columns that share scale and minimum", unit="columns", other=16)

    def __post_init__(self) -> None:
        if self.bits not in (None, *BITS) or self.group < 1:
            raise BadInput(
                "rtn", f"bits {self.bits}, group {self.group}", "bits of 2, 3, 4 or 8, group of at least 1"
            )

    def encode(self, x: Model, budget: Spend = None, *, to: str | None = None) -> Packed:
        limit = self.allowed(x, budget)
        widths = (self.bits,) if self.bits else (4,) if limit is None else BITS
        least = 0
        for bits in widths:
            packed = self._made(x, bits)
            if limit is None or packed.nbytes <= limit:
                return finish(packed, to)
            least = packed.nbytes
        raise BudgetError(limit, least, who="weights.rtn", why=f"{widths[-1]} bits in groups of {self.group}")

    def _made(self, x: Model, bits: int) -> Packed:
        arrays: dict[str, Any] = file_sections(x)
        for i, (name, tensor) in enumerate(x.state.items()):
            if not tensor.is_floating_point():
                arrays[f"t/{i}"] = tensor.detach().numpy()
                continue
            if not bool(torch.isfinite(tensor).all()):
                raise BadInput(f"tensor {name}", "NaN or infinity", "finite weights")
            if tensor.ndim != 2 or not tensor.numel():
                half = tensor.detach().half()
                arrays[f"t/{i}"] = half.numpy() if half.isfinite().all() else tensor.detach().float().numpy()
                continue
            arrays[f"q/{i}"], arrays[f"s/{i}"] = _rounded(tensor.detach().float().numpy(), bits, self.group)
        meta = {"room": "weights", "method": self.to_dict(), **describe(x), "bits": bits, "group": self.group}
        return Packed(arrays, meta)

    def decode(self, packed: Packed) -> Model:
        state = {}
        bits, group = packed.meta.get("bits"), packed.meta.get("group")
        if bits not in BITS or type(bits) is not int or type(group) is not int or group < 1:
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


def _rounded(w: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed codes (a flat bit stream) and [m, groups, 2] half-precision scale and minimum."""
    n = w.shape[1]
    starts = np.arange(0, n, group)
    low, high = np.minimum.reduceat(w, starts, axis=1), np.maximum.reduceat(w, starts, axis=1)
    if max(abs(low).max(), abs(high).max(), (high - low).max()) > 65000:
        raise BadInput("weights", "magnitudes beyond half precision", "weights below 65000")
    steps = (1 << bits) - 1
    scale = np.maximum((high - low) / steps, 6e-8).astype(np.float16)
    least = low.astype(np.float16)
    wide = np.diff(np.append(starts, n))
    by = np.repeat(scale.astype(np.float32), wide, axis=1)
    codes = np.clip(np.rint((w - np.repeat(least.astype(np.float32), wide, axis=1)) / by), 0, steps).astype(
        np.uint8
    )
    stream = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(stream, bitorder="little"), np.stack([scale, least], -1)


def _restored(
    stream: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], bits: int, group: int
) -> np.ndarray:
    m, n = shape if len(shape) == 2 else (0, 0)
    wanted = (m, -(-n // group), 2)
    if m * n == 0 or scales.dtype != np.float16 or scales.shape != wanted or stream.dtype != np.uint8:
        raise CorruptArtefact("a rounded matrix", f"scales {scales.shape} for {shape}")
    if stream.size != -(-m * n * bits // 8):
        raise CorruptArtefact("a rounded matrix", f"{stream.size} bytes of codes for {shape}")
    planes = np.unpackbits(stream, count=m * n * bits, bitorder="little").reshape(-1, bits)
    codes = np.packbits(planes, axis=1, bitorder="little").reshape(m, n).astype(np.float32)
    wide = np.diff(np.append(np.arange(0, n, group), n))
    scale, least = (np.repeat(scales[..., i].astype(np.float32), wide, axis=1) for i in (0, 1))
    with np.errstate(invalid="ignore", over="ignore"):  # a forged scale decodes to what it says
        return codes * scale + least
