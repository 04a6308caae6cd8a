"""Floats in numba's loops: 16 bits that widen as they are read, and an exponential that LLVM makes lanes of.

numba has no half precision on processors and calls the C library for `exp`, one number at a time. These are written
in LLVM's terms, so that its vectoriser takes them like any product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_LEAST = -88.0  # of exponents: its power of two is the first that has no place, and so is 0
_SHIFT = (
    1.5 * 2.0**23 + 127
)  # added to a number, leaves its whole part and a float's offset in the lowest bits
_TERMS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LN2 = (0.693359375, -2.12194440e-4)  # in two parts: a whole number times the first is exact


def _i(value: int) -> Any:
    return ir.Constant(_INT, value)


def _f(value: float) -> Any:
    return ir.Constant(_FLOAT, float(np.float32(value)))


def _from_half(builder: Any, bits: Any) -> Any:
    """The exponent moves by 112; what had the highest one is infinite or NaN, and keeps the highest."""
    shifted = builder.shl(builder.and_(bits, _i(0x7FFF)), _i(13))
    finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, _FLOAT), _f(2.0**112)), _INT)
    odd = builder.icmp_unsigned(">=", shifted, _i(0x0F800000))
    size = builder.select(odd, builder.or_(shifted, _i(0x7F800000)), finite)
    return builder.bitcast(builder.or_(size, builder.shl(builder.and_(bits, _i(0x8000)), _i(16))), _FLOAT)


def _wide(typingctx: Any, x: Any, brain: Any) -> Any:
    """fn(x, brain) -> float32: x is a float32, or the 16 bits of a bfloat16 (`brain`) or a half."""
    plain = isinstance(x, types.Float)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if plain:
            return args[0]
        bits = builder.zext(args[0], _INT)
        upper = builder.bitcast(builder.shl(bits, _i(16)), _FLOAT)
        return builder.select(args[1], upper, _from_half(builder, bits))

    return types.float32(types.float32 if plain else types.uint16, types.boolean), codegen


wide: Any = intrinsic(_wide)


def _narrow(typingctx: Any, x: Any) -> Any:
    """fn(x) -> uint16: the half nearest to a float32 of less than 65520, even ones of two."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INT)
        size = builder.and_(bits, _i(0x7FFFFFFF))
        odd = builder.and_(builder.lshr(size, _i(13)), _i(1))
        usual = builder.lshr(
            builder.sub(builder.add(builder.add(size, _i(0xFFF)), odd), _i(0x38000000)), _i(13)
        )
        tiny = builder.fadd(
            builder.bitcast(size, _FLOAT), _f(0.5)
        )  # its last place is that of the least halves
        small = builder.sub(builder.bitcast(tiny, _INT), _i(0x3F000000))
        half = builder.select(builder.icmp_unsigned("<", size, _i(0x38800000)), small, usual)
        sign = builder.and_(builder.lshr(bits, _i(16)), _i(0x8000))
        return builder.trunc(builder.or_(half, sign), ir.IntType(16))

    return types.uint16(types.float32), codegen


narrow: Any = intrinsic(_narrow)


def exponential(builder: Any, x: Any) -> Any:
    """LLVM's terms for `exp` of a float32 or of lanes of them."""
    kind, fast = x.type, ("contract",)
    lanes = kind.count if isinstance(kind, ir.VectorType) else 0

    def f(value: float) -> Any:
        return ir.Constant(kind, [_f(value).constant] * lanes if lanes else _f(value).constant)

    def i(value: int) -> Any:
        return ir.Constant(ir.VectorType(_INT, lanes), [value] * lanes) if lanes else _i(value)

    x = builder.select(builder.fcmp_ordered("<", x, f(_LEAST)), f(_LEAST), x)
    shifted = builder.fadd(builder.fmul(x, f(1 / math.log(2)), flags=fast), f(_SHIFT), flags=fast)
    bits = builder.bitcast(shifted, i(0).type)
    offset = int(np.float32(_SHIFT).view(np.int32))
    number = builder.sitofp(builder.sub(bits, i(offset)), kind)  # in floats, fastmath would undo the shift
    for part in _LN2:
        x = builder.fadd(x, builder.fmul(number, f(-part), flags=fast), flags=fast)
    total = f(_TERMS[0])
    for term in (*_TERMS[1:], 1.0, 1.0):
        total = builder.fadd(builder.fmul(total, x, flags=fast), f(term), flags=fast)
    return builder.fmul(total, builder.bitcast(builder.shl(bits, i(23)), kind))


def _exp(typingctx: Any, x: Any) -> Any:
    """fn(x) -> float32: e to the power of x up to 88, within two units of the last place; 0 below -87.7."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return exponential(builder, args[0])

    return types.float32(types.float32), codegen


exp: Any = intrinsic(_exp)


def naive_wide(bits: int, brain: bool) -> float:
    """What 16 bits say."""
    if brain:
        return float(np.array(bits << 16, np.uint32).view(np.float32))
    return float(np.array(bits, np.uint16).view(np.float16))


def naive_narrow(x: float) -> int:
    """The bits of the half nearest to x."""
    return int(np.array(x, np.float32).astype(np.float16).view(np.uint16))


def naive_exp(x: float) -> float:
    return math.exp(x)
