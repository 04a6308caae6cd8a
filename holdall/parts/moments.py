"""What least squares ask of a row and its codes, in lanes: three sums, while codes are made and forgotten."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.parts.tiles import LANES, _data, _folded, _larger, _smaller, _splat, _vector

_FLOAT, _LONG = ir.FloatType(), ir.IntType(64)


def _moments(typingctx: Any, x: Any, count: Any, low: Any, each: Any, top: Any, mean: Any) -> Any:
    """fn(x f32 [...], count, low, each, top, mean) -> the sums of q, q * q and q * (x - mean) over the first numbers.

    q: the nearest whole number to (x - low) * each from 0 to top. count is a multiple of LANES.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_FLOAT, LANES)
        base, zero = _data(context, builder, signature.args[0], args[0]), ir.Constant(kind, [0.0] * LANES)
        low, each, top, mean = (_splat(builder, arg) for arg in args[2:])
        rint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.rint.v{LANES}f32"
        )
        sums = [cgutils.alloca_once(builder, kind) for _ in range(3)]
        for held in sums:
            builder.store(zero, held)
        with cgutils.for_range(builder, builder.udiv(args[1], ir.Constant(_LONG, LANES)), intp=_LONG) as loop:
            lanes = builder.load(_vector(builder, base, builder.mul(loop.index, ir.Constant(_LONG, LANES))))
            lanes.align = 4
            q = _smaller(builder, _larger(builder, builder.fmul(builder.fsub(lanes, low), each), zero), top)
            q = builder.call(rint, [q])
            for held, more in zip(
                sums, (q, builder.fmul(q, q), builder.fmul(q, builder.fsub(lanes, mean))), strict=True
            ):
                builder.store(builder.fadd(builder.load(held), more), held)
        found = [_folded(builder, builder.load(held), builder.fadd) for held in sums]
        return context.make_tuple(builder, signature.return_type, found)

    f = types.float32
    return types.UniTuple(f, 3)(x, types.int64, f, f, f, f), codegen


moments: Any = intrinsic(_moments)
