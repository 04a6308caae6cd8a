"""AdamW in one pass over memory: the fused step that runs beside a backward pass, in threads that hold no lock.

Multiplications and additions are fused where torch's own loop fuses them, so that fp32 results equal those of
`torch.optim.AdamW(fused=True)` bit for bit on x86, odd sizes included: the last elements of a tensor, which torch does
one by one, are rounded another way there. (Unfused AdamW takes a square root that is not the nearest number.)
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic

from holdall.errors import BadInput
from holdall.parts.paging import memory_of

intrinsic: Any = _intrinsic  # its calls are typed by the compiler, with one argument less
_FLOAT, _WORD, _SHORT = ir.FloatType(), ir.IntType(32), ir.IntType(16)
_KINDS = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.int16}
_LANES = 8  # of torch's fused loop, on machines with wider registers too
_LINE = 1024  # elements: shares of threads begin at cache lines


class Hyper(NamedTuple):
    """What one step multiplies with, worked out in double precision as torch does. `sign` is -1 to maximize."""

    decay: float
    blend1: float
    keep2: float
    blend2: float
    root2: float
    eps: float
    step: float
    sign: float

    @classmethod
    def of(cls, group: Mapping[str, Any], t: int) -> Hyper:
        """Of a parameter group of torch's AdamW, at its t-th step (the first is 1)."""
        lr, (b1, b2), eps, wd = (float(group["lr"]), group["betas"], group["eps"], group["weight_decay"])
        step, root = -(lr / (1 - b1**t)), (1 - b2**t) ** 0.5
        return cls(1 - lr * wd, 1 - b1, b2, 1 - b2, root, eps, step, -1.0 if group.get("maximize") else 1.0)


@intrinsic
def _fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fma", [_FLOAT], kind), args)

    return types.float32(types.float32, types.float32, types.float32), lower


