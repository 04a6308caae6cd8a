"""Whole numbers coded by where they are expected, each with a middle and a width of its own; constriction is the coder.

Middles are told in sixteenths of a step, widths as places in a table of eighths of octaves, and chances come out of one
table of whole numbers made with decimal arithmetic: nothing depends on how a machine rounds. The curve is a Gaussian
with a 64th part of one that is four times as wide, so that strays stay cheap.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.optional import lazy

if TYPE_CHECKING:
    from numpy.typing import NDArray

constriction = lazy("constriction", extra="splats")

UNIT = 16  # of a middle, to a step
OCTAVE, LEAST, WIDTHS = 8, -4, 65  # widths are 2 ** (LEAST + place / OCTAVE)
SPAN = 32  # numbers on either side of the middle; what is farther is told apart
WIDE, RARE = 4, 64  # the second curve: how many times as wide, and one part in how many
EIGHTHS = (65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194)  # 2 ** (i / 8), of 65536
_FINE, _EDGE = 64, 24  # points of the table to a width, and widths on either side
_TOTAL = 1 << 20
_FARTHEST = 1 << 24


@cache
def curve() -> NDArray[np.int64]:
    """What is below each of 2 * _FINE * _EDGE + 1 points, in parts of 2**30."""
    with localcontext() as context:
        context.prec = 30
        step = Decimal(1) / _FINE
        points = [-(i * step) * (i * step) / 2 for i in range(_FINE * _EDGE + 1)]
        high = [p.exp() if p > -60 else Decimal(0) for p in points]
        sums, total = [Decimal(0)], Decimal(0)
        for a, b in pairwise(high):
            total += (a + b) / 2
            sums.append(total)
        half = [s / total / 2 for s in sums]  # from the middle outwards
        both = [
            half[i] * (RARE - 1) / RARE + (half[i // WIDE] * (WIDE - i % WIDE) + half[min(i // WIDE + 1, len(half) - 1)]
            * (i % WIDE)) / WIDE / RARE for i in range(len(half))
        ]  # fmt: skip
        above = [int((Decimal("0.5") + b) * (1 << 30)) for b in both]
    return np.array([(1 << 30) - a for a in above[:0:-1]] + above, np.int64)


@cache
def slopes() -> NDArray[np.int64]:
    """Of each width: points of the table to a sixteenth of a step, times 256."""
    found = []
    for place in range(WIDTHS):
        a, b = divmod(
            place + OCTAVE * LEAST, OCTAVE
        )  # 2 ** -(a + b / 8) is 2 ** (-a - 1) * 2 ** ((8 - b) / 8)
        top = _FINE // UNIT * 256 << 20
        top = top * EIGHTHS[OCTAVE - b] >> 17 if b else top
        found.append((top << -a if a < 0 else top >> a) >> 20)
    return np.array(found, np.int64)


def shares(middles: NDArray[Any], widths: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the nearest whole number to each middle [n], chances [n, 2 * SPAN + 3] of _TOTAL of what is around it); the
    first and the last are of all that is farther."""
    near = (middles + UNIT // 2) // UNIT
    edges = np.arange(-SPAN - 1, SPAN + 1) * UNIT + UNIT // 2
    off = edges + (near * UNIT - middles)[:, None]
    at = np.clip((off * slopes()[widths][:, None] + 128) >> 8, -_FINE * _EDGE, _FINE * _EDGE) + _FINE * _EDGE
    count = 2 * SPAN + 3
    below = (curve()[at] * (_TOTAL - count) >> 30) + np.arange(1, count)
    ends = np.zeros((len(middles), 1), np.int64), np.full((len(middles), 1), _TOTAL)
    return near, np.diff(np.concatenate([ends[0], below, ends[1]], 1), axis=1)


class Putter:
    """Writes numbers; `bits` is what they should take by their chances."""

    def __init__(self) -> None:
        self.coder = constriction.stream.queue.RangeEncoder()
        self.model = constriction.stream.model.Categorical(perfect=False)
        self.far: list[int] = []
        self.bits = 0.0

    def put(self, values: NDArray[Any], middles: NDArray[Any], widths: NDArray[Any]) -> None:
        if not len(values):
            return
        near, parts = shares(middles, widths)
        symbols = np.clip(values - near, -SPAN - 1, SPAN + 1) + SPAN + 1
        self.coder.encode(symbols.astype(np.int32), self.model, parts.astype(np.float32))
        self.bits -= float(np.log2(parts[np.arange(len(symbols)), symbols] / _TOTAL).sum())
        beyond = np.abs(values - near) > SPAN
        self.far += (np.abs(values - near)[beyond] - SPAN - 1).tolist()

    def stream(self) -> NDArray[np.uint8]:
        words = np.asarray(self.coder.get_compressed(), "<u4").view(np.uint8)
        rest = bytearray()
        for value in self.far:
            while value > 127:
                rest.append(value & 127 | 128)
                value >>= 7
            rest.append(value)
        head = len(rest).to_bytes(4, "little")
        return np.concatenate([np.frombuffer(head + bytes(rest), np.uint8), words])


class Getter:
    """Reads what a Putter wrote; CorruptArtefact for what none can have written."""

    def __init__(self, raw: NDArray[np.uint8]):
        rest = int.from_bytes(raw[:4].tobytes(), "little")
        if raw.size < 4 or rest > raw.size - 4 or (raw.size - 4 - rest) % 4:
            raise _wrong("its length does not fit")
        self.far = iter(_numbers(raw[4 : 4 + rest].tobytes()))
        words = raw[4 + rest :].copy().view("<u4").astype(np.uint32)
        self.coder = constriction.stream.queue.RangeDecoder(words)
        self.model = constriction.stream.model.Categorical(perfect=False)

    def get(self, middles: NDArray[Any], widths: NDArray[Any]) -> NDArray[np.int64]:
        if not len(middles):
            return np.zeros(0, np.int64)
        near, parts = shares(middles, widths)
        try:
            symbols = np.asarray(self.coder.decode(self.model, parts.astype(np.float32)), np.int64)
        except AssertionError as fault:  # how constriction says that no encoder wrote this
            raise _wrong("its words do not decode") from fault
        off = symbols - SPAN - 1
        for i in np.flatnonzero(np.abs(off) > SPAN):
            more = next(self.far, None)
            if more is None:
                raise _wrong("numbers that are far off are missing")
            off[i] += more if off[i] > 0 else -more
        return near + off

    def close(self) -> None:
        if next(self.far, None) is not None or not self.coder.maybe_exhausted():
            raise _wrong("it goes on after its end")


def _numbers(raw: bytes) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in raw:
        value |= (byte & 127) << shift
        shift += 7
        if value > _FARTHEST or shift > 28:
            raise _wrong("a number is too large")
        if not byte & 128:
            found.append(value)
            value = shift = 0
    return found


def width_of(spread: float) -> int:
    """The place in the table of widths that is nearest to a spread."""
    return min(max(round(OCTAVE * (math.log2(max(spread, 1e-9)) - LEAST)), 0), WIDTHS - 1)


def _wrong(why: str) -> CorruptArtefact:
    return CorruptArtefact("a stream of numbers", why)
