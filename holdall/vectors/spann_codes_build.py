"""SPANN's second layout, built: heads, tables for codes, and vectors in a file in the order of lists.

A code is a product code of what is left of a vector beside its head, in directions that make parts about even.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BudgetError
from holdall.parts.codebook import ProductQuantiser, even_turn, kmeans
from holdall.vectors.bits import Bits
from holdall.vectors.codes_scan import biases
from holdall.vectors.entries import PAGE, Entries
from holdall.vectors.heads import Heads
from holdall.vectors.scratch import Scratch
from holdall.vectors.spann_build import Blocks, Closure, Spread, Survey, blocks_of, placed

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.given import Given, State
    from holdall.vectors.spann import SPANN

_ROW = 6  # bytes in memory beside a code: the row's number and the bias
_SAMPLE, _EACH = 65_536, 40  # vectors that heads and codes are learned from: at most, and for each head
_TABLES = 12_800  # of these, vectors that tables are learned from: 50 for each entry
_TOGETHER = 4096  # vectors that are coded at a time, at most


def bytes_of(count: int, cells: int, dim: int, parts: int) -> int:
    """In memory: codes, row numbers, biases, heads, where lists begin, tables and the turn."""
    wide = -(-dim // parts) * parts
    return count * (parts + _ROW) + Heads.bytes_of(cells, dim) + 4 * (cells + 1) + 4 * wide * (256 + dim) + 8


@dataclass(frozen=True)
class Coder:
    """turn [D, D'], tables [M, 256, D' / M], centres of heads turned [H, D']."""

    turn: np.ndarray
    tables: np.ndarray
    heads: np.ndarray

    @classmethod
    def learn(cls, x: np.ndarray, owners: np.ndarray, heads: np.ndarray, parts: int, seed: int) -> Coder:
        rest = x - heads[owners]
        turn = even_turn(rest, parts)
        rest = rest[np.random.default_rng(seed).permutation(len(rest))[:_TABLES]]
        return cls(turn, ProductQuantiser.learn(rest @ turn, parts, seed=seed, rounds=10).tables, heads)

    def encode(self, x: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes uint8 [N, M], biases float32 [N]) of placed vectors and their heads."""
        codes = ProductQuantiser(self.tables).encode((x - self.heads[owners]) @ self.turn)
        out = np.empty(len(x), np.float32)
        biases(codes, owners, self.heads @ self.turn, self.flat, out)
        return codes, out

    @property
    def flat(self) -> np.ndarray:
        """The tables as kernels read them, [M, D' / M, 256]."""
        return np.ascontiguousarray(self.tables.transpose(0, 2, 1))


def cells_of(recipe: SPANN, count: int) -> int:
    return min(count, recipe.cells or max(1, round(4 * count**0.5)))


def fitting(recipe: SPANN, given: Given) -> tuple[int, int] | None:
    """(heads, bytes of a code) for the memory given. Where there is too little: None, or BudgetError where codes were
    asked for."""
    count, dim = given.vectors.count, given.vectors.dim + (recipe.metric == "ip")
    beside = given.beside + Bits.bytes_of(count)  # which rows are there, once some are gone
    cells, least = cells_of(recipe, count), min(recipe.code_bytes or 1, dim)
    if given.limit is None:
        return cells, min(recipe.code_bytes or max(1, dim // 4), dim)
    most = least if recipe.code_bytes else max(1, dim // 2)
    while cells:
        for parts in range(most, least - 1, -1):
            if beside + bytes_of(count, cells, dim, parts) <= given.limit:
                return cells, parts
        cells = cells * 3 // 4
    if recipe.layout is None:
        return None
    needed = beside + bytes_of(count, 1, dim, least)
    raise BudgetError(given.limit, needed, who=recipe.full_name(), why="one head, codes, and the ids")


def shorter(recipe: SPANN, given: Given, dtype: np.dtype[np.generic], cells: int, parts: int) -> int:
    """Bytes of a code, fewer where that lets memory hold the vectors themselves, which then make up for it."""
    count, dim = given.vectors.count, given.vectors.dim
    if given.limit is None or recipe.code_bytes:
        return parts
    room = given.limit - given.beside - Bits.bytes_of(count) - count * dim * dtype.itemsize
    for short in range(min(parts, max(1, dim // 8)), max(1, dim // 16) - 1, -1):
        if bytes_of(count, cells, dim + (recipe.metric == "ip"), short) <= room:
            return short
    return parts


def built(recipe: SPANN, change: Change, given: Given, survey: Survey, cells: int, parts: int) -> State:
    vectors = given.vectors
    parts = shorter(recipe, given, survey.dtype, cells, parts)
    work, reach = Scratch(change.scratch, survey.purpose(recipe, given)), survey.reach
    if not work.has("learned"):
        wanted = min(
            vectors.count, _SAMPLE, max(_EACH * cells, 4096), recipe.build_bytes // (4 * vectors.dim)
        )
        rows = np.sort(np.random.default_rng(recipe.seed).permutation(vectors.count)[: max(1, wanted)])
        x = placed(vectors.take(rows), recipe.metric, reach)
        made = Heads.sections(kmeans(x, cells, seed=recipe.seed, rounds=10), False, recipe.seed)
        owners = Heads(made).nearest(x, 1)[1][:, 0]
        coder = Coder.learn(x, owners, Heads.decoded(made), parts, recipe.seed)
        work.finish("learned", {**made, "turn": coder.turn, "tables": coder.tables})
    made, entries = work.arrays("learned"), Entries("vectors-1", vectors.dim, survey.dtype)
    blocks = ((np.arange(at, at + len(raw)), raw) for at, raw in blocks_of(recipe, vectors))
    arrays = laid(recipe, change, work, entries, made, blocks, vectors.count, reach)
    told = {"entries": entries.to_meta(), "reach": reach, "stored": vectors.count}
    return {**made, **scaled(arrays)}, told


def laid(
    recipe: SPANN, change: Change, work: Scratch, entries: Entries, made: dict[str, np.ndarray], blocks: Blocks,
    count: int, reach: float,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Vectors behind those that are in the file, list by list: their codes, biases, rows and where lists start."""
    coder = Coder(made["turn"], made["tables"], Heads.decoded(made))
    found = Spread.of(
        recipe.but(replicas=1), work, blocks, count, coder.heads, Closure(recipe, made, reach, single=True), reach,
        entries.dim, entries.dtype,
    )  # fmt: skip
    codes, bias, rows, sizes = [], [], [], []
    together = min(_TOGETHER, recipe.build_bytes // (64 * entries.dim))

    def raws() -> Iterator[np.ndarray]:
        some: list[np.ndarray] = []
        for at, part in enumerate(found.lists()):
            sizes.append(len(part))
            some.append(_paged(part, max(entries.group, PAGE // entries.each)))
            if sum(map(len, some)) < together and at < len(coder.heads) - 1:
                continue
            both = np.concatenate(some)
            some.clear()
            new = coder.encode(placed(both["raw"], recipe.metric, reach), both["list"])
            codes.append(new[0])
            bias.append(new[1])
            rows.append(both["row"].copy())  # a view would hold the vectors, too
            yield both["raw"]

    entries.append(change, raws())
    starts = np.cumsum([0, *sizes]).astype(np.int32)
    whole = {"codes": np.concatenate(codes), "bias": np.concatenate(bias), "rows": np.concatenate(rows)}
    return {**whole, "starts": starts[None]}


def _paged(part: np.ndarray, group: int) -> np.ndarray:
    """The records of a list, those that are near to each other in the same page: cut in half where they spread most."""
    if len(part) <= group:
        return part
    x = part["raw"].astype(np.float32)
    x -= x.mean(0)
    along = x[np.square(x).sum(1).argmax()]
    for _ in range(3):
        along = x.T @ (x @ along)
        along /= max(float(np.linalg.norm(along)), 1e-30)
    part = part[np.argsort(x @ along, kind="stable")]
    middle = -(-len(part) // 2 // group) * group
    return np.concatenate([_paged(part[:middle], group), _paged(part[middle:], group)])


def scaled(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Biases as 65,536 even steps."""
    bias = arrays["bias"]
    low = float(bias.min()) if len(bias) else 0.0
    step = max((float(bias.max()) - low) / 65_535 if len(bias) else 0.0, 1e-20)
    steps = np.clip(np.rint((bias - low) / step), 0, 65_535).astype(np.uint16)
    return arrays | {"bias": steps, "bias/scale": np.array([low, step], np.float32)}
