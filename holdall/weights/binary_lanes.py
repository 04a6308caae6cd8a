"""Products of signs, eight output channels at once: exclusive or, popcount, sum, made of LLVM's vectors.

A vector holds 64 signs of eight output channels. Where a processor counts bits in vectors (AVX-512 VPOPCNTDQ) LLVM uses
that; elsewhere it looks half bytes up. numba's own vectoriser does not keep the sums in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.weights.coded_lanes import call
from holdall.weights.lanes import INT, at, shape

LANES = 8
WIDE = 2  # vectors of output channels that share a row's word
ROWS = 4  # that share each load of weights
PANEL = LANES * WIDE
LONG = ir.IntType(64)
_VECTOR, _OUT = ir.VectorType(LONG, LANES), ir.VectorType(INT, LANES)
_NONE = ir.Constant(_VECTOR, [0] * LANES)
_FIRST = ir.Constant(ir.VectorType(INT, LANES), [0] * LANES)


def _spread(builder: Any, one: Any) -> Any:
    kind = ir.VectorType(one.type, LANES)
    lane = builder.insert_element(ir.Constant(kind, ir.Undefined), one, INT(0))
    return builder.shuffle_vector(lane, ir.Constant(kind, ir.Undefined), _FIRST)


def _pointer(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _tile(rows: int) -> Any:
    """fn(a u64 [R, K], row, w u64 [N, K, 16], panel, bits, out i32 [S, 16 N], into), all contiguous.

    out[into + i, 16 panel :] = bits - 2 popcount(a[row + i] ^ w[panel]) for i < rows: the products of signs.
    """

    @intrinsic
    def tile(typingctx: Any, a: Any, row: Any, w: Any, panel: Any, bits: Any, out: Any, into: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            mine, theirs, made = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 2, 5))
            words = shape(context, builder, signature.args[0], args[0])[1]
            width = shape(context, builder, signature.args[5], args[5])[1]
            sums = [[cgutils.alloca_once_value(builder, _NONE) for _ in range(WIDE)] for _ in range(rows)]
            for held in (s for line in sums for s in line):
                builder.store(_NONE, held)
            first = [builder.mul(builder.add(args[1], LONG(i)), words) for i in range(rows)]
            start = builder.mul(args[3], builder.mul(words, LONG(PANEL)))
            with cgutils.for_range(builder, words) as loop:
                there = builder.add(start, builder.mul(loop.index, LONG(PANEL)))
                weights = [_load(builder, theirs, builder.add(there, LONG(LANES * c))) for c in range(WIDE)]
                for line, begin in zip(sums, first, strict=True):
                    word = builder.load(builder.gep(mine, [builder.add(begin, loop.index)]))
                    spread = _spread(builder, word)
                    for held, weight in zip(line, weights, strict=True):
                        count = call(builder, "llvm.ctpop.v8i64", _VECTOR, builder.xor(spread, weight))
                        builder.store(builder.add(builder.load(held), count), held)
            whole = _spread(builder, builder.trunc(args[4], INT))
            for i, line in enumerate(sums):
                for c, held in enumerate(line):
                    count = builder.trunc(builder.load(held), _OUT)
                    product = builder.sub(whole, builder.add(count, count))
                    column = builder.add(builder.mul(args[3], LONG(PANEL)), LONG(LANES * c))
                    where = at(builder, builder.add(args[6], LONG(i)), width, column)
                    there = builder.bitcast(builder.gep(made, [where]), _OUT.as_pointer())
                    builder.store(product, there).align = 4
            return context.get_dummy_value()

        return types.void(a, types.intp, w, types.intp, types.intp, out, types.intp), codegen

    return tile


def _load(builder: Any, base: Any, offset: Any) -> Any:
    found = builder.load(builder.bitcast(builder.gep(base, [offset]), _VECTOR.as_pointer()))
    found.align = 8
    return found


tile_rows, tile_one = _tile(ROWS), _tile(1)


def _negatives() -> Any:
    """fn(x f32 flat, first, shift f32 flat, start) -> u64: bit i says whether x[first + i] + shift[start + i] < 0."""

    @intrinsic
    def negatives(typingctx: Any, x: Any, first: Any, shift: Any, start: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide = ir.VectorType(ir.FloatType(), 64)
            found = []
            for i in (0, 2):
                base = _pointer(context, builder, signature.args[i], args[i])
                there = builder.bitcast(builder.gep(base, [args[i + 1]]), wide.as_pointer())
                found.append(builder.load(there))
                found[-1].align = 4
            total = builder.fadd(*found)
            less = builder.fcmp_unordered("<", total, ir.Constant(wide, [0.0] * 64))  # NaN counts as minus
            return builder.bitcast(less, LONG)

        return types.uint64(x, types.intp, shift, types.intp), codegen

    return negatives


negatives = _negatives()
