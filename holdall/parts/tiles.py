"""A tile of a matrix product: a few rows times three vectors of columns, all sums in registers.

numba alone has no such product without a BLAS of its own, and does not find the loop. Used where products are looked
at and forgotten, a strip at a time, so that they never leave the processor's near memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.parts.floats import exponential

_FLOAT, _LONG = ir.FloatType(), ir.IntType(64)


def _wide() -> bool:
    """Whether the processor has 32 registers of sixteen floats."""
    features: dict[str, bool] = binding.get_host_cpu_features()
    return bool(features.get("avx512f"))


LANES, ROWS = (16, 8) if _wide() else (8, 4)
VECTORS = 3
COLUMNS = LANES * VECTORS  # of a tile


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return builder.bitcast(context.make_array(kind)(context, builder, value).data, _FLOAT.as_pointer())


def _vector(builder: Any, base: Any, place: Any) -> Any:
    kind = ir.VectorType(_FLOAT, LANES)
    return builder.bitcast(builder.gep(base, [place]), kind.as_pointer())


def _splat(builder: Any, scalar: Any) -> Any:
    kind, place = ir.VectorType(_FLOAT, LANES), ir.IntType(32)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(place, 0))
    zeros = ir.Constant(ir.VectorType(place, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _tile(
    typingctx: Any, x: Any, at: Any, depth: Any, panel: Any, first: Any, out: Any, to: Any, stride: Any
) -> Any:
    """fn(x f32 [...], at, depth, panel f32 [...], first, out f32 [...], to, stride): out[to + r * stride + c] = the sum
    over d of x[at + r * depth + d] * panel[first + d * COLUMNS + c], for ROWS rows and COLUMNS columns; contiguous.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds, fast = signature.args, ("fast",)
        source, columns, target = (_data(context, builder, kinds[i], args[i]) for i in (0, 3, 5))
        zero = ir.Constant(ir.VectorType(_FLOAT, LANES), [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(ROWS * VECTORS)]
        for held in sums:
            builder.store(zero, held)
        number = lambda n: ir.Constant(_LONG, n)  # noqa: E731
        with cgutils.for_range(builder, args[2], intp=_LONG) as loop:
            base = builder.add(args[4], builder.mul(loop.index, number(COLUMNS)))
            row = []
            for v in range(VECTORS):
                row.append(builder.load(_vector(builder, columns, builder.add(base, number(v * LANES)))))
                row[-1].align = 4
            for r in range(ROWS):
                place = builder.add(builder.add(args[1], builder.mul(number(r), args[2])), loop.index)
                factor = _splat(builder, builder.load(builder.gep(source, [place])))
                for v in range(VECTORS):
                    held = sums[r * VECTORS + v]
                    product = builder.fmul(row[v], factor, flags=fast)
                    builder.store(builder.fadd(builder.load(held), product, flags=fast), held)
        for r in range(ROWS):
            start = builder.add(args[6], builder.mul(number(r), args[7]))
            for v in range(VECTORS):
                there = _vector(builder, target, builder.add(start, number(v * LANES)))
                builder.store(builder.load(sums[r * VECTORS + v]), there).align = 4
        return context.get_dummy_value()

    long = types.int64
    return types.void(x, long, long, panel, long, out, long, long), codegen


tile: Any = intrinsic(_tile)


def _folded(builder: Any, vector: Any, join: Any) -> Any:
    """One number of all lanes: halves are joined until one is left."""
    count, place = LANES, ir.IntType(32)
    while count > 1:
        count //= 2
        nothing = ir.Constant(vector.type, ir.Undefined)
        halves = [
            builder.shuffle_vector(
                vector, nothing, ir.Constant(ir.VectorType(place, count), list(range(i, i + count)))
            )
            for i in (0, count)
        ]
        vector = join(*halves)
    return builder.extract_element(vector, ir.Constant(place, 0))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _peak(typingctx: Any, x: Any, count: Any) -> Any:
    """fn(x f32 [...], count) -> float32: the largest of the first numbers, whose count is a multiple of COLUMNS."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = _data(context, builder, signature.args[0], args[0])
        least = ir.Constant(ir.VectorType(_FLOAT, LANES), [float(np.float32(-1e38))] * LANES)
        tops = [cgutils.alloca_once_value(builder, least) for _ in range(VECTORS)]
        for held in tops:
            builder.store(least, held)
        with cgutils.for_range(
            builder, builder.udiv(args[1], ir.Constant(_LONG, COLUMNS)), intp=_LONG
        ) as loop:
            start = builder.mul(loop.index, ir.Constant(_LONG, COLUMNS))
            for v, held in enumerate(tops):
                lanes = builder.load(
                    _vector(builder, base, builder.add(start, ir.Constant(_LONG, v * LANES)))
                )
                lanes.align = 4
                builder.store(_larger(builder, lanes, builder.load(held)), held)
        top = builder.load(tops[0])
        for held in tops[1:]:
            top = _larger(builder, top, builder.load(held))
        return _folded(builder, top, lambda a, b: _larger(builder, a, b))

    return types.float32(x, types.int64), codegen


def _span(typingctx: Any, x: Any, count: Any) -> Any:
    """fn(x f32 [...], count) -> (least, largest) of the first numbers, whose count is a multiple of LANES, not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, found = _data(context, builder, signature.args[0], args[0]), []
        for larger in (False, True):

            def join(a: Any, b: Any, larger: bool = larger) -> Any:
                return _larger(builder, a, b) if larger else _smaller(builder, a, b)

            held = cgutils.alloca_once(builder, ir.VectorType(_FLOAT, LANES))
            start = builder.load(_vector(builder, base, ir.Constant(_LONG, 0)))
            start.align = 4
            builder.store(start, held)
            found.append((held, join))
        with cgutils.for_range(builder, builder.udiv(args[1], ir.Constant(_LONG, LANES)), intp=_LONG) as loop:
            lanes = builder.load(_vector(builder, base, builder.mul(loop.index, ir.Constant(_LONG, LANES))))
            lanes.align = 4
            for held, join in found:
                builder.store(join(lanes, builder.load(held)), held)
        both = [_folded(builder, builder.load(held), join) for held, join in found]
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(types.float32, 2)(x, types.int64), codegen


def _powers(typingctx: Any, x: Any, count: Any, top: Any) -> Any:
    """fn(x f32 [...], count, top) -> float32: the first numbers, whose count is a multiple of LANES, become
    exp(x - top); their sum."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, kind = _data(context, builder, signature.args[0], args[0]), ir.VectorType(_FLOAT, LANES)
        zero = ir.Constant(kind, [0.0] * LANES)
        total, top = cgutils.alloca_once_value(builder, zero), _splat(builder, args[2])
        builder.store(zero, total)
        with cgutils.for_range(builder, builder.udiv(args[1], ir.Constant(_LONG, LANES)), intp=_LONG) as loop:
            there = _vector(builder, base, builder.mul(loop.index, ir.Constant(_LONG, LANES)))
            lanes = builder.load(there)
            lanes.align = 4
            power = exponential(builder, builder.fsub(lanes, top))
            builder.store(power, there).align = 4
            builder.store(builder.fadd(builder.load(total), power), total)
        return _folded(builder, builder.load(total), builder.fadd)

    return types.float32(x, types.int64, types.float32), codegen


peak: Any = intrinsic(_peak)
span: Any = intrinsic(_span)
powers: Any = intrinsic(_powers)


def naive_tile(x: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """[R, C] of x [R, D] and panel [D, C]."""
    return x.astype(np.float64) @ panel.astype(np.float64)