@intrinsic
def _wide(_context: Any, x: Any) -> Any:
    """fp32 of fp32, of bf16 (its bits in uint16) or of fp16 (in int16)."""

    def lower(_c: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, value = signature.args[0], args[0]
        if kind == types.uint16:
            high = builder.shl(builder.zext(value, _WORD), ir.Constant(_WORD, 16))
            value = builder.bitcast(high, _FLOAT)
        elif kind == types.int16:
            value = builder.fpext(builder.bitcast(value, ir.HalfType()), _FLOAT)
        return value

    return types.float32(x), lower


@intrinsic
def _narrow(_context: Any, x: Any, out: Any) -> Any:
    """The nearest number in the format of the array `out`, even where two are as near."""

    def lower(_c: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, value = signature.args[1].dtype, args[0]
        if kind == types.uint16:
            bits = builder.bitcast(value, _WORD)
            places = ir.Constant(_WORD, 16)
            odd = builder.and_(builder.lshr(bits, places), ir.Constant(_WORD, 1))
            near = builder.lshr(builder.add(builder.add(bits, ir.Constant(_WORD, 0x7FFF)), odd), places)
            number = builder.fcmp_ordered("==", value, value)  # rounding would make infinity of some NaN
            return builder.trunc(builder.select(number, near, ir.Constant(_WORD, 0x7FC0)), _SHORT)
        if kind == types.int16:
            return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _SHORT)
        return value

    return out.dtype(types.float32, out), lower


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _pass(p: Any, m: Any, v: Any, g: Any, out: Any, scale: Any, h: Any, edge: Any) -> None:
    decay, blend1, keep2, blend2, root2, eps, step = h
    for i in range(edge):
        gi = _wide(g[i]) * scale
        mi = _fma(blend1, gi - m[i], m[i])
        vi = _fma(blend2 * gi, gi, v[i] * keep2)
        pi = p[i] * decay + step * mi / (np.sqrt(vi) / root2 + eps)
        p[i], m[i], v[i] = pi, mi, vi
        if out is not None:
            out[i] = _narrow(pi, out)
    for i in range(edge, p.size):
        gi = _wide(g[i]) * scale
        mi = _fma(blend1, gi - m[i], m[i])
        vi = _fma(v[i], keep2, blend2 * gi * gi)
        pi = p[i] * decay + step * mi / (np.sqrt(vi) / root2 + eps)
        p[i], m[i], v[i] = pi, mi, vi
        if out is not None:
            out[i] = _narrow(pi, out)


@numba.njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def _squares(g: Any, scale: Any) -> Any:
    total = 0.0
    for start in range(0, g.size, 4096):
        part: Any = np.float32(
            0
        )  # short sums in fp32 keep lanes busy, the long one is exact enough in double
        for i in range(start, min(start + 4096, g.size)):
            x = _wide(g[i]) * scale
            part += x * x
        total += part
    return total


def raw(x: Any) -> np.ndarray:
    """A flat array over the memory of a contiguous tensor or array; bf16 as uint16, fp16 as int16."""
    if hasattr(x, "untyped_storage"):
        kind = _KINDS.get(str(x.dtype).removeprefix("torch."))
        if kind is None or not x.is_contiguous() or x.device.type != "cpu":
            raise BadInput(
                "tensor", f"{x.dtype} on {x.device}", "fp32, bf16 or fp16, contiguous, in host memory"
            )
        return memory_of(x).view(kind)
    x = np.asarray(x).reshape(-1)
    return x.view(np.int16) if x.dtype == np.float16 else x


def adamw(
    p: Any,
    m: Any,
    v: Any,
    g: Any,
    hyper: Hyper,
    out: Any = None,
    scale: float = 1.0,
    tail: int = 0,
    pool: Executor | None = None,
    shares: int = 1,
) -> None:
    """One step, in place: p, m, v fp32 [n]; g [n] in fp32, bf16 or fp16 is multiplied by `scale` first; out [n]: a copy
    of the new p in its own format. tail: how many at the end torch would do one by one. pool, shares: threads to do
    that many parts in at once."""
    p, m, v, g = (raw(x) for x in (p, m, v, g))
    out = None if out is None else raw(out)
    sizes = {x.size for x in (p, m, v, g, *([] if out is None else [out]))}
    if len(sizes) > 1 or any(x.dtype != np.float32 for x in (p, m, v)):
        raise BadInput("arrays of one step", sorted(sizes), "one size, and fp32 for p, m and v")
    told = tuple(np.float32(x) for x in hyper[:7])
    each = -(-p.size // shares // _LINE) * _LINE if pool else p.size
    parts = [slice(i, i + each) for i in range(0, p.size, max(each, 1))]

    edge, factor = p.size - tail, np.float32(scale * hyper.sign)

    def part(s: slice) -> None:
        mine = min(max(edge - s.start, 0), min(s.stop, p.size) - s.start)
        _pass(p[s], m[s], v[s], g[s], None if out is None else out[s], factor, told, mine)

    for done in pool.map(part, parts) if pool else map(part, parts):
        assert done is None


def tail_of(numel: int, start: int, stop: int) -> int:
    """How many of a tensor's elements `start` to `stop` torch's fused loop does one by one."""
    return max(0, stop - max(start, numel - numel % _LANES))


def squares(g: Any, scale: float = 1.0) -> float:
    """The sum of squares of g * scale; not finite where g is not."""
    return float(_squares(raw(g), np.float32(scale)))


def naive_adamw(p: Any, m: Any, v: Any, g: Any, hyper: Hyper, scale: float = 1.0) -> None:
    """The same step in double precision, pass by pass: the slow truth."""
    h, g = hyper, np.asarray(g, np.float64) * scale * hyper.sign
    m[:] = m + h.blend1 * (g - m)
    v[:] = v * h.keep2 + h.blend2 * g * g
    p[:] = p * h.decay + h.step * m / (np.sqrt(v) / h.root2 + h.eps)
