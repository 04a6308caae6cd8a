"""Sixteen numbers at once, in LLVM's terms: AdamW on a tile, and a tile's numbers to E4M3 codes of its range.

numba's vectoriser keeps neither loop in registers. A tile is whole lanes long; `coat_kernels` says what codes mean.
Logarithms and powers of two are polynomials, 1.2e-5 and 4e-6 off, where the steps of codes are a sixteenth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
_LOG = (-0.20685812, 0.31840712, -0.36641326, 0.47979388, -0.72120837, 1.44270180)  # log2(1 + z) / z
_EXP = (0.01368398, 0.05171774, 0.24162132, 0.69296955, 1.0000036)  # 2^f, 0 <= f < 1
_MIX = ((0x9E3779B1, 15), (0x85EBCA77, 13))  # factors that scatter bits, and shifts that bring high ones down
_ROOT = 0x3F3504F3  # bits of the root of a half
_LEAST, _ODD, _SIZE = 0x00800000, 0x7F800000, 0x7FFFFFFF  # smallest normal, infinite, all but the sign
_FLOAT, _INT, _LONG, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
_FLOATS, _INTS, _BYTES = (ir.VectorType(t, LANES) for t in (_FLOAT, _INT, _BYTE))
_FAST = ("contract", "nsz", "arcp")


def _f(x: float) -> Any:
    return ir.Constant(_FLOATS, [float(np.float32(x))] * LANES)


def _i(x: int) -> Any:
    return ir.Constant(_INTS, [x] * LANES)


class _Lanes:
    """A builder with the few words that the loops below are written in."""

    def __init__(self, context: Any, builder: Any):
        self.context, self.b = context, builder

    def base(self, kind: Any, value: Any) -> Any:
        return self.context.make_array(kind)(self.context, self.b, value).data

    def at(self, base: Any, place: Any, kind: Any) -> Any:
        return self.b.bitcast(self.b.gep(base, [place]), kind.as_pointer())

    def load(self, base: Any, place: Any, kind: Any = _FLOATS) -> Any:
        found = self.b.load(self.at(base, place, kind))
        found.align = 1 if kind is _BYTES else 4
        return found

    def store(self, x: Any, base: Any, place: Any) -> None:
        self.b.store(x, self.at(base, place, x.type)).align = 1 if x.type is _BYTES else 4

    def spread(self, x: Any) -> Any:
        kind = ir.VectorType(x.type, LANES)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), x, _INT(0))
        return self.b.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))

    def add(self, x: Any, y: Any) -> Any:
        return self.b.fadd(x, y, flags=_FAST)

    def mul(self, x: Any, y: Any) -> Any:
        return self.b.fmul(x, y, flags=_FAST)

    def poly(self, terms: tuple[float, ...], x: Any) -> Any:
        total = _f(terms[0])
        for term in terms[1:]:
            total = self.add(self.mul(total, x), _f(term))
        return total

    def call(self, name: str, x: Any, *more: Any, to: Any = None) -> Any:
        kind = ir.FunctionType(to or x.type, [x.type, *(m.type for m in more)])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), [x, *more])

    def least(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def most(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_signed(">", x, y), x, y)

    def span(self, x: Any, most: Any, least: Any) -> None:
        """Keeps bits of the largest finite size and of the smallest that is not zero."""
        size = self.b.and_(self.b.bitcast(x, _INTS), _i(_SIZE))
        finite = self.b.select(self.b.icmp_signed("<", size, _i(_ODD)), size, _i(0))
        there = self.b.select(self.b.icmp_signed(">=", size, _i(_LEAST)), size, _i(_ODD))
        self.b.store(self.most(self.b.load(most), finite), most)
        self.b.store(self.least(self.b.load(least), there), least)

    def chance(self, place: Any, seed: Any) -> Any:
        """Twenty bits for each lane, from its place and a seed."""
        b, lanes = self.b, ir.Constant(_INTS, list(range(LANES)))
        x = b.add(b.add(self.spread(b.trunc(place, _INT)), lanes), self.spread(seed))
        for factor, down in _MIX:
            x = b.mul(x, _i(factor))
            x = b.xor(x, b.lshr(x, _i(down)))
        return b.and_(x, _i(0xFFFFF))

    def code(self, x: Any, k: Any, shift: Any, chance: Any) -> Any:
        """E4M3 of sign(x) * 2^(k log2|x| + shift): NaN for what is not finite, 0 only for 0. To the nearest, or up with
        the chance of what is cut off."""
        b, bits = self.b, self.b.bitcast(x, _INTS)
        size = b.and_(bits, _i(_SIZE))
        up = b.ashr(b.sub(size, _i(_ROOT)), _i(23))
        z = self.add(b.bitcast(b.sub(size, b.shl(up, _i(23))), _FLOATS), _f(-1.0))
        log = self.add(self.mul(self.poly(_LOG, z), z), b.sitofp(up, _FLOATS))
        log = self.add(self.mul(log, k), shift)
        log = b.select(b.fcmp_ordered(">", log, _f(-100.0)), log, _f(-100.0))
        low = self.call("llvm.floor.v16f32", log)
        y = self.poly(_EXP, b.fsub(log, low, flags=_FAST))
        y = b.add(b.bitcast(y, _INTS), b.shl(b.fptosi(low, _INTS), _i(23)))
        more = b.add(b.and_(b.lshr(y, _i(20)), _i(1)), _i(0x7FFFF)) if chance is None else chance
        usual = b.sub(b.ashr(b.add(y, more), _i(20)), _i(960))
        # a number this large has nothing behind the point: what is added to it comes rounded
        tiny = b.fmul(b.bitcast(y, _FLOATS), _f(512.0))
        if chance is not None:
            tiny = self.add(tiny, self.add(self.mul(b.sitofp(chance, _FLOATS), _f(2.0**-20)), _f(-0.5)))
        tiny = b.fadd(tiny, _f(1.5 * 2.0**23))
        tiny = b.sub(b.bitcast(tiny, _INTS), _i(0x4B400000))
        code = b.select(b.icmp_signed("<", usual, _i(8)), tiny, usual)
        code = self.least(self.most(code, _i(1)), _i(126))
        code = b.select(b.icmp_signed("<", size, _i(_ODD)), code, _i(127))
        code = b.or_(code, b.and_(b.lshr(bits, _i(24)), _i(0x80)))
        return b.trunc(b.select(b.icmp_signed(">=", size, _i(_LEAST)), code, _i(0)), _BYTES)


def _written(typingctx: Any, args: tuple[Any, ...]) -> Any:
    """An array's codes: args are those of `encode`, or of `encode_by_chance`."""
    x, codes = args[0], args[4]

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        lanes = _Lanes(context, builder)
        source, out = lanes.base(x, given[0]), lanes.base(codes, given[4])
        power, offset = lanes.spread(given[2]), lanes.spread(given[3])
        with cgutils.for_range_slice(builder, _LONG(0), given[1], _LONG(LANES)) as (place, _):
            chance = lanes.chance(builder.add(given[7], place), given[6]) if len(given) > 6 else None
            found = lanes.code(lanes.load(source, place), power, offset, chance)
            lanes.store(found, out, builder.add(given[5], place))
        return context.get_dummy_value()

    usual = (x, types.int64, types.float32, types.float32, codes, types.int64)
    return types.void(*usual, *(types.int32, types.int64)[: len(args) - 6]), codegen


