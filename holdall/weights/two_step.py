"""The two-step product of whole numbers: sums of a group stay whole, and become floats by adding bits, not converting.

    y[t, o] = sum over groups k of step_x[t, k] step_w[o, k] sum over i in k of (q[o, i] - zero[o, k]) p[t, i]

The inner sum starts at the bits of 12582912.0 (2^23 + 2^22): as long as it stays below 2^22 in size, its bits read as a
float are 12582912.0 plus the sum, exactly. This is the truth that kernels of mixed rows are compared with.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.errors import BadInput

MAGIC, MAGIC_BITS = np.float32(12582912.0), np.int32(0x4B400000)
LIMIT = 1 << 22
_ACTIVE = 127


def to_float(sums: np.ndarray) -> np.ndarray:
    """Whole numbers of at most 2^22 in size, int32, that began at MAGIC_BITS, as float32."""
    return np.asarray(sums.astype(np.int32).view(np.float32) - MAGIC)


def largest(bits: int, group: int) -> int:
    """How large a group's sum can get: 4-bit codes reach 15 from their zero, symmetric 8-bit ones 128."""
    return group * _ACTIVE * (128 if bits == 8 else (1 << bits) - 1)


def activations(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8 [T, I], steps float32 [T, G]): symmetric, per token and group of columns."""
    starts = np.arange(0, x.shape[1], group)
    step = np.maximum(np.maximum.reduceat(np.abs(x), starts, axis=1) / _ACTIVE, 1e-30).astype(np.float32)
    wide = np.repeat(step, np.diff(np.append(starts, x.shape[1])), axis=1)
    return np.rint(x / wide).astype(np.int8), step


def product(
    p: np.ndarray,
    step_x: np.ndarray,
    codes: np.ndarray,
    step_w: np.ndarray,
    zero: np.ndarray,
    group: int,
    bits: int,
) -> np.ndarray:
    """y [T, O] float32 of int8 p [T, I] and uint8 codes [O, I], by groups of columns."""
    if largest(bits, group) >= LIMIT:
        raise BadInput("group", f"{group} columns of {bits} bits", f"sums below {LIMIT}")
    out = np.zeros((len(p), len(codes)), np.float32)
    whole = zero.astype(np.int32)
    _product(p, step_x, codes, step_w.astype(np.float32), whole, group, out)
    return out


@njit(nogil=True, cache=True)
def _product(p, step_x, codes, step_w, zero, group, out):  # type: ignore[no-untyped-def]
    columns = p.shape[1]
    sums = np.zeros(1, np.int32)
    for t in range(len(p)):
        for o in range(len(codes)):
            total = np.float32(0)
            for k in range(step_w.shape[1]):
                sums[0] = MAGIC_BITS
                for i in range(k * group, min(columns, (k + 1) * group)):
                    sums[0] += (np.int32(codes[o, i]) - zero[o, k]) * np.int32(p[t, i])
                total += (sums.view(np.float32)[0] - MAGIC) * step_w[o, k] * step_x[t, k]
            out[t, o] = total
