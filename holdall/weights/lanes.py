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
    """fn(w flat, f32 or bfloat16 as u16, start, stride, x f32 [T, n], token, out f32 [16]): out[tokens * i + t] is
    w[start + stride * i :] times x[token + t] over the whole groups of sixteen columns of x, for four i."""

    @intrinsic
    def dots(typingctx: Any, w: Any, start: Any, stride: Any, x: Any, token: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, inputs, into = (data(context, builder, signature.args[i], args[i]) for i in (0, 3, 5))
            n = shape(context, builder, signature.args[3], args[3])[1]
            number = n.type
            rows = [at(builder, number(i), args[2], args[1]) for i in range(ROWS)]
            inner = [at(builder, builder.add(args[4], number(t)), n, number(0)) for t in range(tokens)]
            held = [cgutils.alloca_once_value(builder, ZERO) for _ in range(ROWS * tokens)]
            with cgutils.for_range(builder, builder.udiv(n, number(LANES))) as loop:
                column = builder.mul(loop.index, number(LANES))
                for first in rows:  # the next four are far from these
                    prefetch(builder, weights, builder.add(at(builder, args[2], number(ROWS), first), column))
                lanes = [load(builder, inputs, builder.add(first, column)) for first in inner]
                for i, first in enumerate(rows):
                    mine = load(builder, weights, builder.add(first, column))
                    for sums, lane in zip(held[i * tokens : (i + 1) * tokens], lanes, strict=True):
                        add_product(builder, sums, mine, lane)
            sums = [builder.load(h) for h in held] + [ZERO] * (LANES - len(held))
            store(builder, folded(builder, sums), into, number(0))
            return context.get_dummy_value()

        return types.void(w, types.intp, types.intp, x, types.intp, out), codegen

    return dots


dots_1, dots_2, dots_3, dots_4 = (_dots(tokens) for tokens in (1, 2, 3, 4))


class _Mix:
    """The operands of `mix`, and code for some neighbouring groups of lanes."""

    def __init__(self, context: Any, builder: Any, kinds: Any, args: Any, tokens: int):
        self.builder, (_, self.start, self.stride, _, first, self.rows, _) = builder, args
        self.values, self.factors, self.into = (data(context, builder, kinds[i], args[i]) for i in (0, 3, 6))
        self.width, self.n = (shape(context, builder, kinds[i], args[i])[1] for i in (3, 6))
        self.number = self.n.type
        self.tokens = [builder.add(first, self.number(t)) for t in range(tokens)]
        self.held = [[cgutils.alloca_once(builder, VECTOR) for _ in range(ROWS)] for _ in self.tokens]

    def write(self, group: Any, wide: int) -> None:
        """Groups [group, group + wide) of what all tokens get."""
        builder = self.builder
        columns = [builder.mul(builder.add(group, self.number(c)), self.number(LANES)) for c in range(wide)]
        for sums in self.held:
            for c in range(wide):
                builder.store(ZERO, sums[c])
        with cgutils.for_range(builder, self.rows) as row:
            there = at(builder, row.index, self.stride, self.start)
            mine = []
            for column in columns:
                where = builder.add(there, column)
                prefetch(builder, self.values, at(builder, self.stride, self.number(2 * ROWS), where))
                mine.append(load(builder, self.values, where))
            for sums, token in zip(self.held, self.tokens, strict=True):
                factor = spread(builder, self.factors, at(builder, token, self.width, row.index))
                for c, lanes in enumerate(mine):
                    add_product(builder, sums[c], factor, lanes)
        for sums, token in zip(self.held, self.tokens, strict=True):
            for c, column in enumerate(columns):
                store(builder, builder.load(sums[c]), self.into, at(builder, token, self.n, column))


def _mix(tokens: int) -> Any:
    """fn(v flat, f32 or bfloat16 as u16, start, stride, x f32 [., T], token, rows, out f32 [., n]): out[token + t] is
    the sum over `rows` i of x[token + t, i] times v[start + stride * i :], for whole groups of sixteen columns."""

    @intrinsic
    def mix(typingctx: Any, v: Any, start: Any, stride: Any, x: Any, token: Any, rows: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            work = _Mix(context, builder, signature.args, args, tokens)
            groups, wide = builder.udiv(work.n, work.number(LANES)), work.number(ROWS)
            whole = builder.udiv(groups, wide)
            with cgutils.for_range(builder, whole) as loop:
                work.write(builder.mul(loop.index, wide), ROWS)
            with cgutils.for_range(builder, builder.urem(groups, wide)) as loop:
                work.write(at(builder, whole, wide, loop.index), 1)
            return context.get_dummy_value()

        return types.void(v, types.intp, types.intp, x, types.intp, types.intp, out), codegen

    return mix


mix_1, mix_2, mix_3, mix_4 = (_mix(tokens) for tokens in (1, 2, 3, 4))
