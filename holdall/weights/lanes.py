"""Sixteen sign bits at once: two LLVM loops that numba's own vectoriser does not find.

A 16-bit word of signs is used as a lane mask, so that AVX-512 needs one masked addition for 16 weights and one
factor. LLVM lowers the same loops to what other processors have.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
_FLOAT, _VECTOR = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


def _data(context: Any, builder: Any, array_type: Any, value: Any, item: Any) -> Any:
    pointer = context.make_array(array_type)(context, builder, value).data
    return builder.bitcast(pointer, item.as_pointer())


def _load(builder: Any, base: Any, offset: Any) -> Any:
    """Sixteen floats from `base[offset]` on."""
    at = builder.bitcast(builder.gep(base, [offset]), _VECTOR.as_pointer())
    found = builder.load(at)
    found.align = 4
    return found


def _negative(builder: Any, words: Any, index: Any) -> Any:
    word = builder.load(builder.gep(words, [index]))
    word.align = 2
    return builder.bitcast(word, _MASK)


def _sums_over_negative(rows: int) -> Any:
    """fn(signs u16 [G], b f32 [>= rows * 16 G], out f32 [rows]): out[r] = sum of b[r, j] where the sign is set."""

    @intrinsic
    def sums(typingctx: Any, signs: Any, b: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = _data(context, builder, signature.args[0], args[0], ir.IntType(16))
            base = _data(context, builder, signature.args[1], args[1], _FLOAT)
            into = _data(context, builder, signature.args[2], args[2], _FLOAT)
            groups = cgutils.unpack_tuple(
                builder, context.make_array(signature.args[0])(context, builder, args[0]).shape
            )[0]
            stride = builder.mul(groups, ir.Constant(groups.type, LANES))
            totals = [
                cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES)) for _ in range(rows)
            ]
            with cgutils.for_range(builder, groups) as loop:
                mask = _negative(builder, words, loop.index)
                column = builder.mul(loop.index, ir.Constant(groups.type, LANES))
                for r in range(rows):
                    offset = builder.add(column, builder.mul(stride, ir.Constant(groups.type, r)))
                    old = builder.load(totals[r])
                    new = builder.fadd(old, _load(builder, base, offset), flags=("fast",))
                    builder.store(builder.select(mask, new, old), totals[r])
            for r in range(rows):
                lanes = builder.load(totals[r])
                total: Any = ir.Constant(_FLOAT, 0.0)
                for t in range(LANES):
                    lane = builder.extract_element(lanes, ir.Constant(ir.IntType(32), t))
                    total = builder.fadd(total, lane, flags=("fast",))
                builder.store(total, builder.gep(into, [ir.Constant(groups.type, r)]))
            return context.get_dummy_value()

        return types.void(signs, b, out), codegen

    return sums


sums_1, sums_2, sums_4 = _sums_over_negative(1), _sums_over_negative(2), _sums_over_negative(4)


@intrinsic
def add_signed(typingctx: Any, signs: Any, sizes: Any, out: Any) -> Any:
    """fn(signs u16 [G], sizes f32 [16 G], out f32 [16 G]): out += sizes, or -= where the sign is set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = _data(context, builder, signature.args[0], args[0], ir.IntType(16))
        base = _data(context, builder, signature.args[1], args[1], _FLOAT)
        into = _data(context, builder, signature.args[2], args[2], _FLOAT)
        groups = cgutils.unpack_tuple(
            builder, context.make_array(signature.args[0])(context, builder, args[0]).shape
        )[0]
        with cgutils.for_range(builder, groups) as loop:
            column = builder.mul(loop.index, ir.Constant(groups.type, LANES))
            size, old = _load(builder, base, column), _load(builder, into, column)
            lower = builder.fsub(old, size, flags=("fast",))
            higher = builder.fadd(old, size, flags=("fast",))
            new = builder.select(_negative(builder, words, loop.index), lower, higher)
            put = builder.store(new, builder.bitcast(builder.gep(into, [column]), _VECTOR.as_pointer()))
            put.align = 4
        return context.get_dummy_value()

    return types.void(signs, sizes, out), codegen
