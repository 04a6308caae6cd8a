"""Sixteen float32 at once inside of numba kernels: numba leaves short loops scalar, LLVM's own vectors are always SIMD.

`load`, `spread`, `+ - * /`, `fma`, `least`, `select`, `<`, `&`, `store`, `total` work on values that live in registers
only. A scalar float32 beside lanes is spread over them.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

WIDE = 16
_made: Any = intrinsic  # which hides from type checkers what it makes
_POWERS = (1.0000001192092896, 0.6931469440460205, 0.24022120237350464, 0.05550713464617729, 0.009675540961325169,
           0.0013276468962430954)  # fmt: skip
_FLOATS = ir.VectorType(ir.FloatType(), WIDE)


class _Lanes(types.Type):
    def __init__(self, name: str):
        super().__init__(name=f"{name}{WIDE}")


class _Mask(_Lanes):
    pass


LANES, MASK = _Lanes("Lanes"), _Mask("Mask")
_F32 = types.float32
for _class, _held in (
    (_Lanes, _FLOATS),
    (_Mask, ir.VectorType(ir.IntType(1), WIDE)),
):

    class _Model(models.PrimitiveModel):
        held = _held

        def __init__(self, manager: Any, kind: Any):
            super().__init__(manager, kind, self.held)

    register_model(_class)(_Model)


def _spread(builder: Any, value: Any, wide: Any = _FLOATS) -> Any:
    if isinstance(value.type, ir.VectorType):
        return value
    one = builder.insert_element(ir.Constant(wide, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), WIDE), [0] * WIDE))


def _operator(symbol: Any, lowered: str, result: Any, kinds: Any, *more: str) -> None:
    cases = [signature(result, *pair) for pair in kinds]
    infer_global(symbol)(type("_Typed", (ConcreteTemplate,), {"cases": cases}))
    for pair in kinds:

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, lowered)(*more, *(_spread(builder, a) for a in args))

        lower_builtin(symbol, *pair)(lower)


_PAIRS = ((LANES, LANES), (LANES, _F32), (_F32, LANES))
for _symbol, _lowered in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _lowered, LANES, _PAIRS)
_operator(operator.lt, "fcmp_ordered", MASK, _PAIRS, "<")
_operator(operator.ge, "fcmp_ordered", MASK, _PAIRS, ">=")
_operator(operator.and_, "and_", MASK, ((MASK, MASK),))
_operator(operator.or_, "or_", MASK, ((MASK, MASK),))


def _call(builder: Any, name: str, result: Any, args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@_made
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fmuladd.v{WIDE}f32", _FLOATS, [_spread(builder, v) for v in args])

    return signature(LANES, *(_F32 if isinstance(x, types.Number) else x for x in (a, b, c))), made


@_made
def select(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """a where the mask is set, b elsewhere."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(args[0], *(_spread(builder, v) for v in args[1:]))

    return signature(LANES, MASK, *(_F32 if isinstance(x, types.Number) else x for x in (a, b))), made


@_made
def power_of_two(typing: Any, a: Any) -> Any:
    """2^a for a from -126 to 126: a polynomial for the fraction, the whole added to the exponent; 2e-7 off at most."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.VectorType(ir.IntType(32), WIDE)
        magic = ir.Constant(
            _FLOATS, [12582912.0] * WIDE
        )  # 1.5 * 2^23: what is added to it is rounded to a whole
        near = builder.fadd(args[0], magic)
        rest = builder.fsub(args[0], builder.fsub(near, magic))
        value = ir.Constant(_FLOATS, [_POWERS[-1]] * WIDE)
        for term in _POWERS[-2::-1]:
            terms = [value, rest, ir.Constant(_FLOATS, [term] * WIDE)]
            value = _call(builder, f"llvm.fmuladd.v{WIDE}f32", _FLOATS, terms)
        up = builder.shl(builder.bitcast(near, bits), ir.Constant(bits, [23] * WIDE))
        return builder.bitcast(builder.add(builder.bitcast(value, bits), up), _FLOATS)

    return signature(LANES, LANES), made


@_made
def some(typing: Any, a: Any) -> Any:
    """Whether any of a mask is set."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = builder.bitcast(args[0], ir.IntType(WIDE))
        return builder.icmp_unsigned("!=", whole, ir.Constant(whole.type, 0))

    return signature(types.boolean, MASK), made


@_made
def negative(typing: Any, a: Any) -> Any:
    """-|a|"""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.VectorType(ir.IntType(32), WIDE)
        signs = ir.Constant(bits, [0x80000000] * WIDE)
        return builder.bitcast(builder.or_(builder.bitcast(args[0], bits), signs), _FLOATS)

    return signature(LANES, LANES), made


@_made
def spread(typing: Any, value: Any) -> Any:
    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(builder, args[0])

    return signature(LANES, _F32), made


@_made
def count(typing: Any) -> Any:
    """0, 1, 2 ..."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_FLOATS, [float(i) for i in range(WIDE)])

    return signature(LANES), made


def _place(context: Any, builder: Any, sig: Any, args: Any, wide: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), wide.as_pointer())


@_made
def load(typing: Any, array: Any, at: Any) -> Any:
    """array [n] float32, contiguous, from that index on; nothing is checked."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_place(context, builder, sig, args, _FLOATS), align=4)

    return signature(LANES, array, types.intp), made


@_made
def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(_spread(builder, args[2]), _place(context, builder, sig, args, _FLOATS), align=4)
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, value), made


def _halved(builder: Any, whole: Any, joined: Any) -> Any:
    """One number of all lanes, always by the same halves."""
    wide = WIDE
    while wide > 1:
        wide //= 2
        kind = ir.VectorType(ir.IntType(32), wide)
        halves = (ir.Constant(kind, list(range(at, at + wide))) for at in (0, wide))
        whole = joined(*(builder.shuffle_vector(whole, whole, half) for half in halves))
    return builder.extract_element(whole, ir.Constant(ir.IntType(32), 0))


@_made
def total(typing: Any, a: Any) -> Any:
    """The sum of all lanes."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _halved(builder, args[0], builder.fadd)

    return signature(_F32, LANES), made


@_made
def most(typing: Any, a: Any) -> Any:
    """The largest of all lanes."""

    def made(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def larger(x: Any, y: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", x, y), x, y)

        return _halved(builder, args[0], larger)

    return signature(_F32, LANES), made
