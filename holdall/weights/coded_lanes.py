"""Whole-number products of sixteen coded rows with a few tokens, made of LLVM's vectors.

A vector of a tile (see `coded_tiles`), shifted and masked, has in lane r four neighbouring codes of row r, one a byte;
four numbers of a token stand in all lanes against them. Numbers of 8 bits are multiplied four at a time (vpdpbusd of
AVX-512 VNNI), those of 16 bits two at a time (vpdpwssd, or vpmaddwd of AVX2); other machines multiply one by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.weights.coded_tiles import PLANES
from holdall.weights.lanes import INT, LANES, SHORT, VECTOR, ZERO, at, shape

LONG = ir.IntType(64)
INTS = ir.VectorType(INT, LANES)
_NONE = ir.Constant(INTS, [0] * LANES)
_FAST = ("fast",)
CHAINS = 4  # sums in the making at least; an addition waits five cycles for the one before


def level() -> str:
    """What this processor multiplies whole numbers with: vnni, avx2 or plain."""
    has: dict[str, bool] = binding.get_host_cpu_features()
    if has.get("avx512vnni") and has.get("avx512bw"):
        return "vnni"
    return "avx2" if has.get("avx2") else "plain"


def same(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def splat(builder: Any, one: Any) -> Any:
    kind = ir.VectorType(one.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), one, INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), _NONE)


def call(builder: Any, name: str, out: Any, *args: Any) -> Any:
    kind = ir.FunctionType(out, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def dot(builder: Any, total: Any, codes: Any, number: Any, eight: bool, how: str) -> Any:
    """total + the sum of codes times numbers in each lane: four unsigned bytes, or two words, against one i32 `number`
    of as many signed ones."""
    x = splat(builder, number)
    if how == "vnni":
        # of words the saturating form: nothing reaches its limits, and the other one LLVM takes apart, for the worse
        name = "llvm.x86.avx512.vpdpbusd.512" if eight else "llvm.x86.avx512.vpdpwssds.512"
        return call(builder, name, INTS, total, codes, x)
    if how == "avx2" and not eight:
        return builder.add(total, _halves(builder, codes, x))
    step = 8 if eight else 16
    for place in range(0, 32, step):
        code = builder.and_(builder.lshr(codes, same(place)), same((1 << step) - 1))
        signed = builder.ashr(builder.shl(x, same(32 - step - place)), same(32 - step))
        total = builder.add(total, builder.mul(code, signed))
    return total


def _halves(builder: Any, codes: Any, x: Any) -> Any:
    """vpmaddwd on eight lanes and eight lanes."""
    half, words = ir.VectorType(INT, 8), ir.VectorType(SHORT, 16)
    found = []
    for first in (0, 8):
        some = ir.Constant(half, list(range(first, first + 8)))
        a, b = (builder.bitcast(builder.shuffle_vector(v, v, some), words) for v in (codes, x))
        found.append(call(builder, "llvm.x86.avx2.pmadd.wd", half, a, b))
    return builder.shuffle_vector(*found, ir.Constant(INTS, list(range(LANES))))


class Tile(ABC):
    """Blocks of columns of sixteen rows, one after another. What makes one sets all of these, and has the rest."""

    builder: Any
    bits: int
    tokens: range
    zero: Any  # what sums of a block begin with
    totals: list[Any]  # of each token
    held: list[list[Any]]  # of each token, sums in the making
    tiles: Any
    start: Any
    begins: Any
    blocks: Any
    out: Any

    def run(self) -> None:
        builder = self.builder
        for total in self.totals:
            builder.store(ZERO, total)
        with cgutils.for_range(builder, self.blocks) as loop:
            for held in (h for token in self.held for h in token):
                builder.store(self.zero, held)
            begin, end = (
                builder.load(builder.gep(self.begins, [builder.add(loop.index, LONG(i))])) for i in (0, 1)
            )
            with cgutils.for_range_slice(builder, begin, end, LONG(1), LONG) as (chunk, _):
                self.chunk(chunk)
            self.flush(loop.index)
        for t, total in zip(self.tokens, self.totals, strict=True):
            builder.store(builder.load(total), builder.gep(self.out, [LONG(t)])).align = 4

    def vectors(self, chunk: Any) -> list[Any]:
        """The codes of 32 columns."""
        builder, found = self.builder, []
        place = builder.add(self.start, builder.mul(chunk, LONG(self.bits)))
        for v in range(self.bits):
            found.append(builder.load(builder.gep(self.tiles, [builder.add(place, LONG(v))])))
            found[-1].align = 64
        return found

    @abstractmethod
    def chunk(self, chunk: Any) -> None:
        """32 columns."""

    @abstractmethod
    def flush(self, block: Any) -> None:
        """A block's sums into `totals`."""


