"""Products of sixteen coded rows with a few tokens, all in float32: a value is looked up for each code.

Palettes of up to 16 values stay in one register (vpermps); larger ones are gathered from memory.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.weights.coded_lanes import CHAINS, INTS, LONG, Tile, call, half, level, same, splat, starts
from holdall.weights.coded_tiles import PLANES
from holdall.weights.lanes import INT, LANES, SHORT, VECTOR, ZERO, at, shape

_FAST = ("fast",)


class _Tile(Tile):
    """The operands of `lookups`, and code for one block of columns."""

    def __init__(self, context: Any, builder: Any, kinds: Any, args: Any, bits: int, tokens: int):
        self.builder, self.bits, self.tokens, self.zero = builder, bits, range(tokens), ZERO
        array = [context.make_array(k)(context, builder, a) if isinstance(k, types.Array) else a
                 for k, a in zip(kinds, args, strict=True)]  # fmt: skip
        _, tiles, self.start, scale, low, self.grid, mix, table, begins, owners, x, sums, self.first, out = (
            array
        )
        self.tiles = builder.bitcast(tiles.data, INTS.as_pointer())
        self.scale, self.low = (builder.bitcast(a.data, SHORT.as_pointer()) for a in (scale, low))
        self.mix, self.sums = mix.data, sums.data
        self.begins, self.owners, self.x, self.table = begins.data, owners.data, x.data, table.data
        self.out = builder.bitcast(out.data, VECTOR.as_pointer())
        self.width = shape(context, builder, kinds[10], args[10])[1]
        self.blocks = shape(context, builder, kinds[9], args[9])[0]
        self.near = None
        if bits <= 4 and level() == "vnni":
            self.near = builder.load(builder.bitcast(self.table, VECTOR.as_pointer()))
            self.near.align = 4
        chains = max(1, CHAINS // tokens)
        self.totals = [cgutils.alloca_once(builder, VECTOR) for _ in self.tokens]
        self.held = [[cgutils.alloca_once(builder, VECTOR) for _ in range(chains)] for _ in self.tokens]

    def flush(self, block: Any) -> None:
        """total += step * (sum of values times numbers) + start * sum of the token's numbers, for each token."""
        builder = self.builder
        grid = builder.add(self.grid, builder.load(builder.gep(self.owners, [block])))
        step = half(builder, self.scale, grid)
        start = starts(builder, step, half(builder, self.low, grid), self.mix)
        for t, (total, chains) in enumerate(zip(self.totals, self.held, strict=True)):
            place = at(builder, builder.add(self.first, LONG(t)), self.blocks, block)
            many = splat(builder, builder.load(builder.gep(self.sums, [place])))
            first = builder.fadd(builder.load(total), builder.fmul(start, many, _FAST), _FAST)
            builder.store(first, total)
            for chain in chains:
                product = builder.fmul(step, builder.load(chain), _FAST)
                builder.store(builder.fadd(builder.load(total), product, _FAST), total)

    def chunk(self, chunk: Any) -> None:
        """32 columns."""
        builder = self.builder
        vectors = self.vectors(chunk)
        before = builder.mul(self.first, self.width)
        numbers = builder.add(before, builder.mul(chunk, LONG(32 * len(self.tokens))))
        for column in range(32):
            values = self.values(self.code(vectors, column))
            for t, chains in zip(self.tokens, self.held, strict=True):
                where = builder.add(numbers, LONG(column * len(self.tokens) + t))
                number = builder.load(builder.gep(self.x, [where]))
                number.align = 4
                product = builder.fmul(values, splat(builder, number), _FAST)
                total = chains[column % len(chains)]
                builder.store(builder.fadd(builder.load(total), product, _FAST), total)

    def code(self, vectors: list[Any], column: int) -> Any:
        """The codes of one column, one a lane; a register's lookup takes no notice of what stands above them."""
        builder, found, first, low = self.builder, None, 0, 0
        for plane in PLANES[self.bits]:
            vector, i = divmod(column // 4, 8 // plane)
            codes, down = vectors[first + vector], plane * i + 8 * (column % 4) - low
            if down:
                codes = builder.lshr(codes, same(down)) if down > 0 else builder.shl(codes, same(-down))
            if self.near is None or self.bits != 4:
                codes = builder.and_(codes, same(((1 << plane) - 1) << low))
            found = codes if found is None else builder.or_(found, codes)
            first, low = first + plane, low + plane
        return found

    def values(self, codes: Any) -> Any:
        builder = self.builder
        if self.near is not None:
            return call(builder, "llvm.x86.avx512.permvar.sf.512", VECTOR, self.near, codes)
        found = ZERO
        for lane in range(LANES):
            code = builder.zext(builder.extract_element(codes, INT(lane)), LONG)
            found = builder.insert_element(found, builder.load(builder.gep(self.table, [code])), INT(lane))
        return found


def _lookups(tokens: int) -> Any:
    """fn(width: a tuple of as many numbers as codes have bits, tiles u8, the vector where the tile begins, scale and
    low as u16 [T, G, 16], the grid where the tile begins, mix f32 [3], table f32 [>= 16], begins i64 [N + 1], owners
    i64 [N], x f32 [., K], sums f32 [., N], token, out f32 [tokens, 16]); all contiguous, and the numbers of tokens
    taken together side by side. mix is that of `coded_lanes.dots_1`."""

    @intrinsic
    def lookups(
        typingctx: Any, width: Any, tiles: Any, start: Any, scale: Any, low: Any, grid: Any, mix: Any, table: Any,
        begins: Any, owners: Any, x: Any, sums: Any, token: Any, out: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _Tile(context, builder, signature.args, args, len(width), tokens).run()
            return context.get_dummy_value()

        long = types.int64
        return types.void(
            width, tiles, long, scale, low, long, mix, table, begins, owners, x, sums, long, out
        ), codegen

    return lookups


lookups_1, lookups_4 = _lookups(1), _lookups(4)
