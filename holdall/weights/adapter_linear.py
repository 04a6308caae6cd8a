"""Linear layers that learn their weights at 1 to 4 bits, and what is kept of them. Imported only where torch is."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

WIDTHS = (1, 2, 3, 4)
FLOATS = {16: np.float16, 32: np.float32}  # weights that are kept as they are learned
_ROUNDS = 500
_TINY = 1e-5  # a constant matrix has no spread to be divided by


@cache
def levels(bits: int) -> tuple[float, ...]:
    """The 2**bits numbers that lie nearest to a standard normal one, by absolute distance.

    By fixed point from zeros: cells end halfway between levels, and a level is the median of its cell.
    """
    normal = NormalDist()
    found = [0.0] * (1 << bits)
    for _ in range(_ROUNDS):
        ends = [0.0, *(normal.cdf((a + b) / 2) for a, b in pairwise(found)), 1.0]
        found = [normal.inv_cdf((a + b) / 2) for a, b in pairwise(ends)]
    return tuple((a - b) / 2 for a, b in zip(found, reversed(found), strict=True))


@cache
def _tables(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(levels, the ends between them)."""
    found = levels(bits)
    return torch.tensor(found), torch.tensor([(a + b) / 2 for a, b in pairwise(found)])


def codes(weight: torch.Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """What is kept: uint8 numbers of levels, flat and row by row, and float32 (mean, spread) of the whole matrix."""
    weight = weight.detach()
    mean, spread = weight.mean(), weight.std(correction=0)
    found = torch.bucketize((weight - mean) / (spread + _TINY), _tables(bits)[1], right=True)
    return found.to(torch.uint8).flatten().numpy(), np.array([mean, spread], np.float32)


def restored(found: np.ndarray, grid: np.ndarray, bits: int, shape: tuple[int, int]) -> torch.Tensor:
    """The weights [O, I] that kept numbers stand for."""
    values = _tables(bits)[0][torch.from_numpy(found.astype(np.int64))]
    return (values * float(grid[1]) + float(grid[0])).reshape(shape)


class QLinear(torch.nn.Module):
    """y = x W^T, where each number of W is one of 2**bits levels on the mean and spread that W has now.

    The float matrix beneath learns: gradients pass the rounding as if it were not there, and reach mean and spread.
    16 and 32 bits are plain floats.
    """

    def __init__(self, columns: int, rows: int, bits: int):
        super().__init__()
        self.in_features, self.out_features, self.bits = columns, rows, bits
        self.weight = torch.nn.Parameter(torch.empty(rows, columns))
        torch.nn.init.xavier_uniform_(self.weight)

    def effective(self) -> torch.Tensor:
        """The matrix that multiplies, [O, I]."""
        if self.bits in FLOATS:
            return self.weight
        values, ends = _tables(self.bits)
        mean, spread = self.weight.mean(), self.weight.std(correction=0)
        plain = (self.weight - mean) / (spread + _TINY)
        nearest = values[torch.bucketize(plain.detach(), ends, right=True)]
        return (nearest + (plain - plain.detach())) * spread + mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.effective().to(x.dtype))

    def settle(self, weight: torch.Tensor) -> None:
        """From now on this matrix, as it is: what was loaded is not rounded again."""
        self.bits = 32
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


class Parallel(torch.nn.Module):
    """What runs beside a part of a frozen model: reads what goes into `source`, and adds to what `sink` gives.

    It is hung on both by hooks, so that the model's modules and the names of its weights stay as they are.
    start: the first of the sink's outputs that it adds to.
    """

    def __init__(self, columns: int, rows: int, width: int, bits: int, *, scale: float, curved: bool,
                 dropout: float, start: int):  # fmt: skip
        super().__init__()
        self.down, self.up = QLinear(columns, width, bits), QLinear(width, rows, bits)
        self.scale, self.curved, self.start = scale, curved, start
        self.dropout = torch.nn.Dropout(dropout if curved else 0.0)
        with torch.no_grad():
            if bits in FLOATS:
                self.up.weight.zero_()
            else:  # not zeros, whose spread is nothing: such a matrix would pass no gradient on
                torch.nn.init.trunc_normal_(self.up.weight, std=1e-3, a=-2e-3, b=2e-3)
        self._read: torch.Tensor | None = None

    def hang(self, source: torch.nn.Module, sink: torch.nn.Module) -> None:
        source.register_forward_pre_hook(self.read, with_kwargs=True)
        sink.register_forward_hook(self.add)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        within = self.down(x)
        if self.curved:
            within = self.dropout(torch.nn.functional.relu(within))
        out: torch.Tensor = self.up(within) * self.scale
        return out

    def read(self, _module: object, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        self._read = first(given, named)

    def add(self, _module: object, _given: object, out: torch.Tensor) -> torch.Tensor:
        x, self._read = self._read, None
        assert x is not None
        more = self(x)
        if more.shape[-1] != out.shape[-1]:
            behind = out.shape[-1] - more.shape[-1] - self.start
            more = torch.nn.functional.pad(more, (self.start, behind))
        return out + more


def first(given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that a module was called with."""
    return given[0] if given else next(iter(named.values()))


def base_bytes(module: torch.nn.Module) -> int:
    """Of parameters, and of packed matrices as they are held."""
    return sum(p.nbytes for p in module.parameters()) + sum(h.nbytes for h in _held(module))


def numbers(module: torch.nn.Module) -> int:
    plain = sum(p.numel() for p in module.parameters())
    return plain + sum(h.shape[0] * h.shape[1] for h in _held(module))


def _held(module: torch.nn.Module) -> list[Any]:
    """Packed matrices, each once."""
    found = (getattr(m, "held", None) for m in module.modules())
    return list({id(h): h for h in found if h is not None}.values())
