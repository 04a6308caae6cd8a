"""Budget: the one dial of every verb."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from holdall.errors import BadInput, BudgetError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_FORM = re.compile(r"\s*([+-]?\d+(?:\.\d+)?|[+-]?\.\d+)\s*(%|bits?|[kmgt]?i?b|)\s*", re.IGNORECASE)
_WANTED = 'a size ("45MB", "1.5GiB"), a share ("25%") or bits a number ("3bit")'


@dataclass(frozen=True)
class Budget:
    """How much may be used: exactly one of bytes, a fraction of the original, or bits an element.

    Fractions are exact (`fractions.Fraction`), so "29%" of 100 is 29 and not 28.

    >>> Budget.parse("25%").count(1001)
    250
    >>> Budget.parse("1.5MB").limit(original=10**9)
    1500000
    """

    bytes: int | None = None
    fraction: Fraction | None = None
    bits: Fraction | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.bytes, self.fraction, self.bits) if v is not None]
        if len(given) != 1:
            raise BadInput("budget", str(self.__dict__), "exactly one of bytes, fraction, bits")
        if given[0] <= 0:
            raise BadInput("budget", str(given[0]), f"more than nothing: {_WANTED}")

    @classmethod
    def parse(cls, text: str | int | float | Fraction | Budget | None) -> Budget | None:
        """ "25%", "1.5GB", "3bit", 45_000_000 (bytes), 0.25 (a share); None stays None (the paper's own)."""
        if text is None or isinstance(text, Budget):
            return text
        if isinstance(text, bool):
            raise BadInput("budget", text, _WANTED)
        if isinstance(text, int):
            return cls(bytes=text)
        if isinstance(text, float | Fraction):
            if not 0 < text <= 1:
                raise BadInput("budget", str(text), f"a share above 0 and at most 1.0, or {_WANTED}")
            return cls(fraction=Fraction(str(text)))
        match = _FORM.fullmatch(text)
        if not match:
            raise BadInput("budget", repr(text), _WANTED)
        number, unit = Fraction(match[1]), match[2].lower()
        if unit == "%":
            return cls(fraction=number / 100)
        if unit in ("bit", "bits"):
            return cls(bits=number)
        if unit == "" and number.denominator != 1:
            raise BadInput("budget", repr(text), f"a unit: {_WANTED}")
        return cls(bytes=floor(number * _UNITS[unit]))

    def limit(self, original: int, elements: int | None = None) -> int:
        """The bytes allowed for something that has `original` bytes and `elements` numbers."""
        if self.bytes is not None:
            return self.bytes
        if self.fraction is not None:
            return floor(self.fraction * original)
        if elements is None:
            raise BadInput("budget", str(self), "bytes or a share: this has no fixed count of numbers")
        assert self.bits is not None
        return floor(self.bits * elements / 8)

    def count(self, n: int, each: int | None = None, elements: int = 1) -> int:
        """How many of `n` equal things fit, each of `each` bytes holding `elements` numbers. 0 is an error."""
        if self.fraction is not None:
            kept = floor(self.fraction * n)
            least = f"{float(100 / Fraction(n)):.4g}%" if n else "anything"
            if kept < 1:
                raise BudgetError(str(self), least, "", why=f"one of {n}")
            return min(kept, n)
        if each is None:
            raise BadInput("budget", str(self), 'a share ("25%"): the size of one item is not known here')
        kept = self.limit(original=n * each, elements=n * elements) // each
        if kept < 1:
            raise BudgetError(self.limit(n * each, n * elements), each, "bytes", why="one item")
        return min(kept, n)

    def split(self, weights: Sequence[float], floor: Sequence[int] | int = 0) -> list[int]:
        """Share `bytes` in proportion to `weights`, nobody below `floor`; the sum is exactly `bytes`."""
        if self.bytes is None:
            raise BadInput("budget", str(self), "bytes to split (use limit() first)")
        floors = [floor] * len(weights) if isinstance(floor, int) else list(floor)
        return apportion(self.bytes, weights, floors)

    def __str__(self) -> str:
        if self.bytes is not None:
            return f"{self.bytes}B"
        if self.fraction is not None:
            return f"{_decimal(self.fraction * 100)}%"
        return f"{_decimal(self.bits or Fraction(0))}bit"


def apportion(total: int, weights: Sequence[float], floors: Sequence[int]) -> list[int]:
    """Whole-number shares of `total` by largest remainder, above `floors`; they sum to `total`."""
    if not weights:
        return []
    if len(floors) != len(weights) or any(w < 0 for w in weights):
        raise BadInput("split", f"{list(weights)[:5]}", "weights of at least 0, and one floor for each")
    if sum(floors) > total:
        raise BudgetError(total, sum(floors), "bytes")
    exact = [Fraction(w) for w in weights]
    if not sum(exact):
        exact = [Fraction(1)] * len(exact)
    shares = [0] * len(exact)
    free, left = set(range(len(exact))), total
    while True:  # whoever falls under their floor is given it, and the rest is shared anew
        mass = sum((exact[i] for i in free), Fraction(0))
        held = {i for i in free if exact[i] * left < floors[i] * mass or not mass}
        if not held:
            break
        for i in held:
            shares[i] = floors[i]
        free -= held
        left = total - sum(shares[i] for i in range(len(exact)) if i not in free)
    if not free:  # all weights left were zero: what remains goes to the first
        shares[0] += left
        return shares
    mass = sum((exact[i] for i in free), Fraction(0))
    for i in free:
        shares[i] = int(exact[i] * left / mass)
    rest = left - sum(shares[i] for i in free)
    by_remainder = sorted(free, key=lambda i: (-(exact[i] * left / mass - shares[i]), i))
    for i in by_remainder[:rest]:
        shares[i] += 1
    return shares


def _decimal(x: Fraction) -> str:
    return f"{float(x):.10g}"
