"""Layers that keep one bit a weight and multiply by popcount; inference only, on the processor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdall.errors import BadInput
from holdall.weights import binary_kernels as kernels
from holdall.weights.binary_folding import folded


@dataclass(frozen=True)
class Frozen:
    """What inference needs of a binary layer.

    minus: bool [O, C, taps], where weights have a minus. scale, shift: float32 [O], of the outputs. move: float32 [C],
    of the inputs, or nothing. along: factors of the output's rows and columns, or nothing. mean: whether outputs are
    scaled by each sample's mean size.
    """

    minus: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    move: np.ndarray | None
    along: tuple[np.ndarray, ...]
    mean: bool


def freeze(layer: Any, norm: Any = None) -> Frozen:
    """A trained binary layer, with the batch normalisation that follows it."""
    with torch.no_grad():
        operator, weight = layer.operator, layer.weight
        scale = operator.scale(weight)
        scale = weight.new_ones(len(weight)) if scale is None else scale
        shift = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
        if norm is not None:
            scale, shift = folded(scale, layer.bias, norm)
        minus = (operator.signs(weight) < 0).reshape(*weight.shape[:2], -1)
        move = operator.shift()
        return Frozen(
            minus.cpu().numpy(), _floats(scale), _floats(shift), None if move is None else _floats(move),
            tuple(_floats(a) for a in operator.places()), operator.mean,
        )  # fmt: skip


def _floats(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy().copy()


class _Packed(nn.Module):
    """groups: of channels, each with its own weights."""

    def __init__(self, frozen: Frozen, channels: int, groups: int):
        super().__init__()
        self.frozen, self.channels, self.groups = frozen, channels, groups
        self.move = np.zeros(channels, np.float32) if frozen.move is None else frozen.move
        words = kernels.pack_bits(frozen.minus.swapaxes(1, 2))  # [O, taps, words]
        each = len(words) // groups
        self.words = [words[g * each : (g + 1) * each].reshape(each, -1) for g in range(groups)]
        self.bits = math.prod(frozen.minus.shape[1:])

    def factor(self, x: Tensor, rows: int) -> np.ndarray:
        """A number for each row of outputs."""
        if not self.frozen.mean:
            return np.ones(1, np.float32)
        mean = x.abs().mean(tuple(range(1, x.ndim))).reshape(-1)  # of all, where there is one sample alone
        return mean.repeat_interleave(rows // max(1, len(mean))).numpy()


class PackedBinaryLinear(_Packed):
    def __init__(self, frozen: Frozen):
        self.out_features, self.in_features = frozen.minus.shape[:2]
        super().__init__(frozen, self.in_features, 1)
        self.panels = kernels.panels(self.words.pop())

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1:] != (self.in_features,):
            raise BadInput("input", f"shape {tuple(input.shape)}", f"[.., {self.in_features}]")
        x = input.detach().float().contiguous()
        rows = x.reshape(-1, self.in_features)
        signs = kernels.pack_rows(rows.numpy(), self.move)
        frozen, factor = self.frozen, self.factor(x, len(rows))
        out = kernels.rows_out(signs, self.panels, self.bits, frozen.scale, frozen.shift, factor)
        return torch.from_numpy(out).reshape(*input.shape[:-1], self.out_features).to(input.dtype)


class PackedBinaryConv(_Packed):
    """One or two dimensions; what zero padding adds to products of signs is taken off again."""

    def __init__(self, frozen: Frozen, like: Any):
        super().__init__(frozen, like.in_channels, like.groups)
        self.out_channels, self.dimensions = like.out_channels, len(like.kernel_size)
        self.size, self.stride, self.dilation = (
            _pair(v, 1) for v in (like.kernel_size, like.stride, like.dilation)
        )
        sides = like._reversed_padding_repeated_twice  # of the last dimension first
        self.around = None if like.padding_mode == "zeros" else (list(sides), like.padding_mode)
        self.padding = (
            [0] * 4 if self.around else [*sides, *[0] * (4 - len(sides))]
        )  # left, right, top, bottom
        self.known: tuple[tuple[int, ...], list[np.ndarray]] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != self.dimensions + 2 or input.shape[1] != self.channels:
            wanted = f"[B, {self.channels}, ..] of {self.dimensions + 2} dimensions"
            raise BadInput("input", f"shape {tuple(input.shape)}", wanted)
        x = input.detach().float()
        mean = self.factor(x, len(x)) if self.frozen.mean else None
        if self.around:
            x = nn.functional.pad(x, *self.around)
        high, wide = _pair(x.shape[2:], 1)
        form = self.form(high, wide)
        beyond = self.outside(form)
        flat = x.reshape(len(x), self.channels, high * wide).contiguous().numpy()
        out = np.empty((len(x), self.out_channels, form[-2] * form[-1]), np.float32)
        factor = self.places(form) if mean is None else mean[:, None]
        each, every = self.channels // self.groups, self.out_channels // self.groups
        for g, words in enumerate(self.words):
            some = slice(g * each, (g + 1) * each)
            signs = kernels.pack_maps(np.ascontiguousarray(flat[:, some]), self.move[some])
            kernels.maps_out(
                signs,
                words,
                self.bits,
                form,
                beyond[g],
                self.frozen.scale,
                self.frozen.shift,
                factor,
                out,
                g * every,
            )
        return (
            torch.from_numpy(out)
            .reshape(len(x), self.out_channels, *form[-self.dimensions :])
            .to(input.dtype)
        )

    def form(self, high: int, wide: int) -> tuple[int, ...]:
        left, right, top, bottom = self.padding
        out = []
        for i, n in enumerate((high + top + bottom, wide + left + right)):
            out.append((n - self.dilation[i] * (self.size[i] - 1) - 1) // self.stride[i] + 1)
        if min(out) < 1:
            raise BadInput("size of the input", f"{high} x {wide}", "at least the kernel's")
        return (high, wide, *self.size, *self.stride, *self.dilation, top, left, *out)

    def outside(self, form: tuple[int, ...]) -> list[np.ndarray]:
        """Kept for the last size."""
        if self.known is None or self.known[0] != form:
            signs = 1 - 2 * self.frozen.minus.astype(np.int32)
            each = self.out_channels // self.groups
            parts = [signs[g * each : (g + 1) * each] for g in range(self.groups)]
            self.known = form, [kernels.outside(s, form) for s in parts]
        return self.known[1]

    def places(self, form: tuple[int, ...]) -> np.ndarray:
        """[1, P]: what is learned for rows and columns."""
        along = self.frozen.along
        if not along:
            return np.ones((1, 1), np.float32)
        if tuple(map(len, along)) != form[-self.dimensions :]:
            wanted = f"outputs of {[len(a) for a in along]}: learned scales of rows and columns fix the size"
            raise BadInput("size of the input", f"outputs of {list(form[-self.dimensions :])}", wanted)
        row, column = along if self.dimensions == 2 else (np.ones(1, np.float32), along[0])
        return np.outer(row, column).reshape(1, -1)


def _pair(values: Sequence[int], first: int) -> tuple[int, int]:
    found = tuple(values)
    return (found[0], found[1]) if len(found) == 2 else (first, found[0])


def packed_layer(frozen: Frozen, like: Any) -> nn.Module:
    """In the place of `like`, the float or binary layer."""
    return PackedBinaryLinear(frozen) if isinstance(like, nn.Linear) else PackedBinaryConv(frozen, like)


def put(module: nn.Module, name: str, layer: nn.Module) -> None:
    """In all places where the module has the part of that name."""
    old = module.get_submodule(name)
    for path, part in list(module.named_modules(remove_duplicate=False)):
        if part is old:
            parent, _, last = path.rpartition(".")
            setattr(module.get_submodule(parent), last, layer)
