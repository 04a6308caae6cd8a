"""The universal stack: in which order blocks are worth loading, and the handle that loads and frees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from holdall.budget import Budget
from holdall.errors import BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.optional import lazy
from holdall.packed import LazyArrays, Packed
from holdall.weights.layout import Layout, Piece
from holdall.weights.parts import Part, Pieces, Scratch

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_GULP = 1 << 20  # bytes of blocks in the air at once while a stack is read


def groups(pieces: Sequence[Piece], depths: Sequence[int], lead: int) -> list[list[tuple[int, int]]]:
    """The levels: groups of (piece, block) that must follow one another, first blocks left out.

    In group b every linear goes from b to b + 1 blocks, and every embedding table from b + lead to b + lead + 1:
    tables run `lead` blocks ahead, and those go first. depths: how many blocks each piece has.
    """
    found = []
    for block in range(1, lead + 1):
        found.append([(i, block) for i, p in enumerate(pieces) if p.table and block < depths[i]])
    for level in range(1, max(depths, default=1)):
        at = [(i, level + lead if p.table else level) for i, p in enumerate(pieces)]
        found.append([(i, block) for i, block in at if block < depths[i]])
    return [group for group in found if group]


def by_gain(levels: list[list[tuple[int, int]]], gain: Callable[[int, int], float]) -> list[int]:
    """The stack after the first blocks: within each level the block with the largest gain a byte first."""
    return [i for group in levels for i, _ in sorted(group, key=lambda item: (-gain(*item), item))]


def by_perplexity(
    levels: list[list[tuple[int, int]]],
    load: Callable[[int, int], None],
    drop: Callable[[int, int], None],
    perplexity: Callable[[], float],
) -> list[int]:
    """The paper's sort: at each level every piece alone is raised by a block and the model is measured.

    load and drop change the model by one block. A measurement that is not a number takes the same piece's value
    at the next level, plus an offset; at the last level it goes last.
    """
    measured: list[dict[tuple[int, int], float]] = []
    for group in levels:
        found = {}
        for item in group:
            load(*item)
            found[item] = perplexity()
            drop(*item)
        measured.append(found)
        for item in group:
            load(*item)
    order: list[int] = []
    after: dict[int, float] = {}
    ranked = []
    for found in reversed(measured):
        values = {i: after.get(i, math.inf) + 1.0 if math.isnan(v) else v for (i, _), v in found.items()}
        ranked.append(sorted(values, key=lambda i: (values[i], i)))
        after = values
    for level in reversed(ranked):
        order += level
    return order


class Stack:
    """An opened BitStack: which of its blocks are loaded, and how to have more or fewer of them.

    >>> # module = BitStack().open(packed, "45MB"); module.holdall_stack.change("30MB")
    """

    def __init__(self, packed: Packed, layout: Layout, original: int, elements: int):
        self.packed, self.layout = packed, layout
        self.original, self.elements = original, elements
        sizes = [layout.pieces[i].block_bytes for i in layout.stack]
        self._ends = packed.nbytes - sum(sizes) + np.cumsum([0, *sizes])  # file bytes up to each block
        if self._ends[0] <= 0:
            raise CorruptArtefact("the BitStack header", "it promises more blocks than the file can hold")
        self.parts = [Part(piece) for piece in layout.pieces]
        self.count = 0
        self.dirty: set[int] = set()  # pieces that changed since `fill`

    @property
    def nbytes(self) -> int:
        """Bytes of the file, from its start, that what is loaded takes."""
        return int(self._ends[self.count])

    def pieces(self) -> dict[str, Pieces]:
        """The matrices by name; they follow what is loaded."""
        by_name: dict[str, list[Part]] = {}
        for part in self.parts:
            by_name.setdefault(self.layout.tensors[part.piece.tensor][0], []).append(part)
        scratch = Scratch()
        return {name: Pieces(parts, scratch) for name, parts in by_name.items()}

    def count_for(self, budget: Spend) -> int:
        """How many blocks fit; every first block has to."""
        least = len(self.layout.pieces)
        asked = Budget.parse(budget)
        if asked is None:
            return len(self.layout.stack)
        limit = asked.limit(self.original, self.elements)
        if self._ends[least] > limit:
            why = "one block of every matrix, and what is never cut"
            raise BudgetError(limit, int(self._ends[least]), who="weights.bitstack", why=why)
        return int(np.searchsorted(self._ends, limit, side="right")) - 1

    def change(self, budget: Spend) -> int:
        """Load or free exactly the blocks between what is loaded and what fits; returns the bytes read."""
        target, read = self.count_for(budget), 0
        held = np.bincount(np.array(self.layout.stack[:target], int), minlength=len(self.parts))
        for i, part in enumerate(self.parts):
            if part.levels != held[i]:
                self.dirty.add(i)
        filled = [min(part.levels, int(n)) for part, n in zip(self.parts, held, strict=True)]
        first, self.count = self.count, min(self.count, target)
        try:
            for i in self.dirty:
                self.parts[i].resize(int(held[i]))
            while self.count < target:
                read += self._load_some(target, filled)
        except BaseException:  # a block that cannot be read: what is there is served on
            for part, levels in zip(self.parts, filled, strict=True):
                part.resize(levels)
            raise
        assert first <= target or read == 0
        return read

    def _load_some(self, target: int, filled: list[int]) -> int:
        """The next blocks, about `_GULP` bytes of them; returns the bytes read."""
        last = self.count + 1
        while last < target and self._ends[last + 1] - self._ends[self.count] <= _GULP:
            last += 1
        arrays = self._read([str(at) for at in range(self.count, last)])
        for at in range(self.count, last):
            piece = self.layout.stack[at]
            self.parts[piece].put(filled[piece], self.layout.block(arrays, at))
            filled[piece] += 1
        self.count = last
        return sum(array.nbytes for array in arrays.values())

    def _read(self, names: list[str]) -> dict[str, np.ndarray]:
        arrays = self.packed.arrays
        try:
            return arrays.read(names) if isinstance(arrays, LazyArrays) else {n: arrays[n] for n in names}
        except KeyError as missing:
            raise CorruptArtefact("the BitStack file", f"block {missing} is not there") from missing

    def fill(self, state: dict[str, torch.Tensor]) -> None:
        """Write the weights of every piece that changed into `state`'s tensors, in place."""
        for i in sorted(self.dirty):
            piece = self.layout.pieces[i]
            target = state[self.layout.tensors[piece.tensor][0]][piece.start : piece.stop]
            if target.dtype == torch.float32 and target.is_contiguous():
                self.parts[i].dense(target.detach().numpy())
            else:
                whole = np.zeros((piece.rows, piece.columns), np.float32)
                self.parts[i].dense(whole)
                target.copy_(torch.from_numpy(whole))
        self.dirty.clear()