def _encode(typingctx: Any, x: Any, n: Any, k: Any, shift: Any, codes: Any, start: Any) -> Any:
    """fn(x, n, k, shift, codes, start): codes[start:start + n] of x[:n], n whole lanes."""
    return _written(typingctx, (x, n, k, shift, codes, start))


def _chance(
    typingctx: Any, x: Any, n: Any, k: Any, shift: Any, codes: Any, start: Any, seed: Any, at: Any
) -> Any:
    """fn(x, n, k, shift, codes, start, seed, at): the same, rounded by the chance of seed and of places from `at`."""
    return _written(typingctx, (x, n, k, shift, codes, start, seed, at))


encode: Any = intrinsic(_encode)
encode_by_chance: Any = intrinsic(_chance)


def _update(typingctx: Any, p: Any, g: Any, start: Any, n: Any, m: Any, v: Any, c: Any, spans: Any) -> Any:
    """fn(p, g, start, n, m, v, c, spans): AdamW on a tile of p and g, whose moments are m[:n] and v[:n].

    c: 1 - beta1, beta2, 1 - beta2, decay, rate, root, eps, sign. spans int32 [4]: bits of the largest and the
    smallest of m, then of v.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s, b = _Lanes(context, builder), builder
        to, of, one, two = (s.base(k, args[i]) for k, i in ((p, 0), (g, 1), (m, 4), (v, 5)))
        numbers, found = s.base(c, args[6]), s.base(spans, args[7])
        first, beta, second, decay, rate, root, eps, sign = (
            s.spread(b.load(b.gep(numbers, [_LONG(i)]))) for i in range(8)
        )
        kept = [cgutils.alloca_once_value(b, _i(0 if i % 2 == 0 else _ODD)) for i in range(4)]
        with cgutils.for_range_slice(b, _LONG(0), args[3], _LONG(LANES)) as (place, _):
            there = b.add(args[2], place)
            d, old, was = s.mul(s.load(of, there), sign), s.load(one, place), s.load(two, place)
            new = s.add(old, s.mul(b.fsub(d, old, flags=_FAST), first))
            now = s.add(s.mul(beta, was), s.mul(s.mul(second, d), d))
            under = s.add(s.mul(s.call("llvm.sqrt.v16f32", now), root), eps)
            step = b.fdiv(s.mul(rate, new), under, flags=_FAST)
            s.store(b.fsub(s.mul(s.load(to, there), decay), step, flags=_FAST), to, there)
            for x, base, i in ((new, one, 0), (now, two, 2)):
                s.store(x, base, place)
                s.span(x, kept[i], kept[i + 1])
        for i in range(4):
            name = f"llvm.vector.reduce.{'smax' if i % 2 == 0 else 'smin'}.v16i32"
            b.store(s.call(name, b.load(kept[i]), to=_INT), b.gep(found, [_LONG(i)]))
        return context.get_dummy_value()

    return types.void(p, g, types.int64, types.int64, m, v, c, spans), codegen


update: Any = intrinsic(_update)
