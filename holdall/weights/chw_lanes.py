"""Depthwise convolutions and the copying of rows, made of LLVM's vectors; the ends of rows are masked."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.weights.spmm_lanes import LANES, pick, spread

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INDEX = (ir.VectorType(t, LANES) for t in (_FLOAT, _INT))
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)
_FAST = ("contract", "nsz", "nnan", "arcp")
_ROWS = (4, 1)  # of what comes out, at once: they share each weight


def _base(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, _FLOAT.as_pointer()), [at])


def _mask(builder: Any, left: Any) -> Any:
    """The first `left` lanes."""
    many = spread(builder, builder.trunc(left, _INT), _INDEX)
    return builder.icmp_signed("<", ir.Constant(_INDEX, list(range(LANES))), many)


def _masked(builder: Any, what: str, pointer: Any, mask: Any, value: Any) -> Any:
    """A masked load (whose other lanes are `value`) or store (of `value`)."""
    pointer = builder.bitcast(pointer, _VECTOR.as_pointer())
    given = [pointer, _INT(4), mask, value] if what == "load" else [value, pointer, _INT(4), mask]
    kind = ir.FunctionType(_VECTOR if what == "load" else ir.VoidType(), [g.type for g in given])
    name = f"llvm.masked.{what}.v{LANES}f32.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)


def _copy_rows(typingctx, x, source, pitch, out, to, stride, rows, width):  # type: ignore[no-untyped-def]
    """fn(x, source, pitch, out, to, stride, rows, width): rows of `width` floats from one array to another."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        number = args[1].type
        here = _base(context, b, signature.args[0], args[0], args[1])
        there = _base(context, b, signature.args[3], args[3], args[4])
        parts = b.sdiv(b.add(args[7], number(LANES - 1)), number(LANES))
        with cgutils.for_range(b, args[6]) as row, cgutils.for_range(b, parts) as part:
            column = b.mul(part.index, number(LANES))
            mask = _mask(b, b.sub(args[7], column))
            taken = b.gep(here, [b.add(b.mul(row.index, args[2]), column)])
            put = b.gep(there, [b.add(b.mul(row.index, args[5]), column)])
            _masked(b, "store", put, mask, _masked(b, "load", taken, mask, _ZERO))
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, n, out, n, n, n, n), codegen


copy_rows: Any = intrinsic(_copy_rows)


class _Taps:
    """The operands of `taps`, and code for some rows. size: of the kernel where it is known, else None."""

    def __init__(self, builder: Any, step: int, size: int | None, args: Any):
        self.builder, self.step, self.size = builder, step, size
        self.x, self.pitch, self.weights, self.k, self.l, self.out, self.rows, self.width, *bounds = args
        self.low, self.high = (spread(builder, one, _VECTOR) for one in bounds)

    def write(self) -> None:
        b, number = self.builder, self.rows.type
        y = cgutils.alloca_once_value(b, number(0))
        for many in _ROWS:
            times = b.sdiv(b.sub(self.rows, b.load(y)), number(many))
            with cgutils.for_range(b, times):
                here = b.load(y)
                parts = b.sdiv(b.add(self.width, number(LANES - 1)), number(LANES))
                with cgutils.for_range(b, parts) as part:
                    self._block(here, b.mul(part.index, number(LANES)), many)
                b.store(b.add(here, number(many)), y)

    def _block(self, y: Any, column: Any, many: int) -> None:
        """A vector of each of `many` rows."""
        b, number = self.builder, y.type
        sums = [cgutils.alloca_once(b, _VECTOR) for _ in range(many)]
        bias = spread(b, b.load(self.weights), _VECTOR)
        for one in sums:
            b.store(bias, one)
        start = b.add(b.mul(b.mul(y, number(self.step)), self.pitch), b.mul(column, number(self.step)))
        if self.size is None:
            with cgutils.for_range(b, self.k) as ky, cgutils.for_range(b, self.l) as kx:
                self._tap(b.add(start, kx.index), ky.index, b.add(b.mul(ky.index, self.l), kx.index), sums)
        else:
            for place in range(self.size**2):
                ky, kx = divmod(place, self.size)
                self._tap(b.add(start, number(kx)), number(ky), number(place), sums)
        mask = _mask(b, b.sub(self.width, column))
        for r, one in enumerate(sums):
            clamped = pick(b, "<", pick(b, ">", b.load(one), self.low), self.high)
            to = b.add(b.mul(b.add(y, number(r)), self.width), column)
            _masked(b, "store", b.gep(self.out, [to]), mask, clamped)

    def _tap(self, column: Any, ky: Any, place: Any, sums: list[Any]) -> None:
        """One weight for all rows; what two rows need LLVM loads once, where the kernel's size is known."""
        b, number = self.builder, ky.type
        weight = spread(b, b.load(b.gep(self.weights, [b.add(place, number(1))])), _VECTOR)
        for r, one in enumerate(sums):
            pixel = b.add(column, b.mul(b.add(ky, number(r * self.step)), self.pitch))
            product = b.fmul(weight, self._pixels(pixel), flags=_FAST)
            b.store(b.fadd(b.load(one), product, flags=_FAST), one)

    def _pixels(self, at: Any) -> Any:
        """Neighbouring pixels, or every other one."""
        b, found = self.builder, []
        for v in range(self.step):
            one = b.load(b.bitcast(b.gep(self.x, [b.add(at, at.type(v * LANES))]), _VECTOR.as_pointer()))
            one.align = 4
            found.append(one)
        if self.step == 1:
            return found[0]
        return b.shuffle_vector(*found, ir.Constant(_INDEX, list(range(0, 2 * LANES, 2))))


def _sized(builder: Any, step: int, args: Any, sizes: tuple[int, ...] = (3, 5)) -> None:
    """Code for the usual sizes, and loops for all others."""
    if not sizes:
        _Taps(builder, step, None, args).write()
        return
    size = args[3].type(sizes[0])
    same = builder.and_(*(builder.icmp_signed("==", one, size) for one in args[3:5]))
    with builder.if_else(same) as (this, others):
        with this:
            _Taps(builder, step, sizes[0], args).write()
        with others:
            _sized(builder, step, args, sizes[1:])


def _made(step: int) -> Any:
    """fn(x, start, pitch, weights, value, k, l, out, to, rows, width, low, high).

    One channel: x f32, its border included, rows `pitch` apart; weights f32: a bias, then k * l. Reads up to two
    vectors beyond the last row.
    """
    n, f = types.intp, types.float32

    @intrinsic
    def taps(typingctx, x, start, pitch, weights, value, k, ell, out, to, rows, width, low, high):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            here, told, there = (
                _base(context, builder, signature.args[i], args[i], args[i + 1]) for i in (0, 3, 7)
            )
            _sized(builder, step, [here, args[2], told, *args[5:7], there, *args[9:]])
            return context.get_dummy_value()

        return types.void(x, n, n, weights, n, n, n, out, n, n, n, f, f), codegen

    return taps


taps_1, taps_2 = (_made(step) for step in (1, 2))
