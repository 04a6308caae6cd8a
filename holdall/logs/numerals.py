"""Numbers in text: which columns are numbers, their values, and the exact text back (numba where it loops)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

_MOST_DIGITS = 18
_LONGEST = 40


@njit(cache=True, nogil=True)
def integers(text: Any, spans: Any, which: Any) -> Any:
    """Values of canonical decimal integers (no leading zero, "-0" is none); the flag says whether all are."""
    out = np.zeros(which.size, np.int64)
    for i in range(which.size):
        a, b = spans[which[i], 0], spans[which[i], 1]
        minus = b > a and text[a] == 45
        a += minus
        if b - a < 1 or b - a > _MOST_DIGITS or (text[a] == 48 and (b - a > 1 or minus)):
            return out, False
        v = np.int64(0)
        for k in range(a, b):
            if text[k] < 48 or text[k] > 57:
                return out, False
            v = v * 10 + np.int64(text[k] - 48)
        out[i] = -v if minus else v
    return out, True


@dataclass(frozen=True)
class Form:
    """Values that all look alike: digits and constant separators at fixed places, such as 20:35:18,250."""

    mask: bytes  # digits as "0", separators as they are
    widths: tuple[int, ...]  # of the numbers in it, from left to right
    radices: tuple[int, ...]  # how many values each may take

    def places(self) -> list[int]:
        """Where each number starts."""
        digits = [k for k, c in enumerate(self.mask) if c == 48]
        return [digits[d] for d in np.cumsum([0, *self.widths])[:-1]]

    def values(self, text: np.ndarray, starts: np.ndarray) -> np.ndarray:
        total = np.zeros(starts.size, np.int64)
        for at, width, radix in zip(self.places(), self.widths, self.radices, strict=True):
            total = total * radix + _number(text, starts + at, width)
        return total

    def top(self, text: np.ndarray, starts: np.ndarray) -> int:
        """No value is larger; a Python integer, for it may be larger than 64 bits."""
        total = 0
        for at, width, radix in zip(self.places(), self.widths, self.radices, strict=True):
            total = total * radix + int(_number(text, starts + at, width).max())
        return total

    def sound(self) -> bool:
        """Whether a form read from a file can be trusted."""
        digits = self.mask.count(b"0")
        return (
            1 <= len(self.mask) <= _LONGEST
            and len(self.widths) == len(self.radices) >= 1
            and all(w >= 1 for w in self.widths)
            and sum(self.widths) == digits <= _LONGEST
            and max(self.widths) <= _MOST_DIGITS
            and all(1 <= r <= 10**w for w, r in zip(self.widths, self.radices, strict=True))
            and b"\n" not in self.mask
        )


@njit(cache=True, nogil=True)
def _mask(text: Any, starts: Any, stops: Any) -> Any:
    """Digits as "0" and separators as they are, where all values have both at the same places; else nothing."""
    length = stops[0] - starts[0]
    out = np.empty(min(max(length, 0), _LONGEST), np.uint8)
    if length < 1 or length > _LONGEST:
        return out[:0]
    for k in range(length):
        c = text[starts[0] + k]
        out[k] = 48 if 48 <= c <= 57 else c
    for i in range(starts.size):
        if stops[i] - starts[i] != length:
            return out[:0]
        for k in range(length):
            c = text[starts[i] + k]
            if out[k] != (48 if 48 <= c <= 57 else c):
                return out[:0]
    return out


def find_form(text: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Form | None:
    """The one form of all values, or None."""
    mask = _mask(text, starts, stops).tobytes()
    if not mask:
        return None
    runs = [len(r) for r in "".join("0" if c == 48 else " " for c in mask).split()]
    clocks = [x for w in runs for x in ((2, 2, 2) if w == 6 else (w,))]
    if not runs or max(runs) > _MOST_DIGITS:
        return None
    for widths in (clocks, runs):
        form = Form(mask, tuple(widths), tuple(10**w for w in widths))
        clocked = _clocked(form, text, starts)
        if clocked is not None:
            break
    return (clocked or form) if (clocked or form).top(text, starts) < 1 << 61 else None


def _clocked(form: Form, text: np.ndarray, starts: np.ndarray) -> Form | None:
    """The same form with hours, minutes and seconds counted as such, if three numbers can be those."""
    tops = [
        int(_number(text, starts + at, w).max()) for at, w in zip(form.places(), form.widths, strict=True)
    ]
    for k in range(len(tops) - 2):
        if form.widths[k : k + 3] == (2, 2, 2) and tops[k] < 24 and tops[k + 1] < 60 and tops[k + 2] < 60:
            radices = list(form.radices)
            radices[k : k + 3] = [24, 60, 60]
            return Form(form.mask, form.widths, tuple(radices))
    return None


@njit(cache=True, nogil=True)
def _number(text: Any, starts: Any, width: Any) -> Any:
    v = np.zeros(starts.size, np.int64)
    for i in range(starts.size):
        for k in range(width):
            v[i] = v[i] * 10 + (np.int64(text[starts[i] + k]) - 48)
    return v
