"""Low-bit codes: grids with a scale and a zero, and planes of bits that unpack without a shuffle.

A grid of b bits says x = low + step * q, with q from 0 to 2**b - 1. Steps and lows are kept in float16, and codes are
chosen for the rounded ones. `fit` asks how a grid is laid: 0 spans from the least to the largest, as papers do; more
is a number of rounds of least squares, which cut off rare extremes where finer steps are worth more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

BITS = (1, 2, 3, 4, 8)
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
_NARROW = {1: 0.35, 2: 0.6, 3: 0.75, 4: 0.9, 8: 1.0}  # of the span, where least squares starts
_LEAST, _MOST = 2.0**-24, 65504.0  # what float16 can say


def width(count: int, bits: int) -> int:
    """Bytes of `count` codes."""
    if bits not in _PLANES:
        raise BadInput("bits", bits, f"one of {', '.join(map(str, BITS))}")
    return sum(-(-count // (8 // plane)) for plane in _PLANES[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., D] below 2**bits as bytes [..., width(D, bits)].

    A plane of p bits has W = ceil(D * p / 8) bytes; code c is in byte c mod W, at bit p * (c div W), so that a byte
    unpacks into codes W apart and W bytes into rows of neighbours. Three bits are a plane of two and a plane of one.
    """
    count, planes = codes.shape[-1], []
    width(count, bits)
    for plane, low in _parts(bits):
        per = 8 // plane
        bytes_ = -(-count // per)
        part = torch.nn.functional.pad((codes >> low) & (2**plane - 1), (0, bytes_ * per - count))
        rows = part.unflatten(-1, (per, bytes_))  # [..., per, W]
        packed = rows[..., 0, :].clone()
        for i in range(1, per):
            packed |= rows[..., i, :] << (i * plane)
        planes.append(packed)
    return torch.cat(planes, dim=-1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 [..., count]."""
    if packed.shape[-1] != width(count, bits):
        raise BadInput(
            "packed codes",
            f"{packed.shape[-1]} bytes",
            f"{width(count, bits)} for {count} codes of {bits} bits",
        )
    codes, start = torch.zeros((), dtype=torch.uint8, device=packed.device), 0
    for plane, low in _parts(bits):
        bytes_ = -(-count // (8 // plane))
        rows = packed[..., start : start + bytes_]
        parts = [(rows >> (i * plane)) & (2**plane - 1) for i in range(8 // plane)]
        codes = codes | (torch.cat(parts, dim=-1)[..., :count] << low)
        start += bytes_
    return codes


def _parts(bits: int) -> list[tuple[int, int]]:
    """(bits of a plane, the bit of the code that is its lowest)."""
    found, low = [], 0
    for plane in _PLANES[bits]:
        found.append((plane, low))
        low += plane
    return found


def grid(
    x: Tensor, bits: int, dim: int, *, fit: int = 0, shown: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(step, low) in float16 of asymmetric grids along `dim`, which stays with size 1.

    shown: bool, broadcastable to x; what is not shown has no say. Where nothing is, or all are alike, the step is as
    small as it can be. Raises BadInput for values that are not finite, and for those that float16 cannot hold.
    """
    top = 2**bits - 1
    x = x.float() if shown is None else x.float().masked_fill(~shown, 0)
    if not bool(torch.isfinite(x).all()):
        raise BadInput("numbers to quantise", "NaN or infinity", "finite numbers")
    if x.numel() == 0:
        flat = x.new_zeros([1 if i == dim % x.ndim else n for i, n in enumerate(x.shape)])
        return flat.half() + _LEAST, flat.half()
    low, high = _span(x, dim, shown)
    if fit:
        middle, half = (low + high) / 2, (high - low) / 2 * _NARROW[bits]
        low, high = middle - half, middle + half
    step = ((high - low) / top).clamp(min=_LEAST)
    for _ in range(fit):
        step, low = _least_squares(x, _codes(x, step, low, top), step, dim, shown)
    if bool((low.abs() > _MOST).any() or (step > _MOST).any()):
        raise BadInput("numbers to quantise", f"up to {float(x.abs().max()):.3g}", f"at most {_MOST:g}")
    return step.clamp(min=_LEAST).half(), low.half()


def _span(x: Tensor, dim: int, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    if shown is None:
        return x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    low = x.masked_fill(~shown, torch.inf).amin(dim, keepdim=True)
    high = x.masked_fill(~shown, -torch.inf).amax(dim, keepdim=True)
    nothing = low > high
    return low.masked_fill(nothing, 0), high.masked_fill(nothing, 0)


def _least_squares(
    x: Tensor, q: Tensor, step: Tensor, dim: int, shown: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The step and low that are best for given codes."""
    one = torch.ones((), device=x.device) if shown is None else shown.float().expand(x.shape)
    count = one.expand(x.shape).sum(dim, keepdim=True).clamp(min=1)
    mean_q, mean_x = (q * one).sum(dim, keepdim=True) / count, (x * one).sum(dim, keepdim=True) / count
    off = (q - mean_q) * one
    spread, both = (off * off).sum(dim, keepdim=True), (off * x).sum(dim, keepdim=True)
    step = torch.where(spread > 1e-6, both / spread.clamp(min=1e-6), step).clamp(min=_LEAST)
    return step, mean_x - step * mean_q


def _codes(x: Tensor, step: Tensor, low: Tensor, top: int) -> Tensor:
    return ((x - low) / step).round_().clamp_(0, top)


def encode(x: Tensor, step: Tensor, low: Tensor, bits: int) -> Tensor:
    """The nearest codes, uint8 like x; NaN (in what is not shown) becomes 0."""
    return _codes(x.float().nan_to_num(0.0), step.float(), low.float(), 2**bits - 1).to(torch.uint8)


def decode(codes: Tensor, step: Tensor, low: Tensor) -> Tensor:
    """float32."""
    return codes * step.float() + low.float()


def cut(count: int, group: int) -> list[int]:
    """The ends of parts of `group` tokens; what is left over makes a part of its own, or lengthens the last."""
    ends = list(range(group, count + 1, group))
    if ends and count - ends[-1] <= group // 2:
        ends[-1] = count
    elif not ends or ends[-1] < count:
        ends.append(count)
    return ends if count else []


def lengths(ends: Sequence[int]) -> list[int]:
    """Of parts that end there."""
    return [end - start for start, end in pairwise((0, *ends))]


def naive_grid(x: Tensor, bits: int) -> tuple[float, float, list[int]]:
    """`grid` from the least to the largest of a vector, and its codes, one number at a time."""
    numbers = [float(v) for v in x]
    low, high = min(numbers), max(numbers)
    step = max((high - low) / (2**bits - 1), _LEAST)
    step, low = float(torch.tensor(step).half()), float(torch.tensor(low).half())
    codes = []
    for v in numbers:
        codes.append(min(range(2**bits), key=lambda q: abs(low + step * q - v)))
    return step, low, codes


def naive_pack(codes: list[int], bits: int) -> bytes:
    """`pack` of one row, a bit at a time."""
    out = b""
    for plane, low in _parts(bits):
        bytes_ = -(-len(codes) // (8 // plane))
        rows = [0] * bytes_
        for c, code in enumerate(codes):
            rows[c % bytes_] |= ((code >> low) & (2**plane - 1)) << (plane * (c // bytes_))
        out += bytes(rows)
    return out
