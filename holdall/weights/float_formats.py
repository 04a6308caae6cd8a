"""Eight-bit number formats: whole numbers and ExMy floats, with any range, exactly as hardware rounds them.

A float format of E exponent and M mantissa bits and clipping value c has the bias
b = 2^E - log2(c) + log2(2 - 2^-M) - 1; its numbers are 2^(p - M - b) apart for p = max(floor(log2|x| + b), 1), and no
code is kept for infinity or NaN. INT8 is the same with one step everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdall.errors import BadInput

FRACTIONS = tuple(0.1 + 1.1 * i / 99 for i in range(100))  # of max|x|, tried for c


_LIFTS = {4: 3, 5: 9}  # by exponent bits


@dataclass(frozen=True)
class Format:
    """exponent: bits, 0 for whole numbers; mantissa: bits; with the sign, one more."""

    name: str
    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    def positive(self) -> np.ndarray:
        """Its numbers from 0 up, for which the largest is 1 (float64 [2^(E + M)])."""
        e, m = self.exponent, self.mantissa
        if e == 0:
            return np.arange(1 << m) / ((1 << m) - 1)
        codes = np.arange(1 << (e + m))
        power, part = codes >> m, (codes & ((1 << m) - 1)) / (1 << m)
        found = np.where(power == 0, part * 2.0, 1 + part) * 2.0**power
        return np.asarray(found / found[-1])

    def table(self) -> np.ndarray:
        """What each of the 2^bits codes stands for, positive ones first: exact in half precision, its top `reach`."""
        up = self.positive() * self.reach
        return np.concatenate([up, -up])

    @property
    def reach(self) -> float:
        """The largest of `table`: where half precision holds all numbers of the format, and of rows' scales most."""
        return (2 - 2.0**-self.mantissa) * 2.0 ** _LIFTS.get(self.exponent, 0)


INT8, E2M5, E3M4 = Format("INT8", 0, 7), Format("E2M5", 2, 5), Format("E3M4", 3, 4)
E4M3, E5M2 = Format("E4M3", 4, 3), Format("E5M2", 5, 2)
FORMATS = (INT8, E2M5, E3M4, E4M3, E5M2)
BY_NAME = {f.name: f for f in FORMATS}


def quantised(x: np.ndarray, form: Format, c: np.ndarray | float) -> np.ndarray:
    """x on the grid of `form` that ends at +-c (broadcast), by the formula; half to even, float64."""
    limit = np.maximum(np.asarray(c, np.float64), 1e-300)
    clipped = np.clip(np.asarray(x, np.float64), -limit, limit)
    if form.exponent == 0:
        step = limit / ((1 << form.mantissa) - 1)
        return np.asarray(np.rint(clipped / step) * step)
    unit = limit / (2 - 2.0**-form.mantissa) / 2.0 ** ((1 << form.exponent) - 1)  # 2^-b
    # frexp is exact at powers of two, where a logarithm may round down
    power = np.maximum(np.frexp(np.abs(clipped) / unit)[1] - 1, 1)
    step = np.ldexp(unit, power - form.mantissa)
    return np.asarray(np.rint(clipped / step) * step)


def codes(x: np.ndarray, form: Format, c: np.ndarray | float) -> np.ndarray:
    """uint8, places in `Format.table` of the nearest numbers."""
    limit = np.maximum(np.asarray(c, np.float64), 1e-300)
    up = form.positive()
    found = quantised(x, form, limit) / limit
    middles = (up[1:] + up[:-1]) / 2
    place = np.searchsorted(middles, np.abs(found))
    return np.asarray(place + np.where((found < 0) & (place > 0), len(up), 0), np.uint8)


def searched(x: np.ndarray, form: Format, axis: int | None = None) -> np.ndarray:
    """The c with the least squared error, of FRACTIONS of max|x|; axis: 1 for a c of each row, None for one."""
    if not np.isfinite(x).all():
        raise BadInput("numbers", "NaN or infinity", "finite numbers")
    top = np.abs(x).max(axis=axis, keepdims=True).astype(np.float64)
    rows = np.broadcast_to(top.reshape(-1), len(x)) if x.ndim == 2 else top.reshape(-1)
    found = errors(np.atleast_2d(x), form, rows)
    if axis is None:
        found = found.sum(0, keepdims=True)
    best = np.asarray(FRACTIONS)[found.argmin(1)]
    return np.asarray(top * best.reshape(top.shape))


