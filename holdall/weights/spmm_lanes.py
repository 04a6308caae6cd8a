"""Sparse rows times strips of pixels, made of LLVM's vectors: the micro-kernels MRxNR of `spmm_kernels`.

A strip is MR neighbouring pixels of all channels. For each NR rows (output channels that share their non-zeros) the
sums of a strip stay in registers from the bias to the clamp; each non-zero costs one load a vector, which feeds NR
multiply-adds. All weights stream by once a strip. Pixels that are left over get half a strip, and half of that, down
to one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FLOAT, _INT, _LONG, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
_FAST = ("contract", "nsz", "nnan", "arcp")


def _wide() -> bool:
    """Whether the processor has 32 registers of sixteen floats."""
    features: dict[str, bool] = binding.get_host_cpu_features()
    return bool(features.get("avx512f"))


LANES, SUMS = (16, 16) if _wide() else (8, 8)  # SUMS: vectors that stay in registers
VECTORS = (8, 4, 2, 1)  # in a strip


def vectors(nr: int) -> tuple[int, ...]:
    """Strips, in vectors, of which NR rows' sums stay in registers."""
    return tuple(v for v in VECTORS if v * nr <= SUMS)


def spread(builder: Any, one: Any, kind: Any) -> Any:
    if not isinstance(kind, ir.VectorType):
        return one
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, one, _INT(0))
    same = ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, nothing, same)


def pick(builder: Any, sign: str, a: Any, b: Any) -> Any:
    """The larger (">") or smaller ("<") of two."""
    return builder.select(builder.fcmp_ordered(sign, a, b, flags=("nnan", "nsz")), a, b)


class _Strips:
    """The operands of `spmm`, and code for strips of every width."""

    def __init__(self, builder: Any, args: Any, nr: int):
        self.builder, self.nr = builder, nr
        self.x, self.values, self.steps, self.counts, self.groups, self.out, self.stride = args[:7]
        self.bounds = args[7:9]
        self.first, self.last, self.most = args[9:]

    def write(self) -> None:
        """The widest strips that are wanted, then narrower ones."""
        b, number = self.builder, self.first.type
        pixel = cgutils.alloca_once_value(b, self.first)
        sizes = [(v, LANES) for v in vectors(self.nr)] + [(1, n) for n in (8, 4, 2, 1) if n < LANES]
        for many, lanes in sizes:
            fit = b.sdiv(b.sub(self.last, b.load(pixel)), number(many * lanes))
            wanted = b.icmp_signed("<=", number(many), self.most)
            with cgutils.for_range(b, b.select(wanted, fit, number(0))):
                here = b.load(pixel)
                _Strip(self, here, many, lanes).write()
                b.store(b.add(here, number(many * lanes)), pixel)


