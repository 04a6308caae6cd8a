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


def _total(builder: Any, lanes: Any) -> Any:
    """The sum of sixteen floats, as a tree."""
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
    fn = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(fn, [ir.Constant(_FLOAT, 0.0), lanes], fastmath=("fast",))


def _sums_over_negative(rows: int, factors: int) -> Any:
    """fn(signs u16 [rows, G], b f32 [factors * 16 G], out f32 [rows, factors]), all contiguous:
    out[i, r] = the sum of b[r, j] where sign j of row i is set. Each sixteen of b are loaded once for all rows."""

    @intrinsic
    def sums(typingctx: Any, signs: Any, b: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = _data(context, builder, signature.args[0], args[0], ir.IntType(16))
            base = _data(context, builder, signature.args[1], args[1], _FLOAT)
            into = _data(context, builder, signature.args[2], args[2], _FLOAT)
            shape = context.make_array(signature.args[0])(context, builder, args[0]).shape
            groups = cgutils.unpack_tuple(builder, shape)[1]
            size = groups.type
            stride = builder.mul(groups, ir.Constant(size, LANES))
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(rows * factors)]
            with cgutils.for_range(builder, groups) as loop:
                masks = [
                    _negative(
                        builder, words, builder.add(loop.index, builder.mul(groups, ir.Constant(size, i)))
                    )
                    for i in range(rows)
                ]
                column = builder.mul(loop.index, ir.Constant(size, LANES))
                for r in range(factors):
                    offset = builder.add(column, builder.mul(stride, ir.Constant(size, r)))
                    lanes = _load(builder, base, offset)
                    for mask, held in zip(masks, totals[r::factors], strict=True):
                        old = builder.load(held)
                        builder.store(
                            builder.select(mask, builder.fadd(old, lanes, flags=("fast",)), old), held
                        )
            for t, held in enumerate(totals):
                builder.store(_total(builder, builder.load(held)), builder.gep(into, [ir.Constant(size, t)]))
            return context.get_dummy_value()

        return types.void(signs, b, out), codegen

    return sums


ROWS = 4  # that share each load; a processor has seven masks
sums_1, sums_2, sums_3, sums_4 = (_sums_over_negative(ROWS, factors) for factors in (1, 2, 3, 4))
sums_alone = _sums_over_negative(1, 1)


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
