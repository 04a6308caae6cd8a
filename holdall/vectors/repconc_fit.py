"""What fits a budget, and whether a rotation helps: code books of vectors that come without an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BudgetError
from holdall.parts.codebook import assigned, kmeans
from holdall.vectors.metrics import nearest
from holdall.vectors.repconc_tables import Tables, learned

if TYPE_CHECKING:
    from holdall.vectors.given import Given
    from holdall.vectors.repconc import RepCONC

_USUAL = 32  # bytes of a code, without a budget
_HELD, _AMONG, _K = 200, 8000, 10  # rows that are held out, what they are looked for in, and how many of each


@dataclass(frozen=True)
class Plan:
    """parts: bytes of a code. layers, entries: of its tables. lists: inverted ones."""

    parts: int
    layers: int
    entries: int
    lists: int

    @property
    def bits(self) -> float:
        return self.parts * float(np.log2(self.entries))


def fitting(recipe: RepCONC, given: Given) -> Plan:
    """The most bits a vector that the budget holds; BudgetError with the least that would do."""
    plans = list(_plans(recipe, given))
    fit = [p for p in plans if given.limit is None or _bytes(recipe, given, p) <= given.limit]
    if not fit:
        least = min(_bytes(recipe, given, p) for p in plans)
        raise BudgetError(given.limit or 0, least, who=recipe.full_name(), why="tables, and codes of a byte")
    best = max(p.bits for p in fit)
    # lists make searches quick: they may take a quarter of the bits
    return max(fit, key=lambda p: (p.bits >= 0.75 * best and p.lists > 1, p.bits, p.entries))


def _plans(recipe: RepCONC, given: Given) -> Iterator[Plan]:
    count, dim = given.vectors.count, given.vectors.dim
    usual = min(recipe.lists or max(1, round(4 * count**0.5)), count)
    most = max(4, 1 << max(count, 1).bit_length() - 1)
    for lists in {usual, 1} if recipe.lists is None else {usual}:
        for entries in (256, 128, 64, 32, 16) if recipe.entries is None else (recipe.entries,):
            if recipe.entries is None and entries > most and entries > 16:
                continue
            if recipe.parts is None:
                every = range(1, dim + 1) if given.limit is not None else (min(_USUAL, dim),)
            else:
                every = range(min(recipe.parts, dim), min(recipe.parts, dim) + 1)
            for parts in every:
                yield Plan(parts, recipe.layers if parts % 2 == 0 else 1, entries, lists)


def _bytes(recipe: RepCONC, given: Given, plan: Plan) -> int:
    """Of memory, with a rotation wherever one may be taken."""
    dim, groups = given.vectors.dim, plan.parts // plan.layers
    wide = groups * -(-dim // groups)
    tables = 4 * plan.layers * plan.entries * wide + (0 if recipe.rotation == "none" else 4 * wide * dim)
    added = plan.layers == 2 or (recipe.residual and plan.lists > 1)
    each = plan.parts + (added and recipe.metric == "l2") + 4 * (plan.lists > 1)
    lists = (4 * wide + 8) * plan.lists + 8 if plan.lists > 1 else 0
    return tables + lists + given.vectors.count * each + given.beside + 8


def chosen(recipe: RepCONC, plan: Plan, sample: np.ndarray) -> tuple[Tables, np.ndarray | None]:
    """(tables, centroids of lists) of the sample; with OPQ's rotation or without, whichever finds more neighbours of
    rows held out."""
    centroids = kmeans(sample, plan.lists, seed=recipe.seed, rounds=10) if plan.lists > 1 else None
    beside = np.zeros_like(sample)
    if centroids is not None and recipe.residual:
        beside = centroids[assigned(sample, centroids)]
    turned = recipe.rotation == "opq"
    if recipe.rotation == "tried":
        turned = _found(recipe, plan, sample, beside, True) > _found(recipe, plan, sample, beside, False)
    how = plan.parts, plan.layers, plan.entries, recipe.rounds
    return learned(sample - beside, *how, turned=turned, seed=recipe.seed), centroids


def _found(recipe: RepCONC, plan: Plan, sample: np.ndarray, beside: np.ndarray, turned: bool) -> float:
    """The share of exact nearest neighbours that codes find, a few rounds into learning."""
    sample, beside = sample[: _AMONG + _HELD], beside[: _AMONG + _HELD]
    held = min(_HELD, len(sample) // 5)
    rest, asked = sample[held:], sample[:held]
    if held < 2:
        return 0.0
    k, metric = min(_K, len(rest)), "l2" if recipe.metric == "l2" else "ip"
    how = plan.parts, plan.layers, plan.entries, 2
    tables = learned(rest - beside[held:], *how, turned=turned, seed=recipe.seed)
    _, wanted = nearest(asked, rest, k, metric)
    codes = tables.encode(tables.ready(rest - beside[held:]))
    _, found = nearest(tables.ready(asked), tables.decode(codes) + tables.ready(beside[held:]), k, metric)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, wanted, strict=True)]))
