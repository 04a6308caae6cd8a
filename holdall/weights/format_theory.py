"""What eight-bit formats lose on numbers of a known distribution, and what they cost in silicon.

The squared error is summed over the cells of the grid, sum of the integral of (x - g)^2 p(x), and the tails beyond the
clipping value, which is chosen for the least. No sampling: tests compare with samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from holdall.errors import BadInput
from holdall.weights.float_formats import INT8, Format

_NODES = 12  # of each half of a cell
_DOUBLINGS = 60  # of the clipping value, until which a tail is followed


@dataclass(frozen=True)
class Density:
    """An even density: what it is at x >= 0, its variance, and where it ends."""

    at: Callable[[np.ndarray], np.ndarray]
    power: float
    end: float = math.inf


UNIFORM = Density(lambda x: np.full(x.shape, 0.5), 1 / 3, 1.0)
GAUSSIAN = Density(lambda x: np.asarray(np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)), 1.0)


def student(freedom: float) -> Density:
    """Student's t: heavy tails, the heavier the fewer degrees of freedom (above 2, or there is no variance)."""
    if freedom <= 2:
        raise BadInput("degrees of freedom", freedom, "more than 2")
    height = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(
        freedom * math.pi
    )
    return Density(
        lambda x: np.asarray(height * (1 + x * x / freedom) ** (-(freedom + 1) / 2)), freedom / (freedom - 2)
    )


def expected_error(form: Format, p: Density, c: float) -> float:
    """E (x - Q(x))^2."""
    grid = form.positive() * c
    edges = np.stack([(grid[1:] + grid[:-1]) / 2, grid[1:]], axis=1).reshape(
        -1
    )  # halves of cells, where p is smooth
    tail = c * 2.0 ** np.arange(1, _DOUBLINGS)
    edges = np.minimum(np.concatenate([[0.0], edges, tail]), p.end)
    near = np.concatenate([np.repeat(grid, 2)[1:-1], np.full(len(tail), c)])
    at, weight = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges) / 2
    x = edges[:-1, None] + half[:, None] * (1 + at)
    pieces = (np.square(x - near[:, None]) * p.at(x) * weight).sum(1) * half
    return 2 * float(pieces.sum())


def best(form: Format, p: Density, top: float = 1e5) -> tuple[float, float]:
    """(dB, c): the signal-to-noise ratio at the best clipping value."""
    found = np.geomspace(0.3, top, 120)
    for _ in range(3):
        at = int(np.argmin([expected_error(form, p, float(c)) for c in found]))
        found = np.linspace(found[max(0, at - 1)], found[min(len(found) - 1, at + 1)], 25)
    c = float(min(found, key=lambda c: expected_error(form, p, float(c))))
    return 10 * math.log10(p.power / expected_error(form, p, c)), c


def product_bits(form: Format) -> int:
    """Width of an exact product of two numbers: 16 for INT8, and for floats of all alignments."""
    if form.exponent == 0:
        return 2 * form.bits
    return 2 * (form.mantissa + 1) + 2 * ((1 << form.exponent) - 2)


def gates(form: Format, length: int = 1024) -> float:
    """Area of a multiply-accumulate unit for sums of `length`, in a unit of its own: only ratios mean anything.

    Multiplier (M + 1)^2, an adder of exponents, a shifter that aligns products, and an accumulator as wide as exact
    sums need. A derivation, not the paper's: it measured 50 % to 180 % more than INT8 for its floats.
    """
    width = product_bits(form)
    shifter = width * math.log2(width) if form.exponent else 0.0
    return (form.mantissa + 1) ** 2 + form.exponent + shifter + width + math.log2(length)


def dearer(form: Format, length: int = 1024) -> float:
    """How much more than INT8: 0.5 is half as much again."""
    return gates(form, length) / gates(INT8, length) - 1


def recommended(ratios: dict[str, float], limit: float) -> str:
    """By each format's signal-to-noise ratio in dB: INT8, unless the best float is more than `limit` dB better."""
    other = max((n for n in ratios if n != INT8.name), key=lambda n: ratios[n])
    return other if ratios[other] - ratios[INT8.name] > limit else INT8.name
