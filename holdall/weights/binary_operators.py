"""Eight ways to make a layer binary: what is a sign, what scales it, and what gradient a sign is given.

Signs are exactly -1 and +1, and 0 has the sign +1. An operator holds what a layer learns besides its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

Slope = Callable[[Tensor], Tensor]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Slope) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)  # a fifth of the time that torch.where takes

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return above[0] * ctx.slope(x), None


def sign(x: Tensor, slope: Slope) -> Tensor:
    """-1 or +1, with the gradient that `slope` says."""
    made: Tensor = _Sign.apply(x, slope)
    return made


def straight(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def clipped(x: Tensor) -> Tensor:
    """1 on [-1, 1], that of a clipped line."""
    return (x.abs() <= 1).to(x.dtype)


def quadratic(x: Tensor) -> Tensor:
    """2 - 2 |x| on [-1, 1], that of two parabolas."""
    return x.abs().mul_(-2).add_(2).clamp_(min=0)


def fourier(terms: int, omega: float = 0.1) -> Slope:
    """On [-1, 1] that of a square wave's Fourier series, (4 w / pi) sum of cos((2 i + 1) w x) for i = 0 ... terms."""

    def slope(x: Tensor) -> Tensor:
        angle = omega * x
        angle += (angle == 0).to(x.dtype).mul_(1e-5)
        total = torch.sin(angle * (2 * (terms + 1))).div_(torch.sin(angle))  # twice the sum, in one term
        return total.mul_(2 * omega / math.pi).mul_(x.abs() <= 1)

    return slope


class Operator(torch.nn.Module):
    """BNN: plain signs on both sides, the gradient of a clipped line."""

    name: ClassVar[str] = "bnn"
    slope: Slope = staticmethod(clipped)
    stored_scale: ClassVar[bool] = False  # whether there is a number for each output channel
    fixed: ClassVar[bool] = False  # whether the size of the inputs is fixed
    moves: ClassVar[bool] = False  # whether inputs are moved before their sign is taken
    mean: ClassVar[bool] = False  # whether outputs are scaled by each sample's mean size

    def __init__(self, weight: Tensor, channels: int, place: tuple[int, ...] = ()):
        super().__init__()
        self.flat = weight.ndim == 2
        self.inner = tuple(range(1, weight.ndim))
        self.done = 0.0  # the share of the training that is over
        self.place = place  # the output's size beyond channels, where it matters
        self.make(weight.detach(), channels)

    def make(self, weight: Tensor, channels: int) -> None:
        """What is learned."""

    def signs(self, w: Tensor) -> Tensor:
        return sign(w, clipped)

    def scale(self, w: Tensor) -> Tensor | None:
        """A number for each output channel [O]."""
        return None

    def places(self) -> list[Tensor]:
        """A factor for each row and each column of the output, or nothing."""
        return []

    def shift(self) -> Tensor | None:
        """What each input channel is moved by [C] before its sign is taken."""
        return None

    def forward(self, a: Tensor) -> Tensor:
        """Signs of a layer's inputs, [B, C, ...] or, where the layer is linear, [..., C]."""
        moved = self.shift()
        if moved is not None:
            a = a + (moved if self.flat else moved.view(-1, *[1] * len(self.inner[1:])))
        return sign(a, self.slope)

    def factor(self, a: Tensor) -> Tensor | None:
        """A number for each sample [B, 1, ...]; no gradient goes through it."""
        if not self.mean:
            return None
        return a.detach().abs().mean(tuple(range(1, a.ndim)), keepdim=True)


class XNOR(Operator):
    """Weights by their mean size, of which the gradient knows; inputs by each sample's; linear rows are centred."""

    name = "xnor"
    stored_scale = True
    mean = True

    def centred(self, w: Tensor) -> Tensor:
        return w - w.mean(1, keepdim=True) if self.flat else w

    def signs(self, w: Tensor) -> Tensor:
        return sign(self.centred(w), clipped)

    def scale(self, w: Tensor) -> Tensor:
        return self.centred(w).abs().mean(self.inner)