class _Strip:
    """One strip: `vectors` of `lanes` pixels."""

    def __init__(self, all_of: _Strips, pixel: Any, vectors: int, lanes: int):
        b = self.builder = all_of.builder
        self.all, self.nr, self.lanes = all_of, all_of.nr, lanes
        self.kind = ir.VectorType(_FLOAT, lanes) if lanes > 1 else _FLOAT
        self.low, self.high = (spread(b, bound, self.kind) for bound in all_of.bounds)
        self.out = b.gep(all_of.out, [pixel])
        start = b.bitcast(b.gep(all_of.x, [pixel]), _BYTE.as_pointer())
        self.x, self.value, self.step = (
            cgutils.alloca_once(b, t) for t in (start.type, pixel.type, pixel.type)
        )
        for held, one in ((self.x, start), (self.value, pixel.type(0)), (self.step, pixel.type(0))):
            b.store(one, held)
        self.sums = [[cgutils.alloca_once(b, self.kind) for _ in range(vectors)] for _ in range(self.nr)]

    def _weights(self) -> list[Any]:
        """The next NR numbers of the stream, each in all lanes."""
        b, at = self.builder, self.builder.load(self.value)
        b.store(b.add(at, at.type(self.nr)), self.value)
        numbers = [b.load(b.gep(self.all.values, [b.add(at, at.type(r))])) for r in range(self.nr)]
        return [spread(b, one, self.kind) for one in numbers]

    def _lane(self, pointer: Any, v: int) -> Any:
        there = self.builder.gep(pointer, [_LONG(v * self.lanes * 4)])
        return self.builder.bitcast(there, self.kind.as_pointer())

    def write(self) -> None:
        """All groups of rows."""
        b, groups = self.builder, self.all.groups
        number = groups.type
        with cgutils.for_range(b, groups) as rows:
            for mine, bias in zip(self.sums, self._weights(), strict=True):
                for one in mine:
                    b.store(bias, one)
            many = b.load(b.gep(self.all.counts, [rows.index]))
            with cgutils.for_range(b, b.sext(many, number)):
                self._product()
            first = b.mul(rows.index, number(self.nr))
            for r, mine in enumerate(self.sums):
                there = b.gep(self.out, [b.mul(b.add(first, number(r)), self.all.stride)])
                there = b.bitcast(there, _BYTE.as_pointer())
                for v, one in enumerate(mine):
                    clamped = pick(b, "<", pick(b, ">", b.load(one), self.low), self.high)
                    b.store(clamped, self._lane(there, v)).align = 4

    def _product(self) -> None:
        """One non-zero of NR rows, and on to the next one's channel."""
        b = self.builder
        k, here = b.load(self.step), b.load(self.x)
        far = b.load(b.gep(self.all.steps, [k]))
        pixels = [b.load(self._lane(here, v)) for v in range(len(self.sums[0]))]
        for one in pixels:
            one.align = 4
        for mine, weight in zip(self.sums, self._weights(), strict=True):
            for total, one in zip(mine, pixels, strict=True):
                product = b.fmul(weight, one, flags=_FAST)
                b.store(b.fadd(b.load(total), product, flags=_FAST), total)
        b.store(b.gep(here, [b.sext(far, _LONG)]), self.x)
        b.store(b.add(k, k.type(1)), self.step)


def _function(module: Any, nr: int, kinds: list[Any]) -> Any:
    """Code of its own, which several places call: taken in by each, it would be compiled for minutes."""
    name = f"holdall.spmm.{nr}"
    if name in module.globals:
        return module.globals[name]
    made = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    made.linkage = "internal"
    made.attributes.add("noinline")
    builder = ir.IRBuilder(made.append_basic_block("entry"))
    _Strips(builder, made.args, nr).write()
    builder.ret_void()
    return made


def _made(nr: int) -> Any:
    """fn(x, start, values, value, steps, step, counts, count, groups, out, to, stride, low, high, first, last,
    vectors).

    x f32: the first non-zero's channel begins at `start`. values f32, from `value` on: NR biases, then NR weights a
    non-zero, for each of `groups`. steps i32, from `step` on: bytes from a non-zero's channel to the next one's, the
    last of all leading back to the first. counts i32, from `count` on: non-zeros of each group. out f32: row r's
    clamped sums begin at `to` + r * `stride`. Pixels [first, last), in strips of at most `vectors` vectors.
    """
    n, f = types.intp, types.float32

    @intrinsic
    def spmm(  # type: ignore[no-untyped-def]
        typingctx,
        x, start, values, value, steps, step, counts, count, groups, out, to, stride, low, high, first, last, vectors,
    ):  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def place(i: int, item: Any) -> Any:
                data = context.make_array(signature.args[i])(context, builder, args[i]).data
                return builder.gep(builder.bitcast(data, item.as_pointer()), [args[i + 1]])

            told = [
                place(0, _FLOAT),
                place(2, _FLOAT),
                place(4, _INT),
                place(6, _INT),
                args[8],
                place(9, _FLOAT),
            ]
            told += args[11:]
            builder.call(_function(builder.module, nr, [a.type for a in told]), told)
            return context.get_dummy_value()

        return types.void(x, n, values, n, steps, n, counts, n, n, out, n, n, f, f, n, n, n), codegen

    return spmm


spmm_1, spmm_2, spmm_4 = (_made(nr) for nr in (1, 2, 4))