class _Tile(Tile):
    """The operands of `dots`, and code for one block of columns."""

    def __init__(self, context: Any, builder: Any, kinds: Any, args: Any, bits: int, tokens: int, how: str):
        self.builder, self.bits, self.tokens, self.how, self.zero = builder, bits, range(tokens), how, _NONE
        array = [context.make_array(k)(context, builder, a) if isinstance(k, types.Array) else a
                 for k, a in zip(kinds, args, strict=True)]  # fmt: skip
        _, tiles, self.start, scale, low, self.grid, mix, begins, owners, x, xs, sums, self.first, out = array
        self.eight = kinds[9].dtype == types.int8
        self.tiles = builder.bitcast(tiles.data, INTS.as_pointer())
        self.scale, self.low = (builder.bitcast(a.data, SHORT.as_pointer()) for a in (scale, low))
        self.mix = mix.data
        self.begins, self.owners, self.xs, self.sums = begins.data, owners.data, xs.data, sums.data
        self.x = builder.bitcast(x.data, INT.as_pointer())
        self.out = builder.bitcast(out.data, VECTOR.as_pointer())
        self.width = shape(context, builder, kinds[9], args[9])[1]
        self.blocks = shape(context, builder, kinds[10], args[10])[1]
        self.planes = PLANES[bits]
        self.totals = [cgutils.alloca_once(builder, VECTOR) for _ in self.tokens]
        self.held = [self.chains(max(1, CHAINS // tokens)) for _ in self.tokens]

    def chains(self, count: int) -> list[Any]:
        """Sums that do not wait for one another."""
        return [cgutils.alloca_once(self.builder, INTS) for _ in range(count)]

    def chunk(self, chunk: Any) -> None:
        """32 columns."""
        builder = self.builder
        each = 1 if self.eight else 2  # i32 of numbers for four columns
        before = builder.mul(self.first, builder.udiv(self.width, LONG(4 // each)))
        numbers = builder.add(before, builder.mul(chunk, LONG(8 * each * len(self.tokens))))
        vectors = self.vectors(chunk)
        for four in range(8):
            for part in range(each):
                self.add(self.codes(vectors, four, part), numbers, four * each + part)

    def codes(self, vectors: list[Any], four: int, part: int) -> Any:
        """The codes of four columns, one a byte; or of two of them, one a word: bytes 0 and 2, or 1 and 3."""
        builder, found, first, low = self.builder, None, 0, 0
        for plane in self.planes:
            vector, i = divmod(four, 8 // plane)
            codes, down = vectors[first + vector], plane * i + 8 * part - low
            if down:
                codes = builder.lshr(codes, same(down)) if down > 0 else builder.shl(codes, same(-down))
            mask = (((1 << plane) - 1) << low) * (0x01010101 if self.eight else 0x00010001)
            codes = codes if mask == 0xFFFFFFFF else builder.and_(codes, same(mask))
            found = codes if found is None else builder.or_(found, codes)
            first, low = first + plane, low + plane
        return found

    def add(self, codes: Any, numbers: Any, four: int) -> None:
        """The numbers of all tokens for the same columns stand side by side."""
        builder = self.builder
        for t, chains in zip(self.tokens, self.held, strict=True):
            total = chains[four % len(chains)]
            place = four * len(self.tokens) + t
            number = builder.load(builder.gep(self.x, [builder.add(numbers, LONG(place))]))
            number.align = 4
            builder.store(dot(builder, builder.load(total), codes, number, self.eight, self.how), total)

    def flush(self, block: Any) -> None:
        """total += step * (scale of the token * whole sum) + start * sum of the token's numbers, for each token."""
        builder = self.builder
        grid = builder.add(self.grid, builder.load(builder.gep(self.owners, [block])))
        step, low = half(builder, self.scale, grid), half(builder, self.low, grid)
        start = starts(builder, step, low, self.mix)
        for t, total in zip(self.tokens, self.totals, strict=True):
            whole = _NONE
            for chain in self.held[t]:
                whole = builder.add(whole, builder.load(chain))
            place = at(builder, builder.add(self.first, LONG(t)), self.blocks, block)
            size, many = (splat(builder, builder.load(builder.gep(a, [place]))) for a in (self.xs, self.sums))
            product = builder.fmul(builder.fmul(step, size, _FAST), builder.sitofp(whole, VECTOR), _FAST)
            product = builder.fadd(product, builder.fmul(start, many, _FAST), _FAST)
            builder.store(builder.fadd(builder.load(total), product, _FAST), total)


def starts(builder: Any, step: Any, low: Any, mix: Any) -> Any:
    """What a sum of numbers is worth in a grid: low * (a + step * b) + step * c, for the three numbers at `mix`."""
    a, b, c = (splat(builder, builder.load(builder.gep(mix, [LONG(i)]))) for i in range(3))
    leads = builder.fmul(low, builder.fadd(a, builder.fmul(step, b, _FAST), _FAST), _FAST)
    return builder.fadd(leads, builder.fmul(step, c, _FAST), _FAST)


def half(builder: Any, base: Any, grid: Any) -> Any:
    """The sixteen half-precision numbers of a grid, as floats."""
    place = builder.gep(base, [builder.mul(grid, LONG(LANES))])
    found = builder.load(builder.bitcast(place, ir.VectorType(ir.HalfType(), LANES).as_pointer()))
    found.align = 2
    return builder.fpext(found, VECTOR)


def _dots(tokens: int, how: str) -> Any:
    """fn(width: a tuple of as many numbers as codes have bits, tiles u8, the vector where the tile begins, scale and
    low as u16 [T, G, 16], the grid where the tile begins, mix f32 [3], begins i64 [N + 1], owners i64 [N], x i8 or i16
    [., K], xs f32 [., N], sums f32 [., N], token, out f32 [tokens, 16]); all contiguous.

    Tokens [token, token + tokens) times the sixteen rows of a tile. Block n is chunks [begins[n], begins[n + 1]) with
    grid number owners[n]; mix (a, b, c) makes what a sum of numbers is worth: low * (a + step * b) + step * c.
    """

    @intrinsic
    def dots(
        typingctx: Any, width: Any, tiles: Any, start: Any, scale: Any, low: Any, grid: Any, mix: Any, begins: Any,
        owners: Any, x: Any, xs: Any, sums: Any, token: Any, out: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _Tile(context, builder, signature.args, args, len(width), tokens, how).run()
            return context.get_dummy_value()

        long = types.int64
        return types.void(
            width, tiles, long, scale, low, long, mix, begins, owners, x, xs, sums, long, out
        ), codegen

    return dots


dots_1, dots_2, dots_4, dots_8 = (_dots(tokens, level()) for tokens in (1, 2, 4, 8))
