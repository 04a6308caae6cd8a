"""The search for a range in wide registers: squared errors of every row at every range, in float32.

`float_formats.naive_errors` is its truth. Values are divided by the unit of the format's smallest numbers; above two
they are rounded to M mantissa bits by integer arithmetic on their own bits, below it to whole steps.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def errors_whole(x, tops, fractions, levels, out):  # type: ignore[no-untyped-def]
    """out [R, F]: of x [R, I] in `levels` steps on either side of zero, up to tops [R] * fractions [F]."""
    for r in range(x.shape[0]):
        row = x[r]
        for f in range(len(fractions)):
            limit = tops[r] * fractions[f]
            step = np.float32(limit / levels)
            inverse, top = np.float32(1) / step, np.float32(levels)
            total = np.float32(0)
            for i in range(len(row)):
                size = abs(row[i])
                near = np.rint(min(size * inverse, top)) * step
                total += (size - near) * (size - near)
            out[r, f] = total


@njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def errors_float(x, tops, fractions, exponent, mantissa, out):  # type: ignore[no-untyped-def]
    """out [R, F]: of x [R, I] in floats of so many bits, up to tops [R] * fractions [F]."""
    drop = np.int32(23 - mantissa)
    half, one, mask = np.int32((1 << (drop - 1)) - 1), np.int32(1), np.int32(-(1 << drop))
    fine, coarse = np.float32(2.0 ** (mantissa - 1)), np.float32(2.0 ** (1 - mantissa))
    reach = (2 - 2.0**-mantissa) * 2.0 ** ((1 << exponent) - 1)
    top = np.float32(reach)
    scaled = np.empty(x.shape[1], np.float32)
    bits = scaled.view(np.int32)
    rounded = np.empty(x.shape[1], np.int32)
    large = rounded.view(np.float32)
    for r in range(x.shape[0]):
        row = x[r]
        for f in range(len(fractions)):
            unit = np.float32(tops[r] * fractions[f] / reach)
            inverse = np.float32(1) / unit
            for i in range(len(row)):
                scaled[i] = min(abs(row[i]) * inverse, top)
            for i in range(len(row)):
                rounded[i] = (bits[i] + half + ((bits[i] >> drop) & one)) & mask
            total = np.float32(0)
            for i in range(len(row)):
                small = np.rint(scaled[i] * fine) * coarse
                near = (large[i] if scaled[i] >= np.float32(2) else small) * unit
                far = abs(row[i]) - near
                total += far * far
            out[r, f] = total
