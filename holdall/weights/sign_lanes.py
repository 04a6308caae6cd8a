"""Rows of signs times low-rank sizes, many lanes at once."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from holdall.weights import lanes

WIDE = 3  # groups of lanes that share each factor; with four rows they just fit into 32 registers


class _Blocks:
    """The operands of `build`, and code that writes neighbouring groups of lanes of some rows."""

    def __init__(self, context: Any, builder: Any, kinds: Any, args: Any, rows: int):
        self.builder, self.first, self.rows = builder, args[3], range(rows)
        self.words, self.a, self.b, self.out = (
            lanes.data(context, builder, kinds[i], args[i]) for i in (0, 1, 2, 4)
        )
        self.levels, self.m, self.groups = lanes.shape(context, builder, kinds[0], args[0])
        self.k = lanes.shape(context, builder, kinds[1], args[1])[2]
        self.number = self.groups.type
        self.n = builder.mul(self.groups, self.number(lanes.LANES))
        self.sizes, self.sums = (
            [[cgutils.alloca_once(builder, lanes.VECTOR) for _ in range(WIDE)] for _ in self.rows]
            for _ in range(2)
        )

    def write(self, group: Any, wide: int) -> None:
        """Groups [group, group + wide) of all rows."""
        self.clear(self.sums, wide)
        with cgutils.for_range(self.builder, self.levels) as level:
            self.clear(self.sizes, wide)
            with cgutils.for_range(self.builder, self.k) as factor:
                self.add_factor(level.index, factor.index, group, wide)
            for i in self.rows:
                row = lanes.at(
                    self.builder, lanes.at(self.builder, level.index, self.m, self.row(i)), self.groups, group
                )
                for c in range(wide):
                    negative = lanes.mask(self.builder, self.words, self.builder.add(row, self.number(c)))
                    lanes.add_signed(
                        self.builder, self.sums[i][c], self.builder.load(self.sizes[i][c]), negative
                    )
        for i in self.rows:
            for c in range(wide):
                column = self.column(self.builder.add(group, self.number(c)))
                where = lanes.at(self.builder, self.number(i), self.n, column)
                lanes.store(self.builder, self.builder.load(self.sums[i][c]), self.out, where)

    def add_factor(self, level: Any, factor: Any, group: Any, wide: int) -> None:
        builder = self.builder
        start = lanes.at(builder, lanes.at(builder, level, self.k, factor), self.n, self.column(group))
        mine = [
            lanes.load(builder, self.b, builder.add(start, self.number(lanes.LANES * c))) for c in range(wide)
        ]
        for i in self.rows:
            row = lanes.at(builder, level, self.m, self.row(i))
            lead = lanes.spread(builder, self.a, lanes.at(builder, row, self.k, factor))
            for c in range(wide):
                lanes.add_product(builder, self.sizes[i][c], lead, mine[c])

    def clear(self, held: Any, wide: int) -> None:
        for i in self.rows:
            for c in range(wide):
                self.builder.store(lanes.ZERO, held[i][c])

    def row(self, i: int) -> Any:
        return self.builder.add(self.first, self.number(i))

    def column(self, group: Any) -> Any:
        return self.builder.mul(group, self.number(lanes.LANES))


def _build(rows: int) -> Any:
    """fn(signs u16 [L, m, G], a f32 [L, m, k], b f32 [L, k, 16 G], first, out f32 [rows, 16 G]), all contiguous:
    rows [first, first + rows) of sum_l S_l * (A_l B_l) into `out`."""

    @intrinsic
    def build(typingctx: Any, signs: Any, a: Any, b: Any, first: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            blocks = _Blocks(context, builder, signature.args, args, rows)
            wide = blocks.number(WIDE)
            whole = builder.udiv(blocks.groups, wide)
            with cgutils.for_range(builder, whole) as loop:
                blocks.write(builder.mul(loop.index, wide), WIDE)
            with cgutils.for_range(builder, builder.urem(blocks.groups, wide)) as loop:
                blocks.write(lanes.at(builder, whole, wide, loop.index), 1)
            return context.get_dummy_value()

        return types.void(signs, a, b, types.intp, out), codegen

    return build


build_4, build_1 = _build(lanes.ROWS), _build(1)
