"""The steps of a coded scene, which follow from what was said before: alike when packing and unpacking.

A Gaussian's classes tell how much its colour shows in pictures, and its form. All of its steps follow from them, its
own shape and one dial: what is hardly seen may be far off, what is a ball may turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from holdall.splats.coded_near import AXIS_BITS, neighbours

CLASSES = 40
_ROOT = np.array([1.0, 1.4142135623730951])
# Steps of class 0 in dials: of logarithms of sizes, of opacities, of turns, of colours, of places (in sizes).
SCALE, ALPHA, TURN, COLOUR, PLACE = 0.95, 0.8, 1.4, 3.0, 2.1
ROUGHEST_COLOUR, ROUGHEST_FORM = 0.33, 0.5  # steps, before these factors; of coarse dials more
FINER = 20  # bits of a place below the grid, at most
_SINH = np.array(
    [
        0.03,
        0.13,
        0.25,
        0.38,
        0.52,
        0.67,
        0.82,
        1.0,
        1.18,
        1.4,
        1.6,
        1.9,
        2.1,
        2.4,
        2.8,
        3.2,
        3.6,
        4.1,
        4.7,
        5.3,
    ]
)
_LEAST_CLASS, _LESS = -20, 12


class Rough(NamedTuple):
    """How much rougher each kind of number is than it is in a coded scene, in parts of its step."""

    scale: float = 1.0
    alpha: float = 1.0
    turn: float = 1.0
    colour: float = 1.0
    place: float = 1.0


def halves(count: np.ndarray) -> np.ndarray:
    """2 ** (count / 2), exactly alike everywhere."""
    whole = np.asarray(count, np.int64)
    return np.ldexp(_ROOT[whole & 1], (whole >> 1).astype(np.int32))


def classed(seen: np.ndarray, dial: float) -> np.ndarray:
    """[N, 2] classes, whole numbers, of logarithms to base 2 [N, 2]: two octaves each; the second less the first.

    None is so low that steps are rougher than a Gaussian's own size or a plain difference of colours: what hardly shows
    where it is might show elsewhere.
    """
    rough = np.ceil(np.log2([dial / ROUGHEST_COLOUR, dial / max(ROUGHEST_FORM, 4 * np.sqrt(dial))]))
    found = np.maximum(np.rint(seen / 2), rough)
    first = np.clip(found[:, 0], _LEAST_CLASS, _LEAST_CLASS + CLASSES - 1)
    return np.stack([first - _LEAST_CLASS, np.clip(found[:, 1] - first, -_LESS, _LESS)], 1)


def base(classes: np.ndarray, dial: float) -> np.ndarray:
    """[N] the step that others are multiples of: half an octave of step for each octave seen."""
    return dial * np.ldexp(1.0, -(classes.astype(np.int32) + _LEAST_CLASS))


def bounded(steps: np.ndarray, most: float) -> np.ndarray:
    return np.minimum(np.maximum(steps, 1e-6), most)


def turn_steps(scales: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(needle [N], [N, 2] of the axis that stands out and of the turn around it), from scales as they decode."""
    a, b, c = scales.T
    needle = a - b > b - c
    main = np.where(needle, a - (b + c) / 2, (a + b) / 2 - c)
    minor = np.where(needle, b - c, a - b)
    shown = _SINH[np.clip(np.stack([main, minor], 1) * 8, 0, len(_SINH) - 1).astype(np.int64)]
    found = bounded(TURN * steps[:, None] / shown, 1.5)
    found[:, 1] = np.where(found[:, 1] > 1.3, 4.0, found[:, 1])
    return needle, found


def finer(scales: np.ndarray, classes: np.ndarray, below: float) -> np.ndarray:
    """Bits below the grid of each place, from the step that its size asks for: the smallest axis rules, softened.
    below: of a Gaussian of size 1 in the class that has steps of one dial."""
    size = 1.4426950408889634 * (
        0.1 * scales[:, 0] + 0.3 * scales[:, 1] + 0.6 * scales[:, 2]
    )  # an octave is 1
    return np.clip(np.rint(below + (classes + _LEAST_CLASS) - size), 0, FINER).astype(np.int64)


def below(cell: float, dial: float) -> float:
    return float(np.float32(np.log2(cell / (PLACE * dial))))


def cell(places: np.ndarray, scales: np.ndarray, seen: np.ndarray, dial: float, rough: float = 1.0) -> float:
    """The side of the grid's boxes: coarser than what most places ask for. Finer bits are said one by one."""
    size = scales @ (0.1, 0.3, 0.6) * 1.4426950408889634
    asked = size - classed(seen, dial).sum(1) - _LEAST_CLASS + np.log2(PLACE * dial * rough)
    wide = float((places.max(0) - places.min(0)).max())
    wanted = 2.0 ** float(np.clip(np.quantile(asked, 0.7), -60, 60))
    return float(np.float32(max(wanted, wide / ((1 << AXIS_BITS) - 2), 1e-12)))


@dataclass(frozen=True)
class Near:
    """Neighbours of places: which, how much each counts, how dense it is there."""

    who: Any
    parts: Any
    dense: Any

    @classmethod
    def of(cls, places: np.ndarray) -> Near:
        who, far, around = neighbours(places)
        parts = np.where(who >= 0, 1 / (far + 1.0 + around[:, None] / 4), 0.0)
        mantissa, exponent = np.frexp(around + 1.0)
        return cls(who, parts, exponent + 2 * mantissa - 2)


def buckets(x: np.ndarray, each: float, low: float, most: int) -> np.ndarray:
    return np.clip(np.floor((x - low) / each), 0, most).astype(np.int64)
