"""Sixteen weights at once: LLVM's vectors, from which the kernels' inner loops are made.

numba's own vectoriser does not find these loops. Sums stay in registers until they are whole; LLVM lowers them to what
a processor has. Arrays are contiguous; those that start at a multiple of 64 bytes are read twice as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
ROWS = 4  # that share each load
FLOAT, SHORT, INT = ir.FloatType(), ir.IntType(16), ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)
_FAST = ("fast",)


def data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Where an array's numbers begin; those of 16 bits are words of signs or bfloat16."""
    item = SHORT if kind.dtype == types.uint16 else FLOAT
    pointer = context.make_array(kind)(context, builder, value).data
    return builder.bitcast(pointer, item.as_pointer())


def shape(context: Any, builder: Any, kind: Any, value: Any) -> Sequence[Any]:
    found: Sequence[Any] = cgutils.unpack_tuple(
        builder, context.make_array(kind)(context, builder, value).shape
    )
    return found


def at(builder: Any, row: Any, width: Any, column: Any) -> Any:
    return builder.add(builder.mul(row, width), column)


def load(builder: Any, base: Any, offset: Any) -> Any:
    """Sixteen numbers as floats; bfloat16 is the upper half of a float."""
    item = base.type.pointee
    there = builder.bitcast(builder.gep(base, [offset]), ir.VectorType(item, LANES).as_pointer())
    found = builder.load(there)
    found.align = 2 if item == SHORT else 4
    if item != SHORT:
        return found
    wide = ir.VectorType(INT, LANES)
    upper = builder.shl(builder.zext(found, wide), ir.Constant(wide, [16] * LANES))
    return builder.bitcast(upper, VECTOR)


def store(builder: Any, lanes: Any, base: Any, offset: Any) -> None:
    there = builder.bitcast(builder.gep(base, [offset]), VECTOR.as_pointer())
    builder.store(lanes, there).align = 4


def prefetch(builder: Any, base: Any, offset: Any) -> None:
    """Have a line of memory come near; it need not exist."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
    fn = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(fn, [builder.bitcast(builder.gep(base, [offset]), byte), INT(0), INT(3), INT(1)])


def spread(builder: Any, base: Any, offset: Any) -> Any:
    """One number in all lanes."""
    one = builder.load(builder.gep(base, [offset]))
    one.align = 4
    nothing = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, one, INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))


def add(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y, flags=_FAST)


def add_product(builder: Any, held: Any, x: Any, y: Any) -> None:
    builder.store(add(builder, builder.load(held), builder.fmul(x, y, flags=_FAST)), held)


def add_signed(builder: Any, held: Any, x: Any, negative: Any) -> None:
    old = builder.load(held)
    builder.store(builder.select(negative, builder.fsub(old, x, flags=_FAST), add(builder, old, x)), held)


def mask(builder: Any, words: Any, offset: Any) -> Any:
    """Sixteen bits as truths."""
    word = builder.load(builder.gep(words, [offset]))
    word.align = 2
    return builder.bitcast(word, ir.VectorType(ir.IntType(1), LANES))


def folded(builder: Any, vectors: list[Any]) -> Any:
    """The sums of sixteen vectors, one a lane: neighbours are added, and halves put side by side, four times."""
    index = ir.VectorType(INT, LANES)
    even, odd = (ir.Constant(index, list(range(start, 2 * LANES, 2))) for start in (0, 1))
    while len(vectors) > 1:
        vectors = [
            add(builder, builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def _dots(tokens: int) -> Any:
    """fn(w [M, n] f32, or bfloat16 as u16, row, x f32 [T, n], token, out f32 [16]): out[tokens * i + t] is
    w[row + i] times x[token + t] over the whole groups of sixteen columns, for four rows."""

    @intrinsic
    def dots(typingctx: Any, w: Any, row: Any, x: Any, token: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, inputs, into = (data(context, builder, signature.args[i], args[i]) for i in (0, 2, 4))
            n = shape(context, builder, signature.args[0], args[0])[1]
            number = n.type
            rows = [at(builder, builder.add(args[1], number(i)), n, number(0)) for i in range(ROWS)]
            inner = [at(builder, builder.add(args[3], number(t)), n, number(0)) for t in range(tokens)]
            held = [cgutils.alloca_once_value(builder, ZERO) for _ in range(ROWS * tokens)]
            with cgutils.for_range(builder, builder.udiv(n, number(LANES))) as loop:
                column = builder.mul(loop.index, number(LANES))
                for start in rows:  # the next four are far from these
                    prefetch(builder, weights, builder.add(at(builder, n, number(ROWS), start), column))
                lanes = [load(builder, inputs, builder.add(start, column)) for start in inner]
                for i, start in enumerate(rows):
                    mine = load(builder, weights, builder.add(start, column))
                    for sums, lane in zip(held[i * tokens : (i + 1) * tokens], lanes, strict=True):
                        add_product(builder, sums, mine, lane)
            sums = [builder.load(h) for h in held] + [ZERO] * (LANES - len(held))
            store(builder, folded(builder, sums), into, number(0))
            return context.get_dummy_value()

        return types.void(w, types.intp, x, types.intp, out), codegen

    return dots


dots_1, dots_2, dots_3, dots_4 = (_dots(tokens) for tokens in (1, 2, 3, 4))