class DoReFa(Operator):
    """Weights by the mean size of each output channel."""

    name = "dorefa"
    stored_scale = True

    def scale(self, w: Tensor) -> Tensor:
        return w.detach().abs().mean(self.inner)


class BiReal(DoReFa):
    """The same, and the gradient of two parabolas for inputs."""

    name = "bireal"
    slope = staticmethod(quadratic)


class XNORPlusPlus(Operator):
    """Outputs by what is learned for each channel, each row and each column."""

    name = "xnor++"
    stored_scale = True
    fixed = True

    def make(self, weight: Tensor, channels: int) -> None:
        self.channel = Parameter(weight.abs().mean(self.inner))
        self.along = torch.nn.ParameterList(Parameter(weight.new_ones(n)) for n in self.place)

    def scale(self, w: Tensor) -> Tensor:
        return self.channel

    def places(self) -> list[Tensor]:
        return list(self.along)


class ReActNet(BiReal):
    """Bi-Real, and inputs are moved, by as much as is learned for each channel, before their sign is taken."""

    name = "reactnet"
    moves = True

    def make(self, weight: Tensor, channels: int) -> None:
        self.beta = Parameter(weight.new_zeros(channels))

    def shift(self) -> Tensor:
        return self.beta


class ReCU(Operator):
    """Weights standardised and clamped, more and more loosely; inputs by their spread; learned output scales."""

    name = "recu"
    slope = staticmethod(quadratic)
    stored_scale = True

    def make(self, weight: Tensor, channels: int) -> None:
        self.alpha = Parameter(weight.abs().mean(self.inner))

    def tau(self) -> float:
        return 0.85 * (0.99 / 0.85) ** self.done

    def signs(self, w: Tensor) -> Tensor:
        spread = w.std(self.inner, keepdim=True, correction=0) / (2 * math.sqrt(2))
        even = (w - w.mean(self.inner, keepdim=True)) / spread.clamp(min=1e-12)
        q = float(-even.detach().abs().mean() * math.log(2 - 2 * self.tau()))
        return sign(even.clamp(-q, q), straight)

    def scale(self, w: Tensor) -> Tensor:
        return self.alpha

    def forward(self, a: Tensor) -> Tensor:
        if self.training:  # the sign is the same without, but not its gradient
            a = a / a.std(tuple(range(1, a.ndim)), keepdim=True, correction=0).clamp(min=1e-5)
        return super().forward(a)


class FDA(DoReFa):
    """A gradient by Fourier series with more and more terms, and a small network that fades out of the inputs."""

    name = "fda"

    def make(self, weight: Tensor, channels: int) -> None:
        # here and not at the first input: an optimiser that was made before would never train it
        few = max(1, channels // 64)
        self.into = torch.nn.Linear(channels, few, device=weight.device, dtype=weight.dtype)
        self.out = torch.nn.Linear(few, channels, device=weight.device, dtype=weight.dtype)

    def terms(self) -> int:
        return round(9 + 9 * self.done)

    def fading(self) -> float:
        return 0.1 * (1 + math.cos(math.pi * self.done)) / 2

    def noise(self, a: Tensor) -> Tensor:
        last = a if self.flat else a.movedim(1, -1)
        made = self.out(torch.relu(self.into(last)))
        return (made if self.flat else made.movedim(-1, 1)) + 0.1 * torch.sin(a)

    def forward(self, a: Tensor) -> Tensor:
        signs = sign(a, fourier(self.terms()))
        return signs + self.fading() * self.noise(a) if self.training else signs


OPERATORS: dict[str, type[Operator]] = {
    o.name: o for o in (Operator, XNOR, DoReFa, BiReal, XNORPlusPlus, ReActNet, ReCU, FDA)
}