def errors(x: np.ndarray, form: Format, tops: np.ndarray) -> np.ndarray:
    """Squared errors [R, F] of the rows of x [R, I] with ranges tops [R] * FRACTIONS [F], summed in float32."""
    from holdall.weights.format_kernels import errors_float, errors_whole

    largest = np.maximum(tops, 1e-30)[:, None]
    unit = np.ascontiguousarray(
        x / largest, np.float32
    )  # rows that end at one: no range is too small for float32
    out = np.empty((len(x), len(FRACTIONS)), np.float32)
    ends, fractions = np.ones(len(x)), np.asarray(FRACTIONS)
    if form.exponent == 0:
        errors_whole(unit, ends, fractions, (1 << form.mantissa) - 1, out)
    else:
        errors_float(unit, ends, fractions, form.exponent, form.mantissa, out)
    return out * np.square(largest)


def naive_errors(x: np.ndarray, form: Format, tops: np.ndarray) -> np.ndarray:
    """The same by the formula."""
    sums = [np.square(quantised(x, form, (tops * f)[:, None]) - x).sum(1) for f in FRACTIONS]
    return np.stack(sums, axis=1)


def sqnr(x: np.ndarray, y: np.ndarray) -> float:
    """Signal to noise in dB."""
    noise = float(np.square(np.asarray(x, np.float64) - y).sum())
    return 10 * float(np.log10(max(float(np.square(x, dtype=np.float64).sum()), 1e-300) / max(noise, 1e-300)))


# OCP's two formats, as everybody casts to them: E4M3 with 448 and one NaN, E5M2 as IEEE has it


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """uint8 codes of float32; beyond the largest, the largest (OCP's saturating mode, and torch 2.13's)."""
    return _cast(x, 4, 3, 7, 448.0, 0x7E)


def to_e5m2(x: np.ndarray) -> np.ndarray:
    """uint8 codes; beyond 61440 infinity (0x7C)."""
    return _cast(x, 5, 2, 15, 57344.0, 0x7C)


def _cast(x: np.ndarray, e: int, m: int, bias: int, top: float, beyond: int) -> np.ndarray:
    wide = np.abs(x.astype(np.float64))
    finite = np.where(np.isfinite(wide), wide, 0)
    power = np.maximum(np.frexp(finite)[1] - 1, 1 - bias)
    units = np.rint(np.ldexp(finite, m - power))  # 2^m to 2^(m + 1), below that subnormal
    code = np.where(units < 1 << m, units, (power + bias - 1) * (1 << m) + units).astype(np.int64)
    last = int(np.ldexp(top, m - int(np.frexp(top)[1]) + 1)) + (int(np.frexp(top)[1]) - 2 + bias) * (1 << m)
    code = np.where((code > last) | np.isinf(wide), beyond, code)
    code = np.where(np.isnan(wide), 0x7F, code)
    return np.asarray(code | np.where(np.signbit(x), 0x80, 0), np.uint8)


def from_e4m3(code: np.ndarray) -> np.ndarray:
    """float32; 0x7F and 0xFF are NaN."""
    found = _values(code, 3, 7)
    return np.where((code & 0x7F) == 0x7F, np.float32(np.nan), found).astype(np.float32)


def from_e5m2(code: np.ndarray) -> np.ndarray:
    """float32; 0x7C is infinity, what is above it NaN."""
    size, found = code & 0x7F, _values(code, 2, 15)
    found = np.where(size == 0x7C, np.copysign(np.inf, found), found)
    return np.where(size > 0x7C, np.float32(np.nan), found).astype(np.float32)


def _values(code: np.ndarray, m: int, bias: int) -> np.ndarray:
    size = (code & 0x7F).astype(np.int64)
    power, part = size >> m, (size & ((1 << m) - 1)) / (1 << m)
    found = np.where(power == 0, np.ldexp(part, 1 - bias), np.ldexp(1 + part, power - bias))
    return np.asarray(np.where(code & 0x80, -found, found), np.float32)
