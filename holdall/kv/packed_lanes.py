"""Packed rows times factors, eight or sixteen bytes at once: a loop that numba's own vectoriser does not find.

A byte holds 8 / bits codes that stand W apart (`holdall.parts.quant.pack`), so sixteen bytes shifted and masked are
sixteen neighbours, with no shuffle. Sums stay in registers over all rows. LLVM lowers the same loop to what a
processor has.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

MOST = 4  # factors of a row at once
_AHEAD = 64  # bytes: rows of a channel are far apart, and no processor guesses their next line
_FLOAT, _BYTE, _INT, _LONG = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _data(context: Any, builder: Any, kind: Any, value: Any, item: Any) -> Any:
    return builder.bitcast(context.make_array(kind)(context, builder, value).data, item.as_pointer())


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    kind = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT, 0))
    zeros = ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _prefetch(builder: Any, place: Any) -> None:
    """Have a line of memory come near; it need not exist."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT, _INT, _INT])
    fn = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(fn, [place, ir.Constant(_INT, 0), ir.Constant(_INT, 3), ir.Constant(_INT, 1)])


def _loop(builder: Any, ptr: Any, num: Any, bits: int, groups: int, lanes: int) -> None:
    """One case: ptr codes, factors, out; num at, stride, rows, factor stride, out_at, out stride, width."""
    vector, whole = ir.VectorType(_FLOAT, lanes), ir.VectorType(_INT, lanes)
    places = 8 // bits
    zero = ir.Constant(vector, [0.0] * lanes)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(places * groups)]
    mask = ir.Constant(whole, [(1 << bits) - 1] * lanes)
    with cgutils.for_range(builder, num["rows"], intp=_LONG) as loop:
        place = builder.add(num["at"], builder.mul(loop.index, num["stride"]))
        source = builder.bitcast(builder.gep(ptr["codes"], [place]), ir.VectorType(_BYTE, lanes).as_pointer())
        loaded = builder.load(source)
        loaded.align = 1
        _prefetch(builder, builder.gep(ptr["codes"], [builder.add(place, ir.Constant(_LONG, _AHEAD))]))
        wide = builder.zext(loaded, whole)
        factors = []
        for g in range(groups):
            at = builder.add(loop.index, builder.mul(ir.Constant(_LONG, g), num["factor_stride"]))
            factors.append(_splat(builder, builder.load(builder.gep(ptr["factors"], [at])), lanes))
        for i in range(places):
            shifted = builder.lshr(wide, ir.Constant(whole, [i * bits] * lanes)) if i else wide
            part = builder.and_(shifted, mask) if (i + 1) * bits < 8 else shifted
            number = builder.sitofp(part, vector)
            for g in range(groups):
                held = sums[i * groups + g]
                product = builder.fmul(number, factors[g], flags=("fast",))
                builder.store(builder.fadd(builder.load(held), product, flags=("fast",)), held)
    for i in range(places):
        for g in range(groups):
            at = builder.add(num["out_at"], builder.mul(ir.Constant(_LONG, i), num["width"]))
            at = builder.add(at, builder.mul(ir.Constant(_LONG, g), num["out_stride"]))
            target = builder.bitcast(builder.gep(ptr["out"], [at]), vector.as_pointer())
            old = builder.load(target)
            old.align = 4
            put = builder.store(
                builder.fadd(old, builder.load(sums[i * groups + g]), flags=("fast",)), target
            )
            put.align = 4


@intrinsic
def fold_lanes(
    typingctx: Any, codes: Any, at: Any, stride: Any, rows: Any, factors: Any, out: Any, out_at: Any, bits: Any,
    groups: Any, lanes: Any, width: Any,
) -> Any:  # fmt: skip
    """fn(codes u8 [...], at, stride, rows, factors f32 [G, rows], out f32 [G, L], out_at, bits, groups, lanes, width):
    out[g, out_at + i * width + lane] += the sum over rows r of factors[g, r] * code i of codes[at + r * stride + lane].

    bits 1, 2, 4 or 8; groups 1 to MOST of `factors` and `out`, which are contiguous; lanes 8 or 16.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        ptr = {
            "codes": _data(context, builder, kinds[0], args[0], _BYTE),
            "factors": _data(context, builder, kinds[4], args[4], _FLOAT),
            "out": _data(context, builder, kinds[5], args[5], _FLOAT),
        }
        ends = [
            cgutils.unpack_tuple(builder, context.make_array(kinds[i])(context, builder, args[i]).shape)[1]
            for i in (4, 5)
        ]
        num = {"at": args[1], "stride": args[2], "rows": args[3], "out_at": args[6], "width": args[10]}
        num |= {"factor_stride": ends[0], "out_stride": ends[1]}
        case = builder.add(
            builder.mul(args[7], ir.Constant(_LONG, 1000)), builder.mul(args[8], ir.Constant(_LONG, 100))
        )
        case = builder.add(case, args[9])
        after = builder.append_basic_block("folded")
        table = builder.switch(case, after)
        for b, g, n in product((1, 2, 4, 8), range(1, MOST + 1), (8, 16)):
            this = builder.append_basic_block(f"fold_{b}_{g}_{n}")
            table.add_case(ir.Constant(_LONG, 1000 * b + 100 * g + n), this)
            builder.position_at_end(this)
            _loop(builder, ptr, num, b, g, n)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    long = types.int64
    return types.void(codes, long, long, long, factors, out, long, long, long, long, long), codegen
