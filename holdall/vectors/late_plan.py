"""How many centroids and product codes: as asked, or the best that fits the budget, before anything is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput, BudgetError
from holdall.vectors.documents import Documents
from holdall.vectors.late import bounds

if TYPE_CHECKING:
    from holdall.vectors.given import Given
    from holdall.vectors.hpc_colpali import HPCColPali
    from holdall.vectors.source import Vectors

_SEVERAL = 2.0  # vectors a document, from which on their number makes up for what each code loses
_PARTS = 32  # the most product codes that are chosen unasked
_NAMING = 256  # centroids from which on they name good candidates
_CENTROIDS = (512, 256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Plan:
    centroids: int
    subspaces: int

    def most(self, dim: int, sizes: np.ndarray) -> int:
        """Bytes that an index of documents with so many vectors can come to."""
        ends = 0 if (sizes == sizes[:1]).all() else 4 * len(sizes)
        fine = (4 * 256 * dim + int(sizes.sum()) * self.subspaces + ends) if self.subspaces else 0
        return 4 * self.centroids * (dim + 1) + bounds(sizes, self.centroids.bit_length() - 1) + fine


def sizes_of(recipe: HPCColPali, given: Vectors) -> np.ndarray:
    """int64 [N]: the most vectors that each document keeps."""
    if isinstance(given, Documents):
        sizes = np.diff(given.offsets)
    else:
        sizes = np.full(given.count, recipe.patches)
    return np.maximum(1, np.ceil(sizes * recipe.keep_docs - 1e-9).astype(np.int64))


def planned(recipe: HPCColPali, given: Given) -> Plan:
    """BudgetError with the least that would do where nothing fits."""
    sizes, dim = sizes_of(recipe, given.vectors), given.vectors.dim // recipe.patches
    if recipe.subspaces and dim % recipe.subspaces:
        raise BadInput("subspaces", recipe.subspaces, f"a divisor of the {dim} numbers of a vector")
    tried = list(_plans(recipe, dim, float(sizes.mean()), given.limit is not None))
    if given.limit is None:
        return tried[0]
    for plan in tried:
        if plan.most(dim, sizes) + given.beside <= given.limit:
            return plan
    least = min(plan.most(dim, sizes) for plan in tried) + given.beside
    raise BudgetError(given.limit, least, who=recipe.full_name(), why="centroids, codes and the ids")


def _plans(recipe: HPCColPali, dim: int, each: float, limited: bool) -> Iterator[Plan]:
    """The best first: product codes by their number, then centroids alone by theirs. Documents of several vectors hold
    most of few centroids, which then name poor candidates: less than 256 stand alone or not at all."""
    several = each >= _SEVERAL
    parts = [recipe.subspaces] if recipe.subspaces is not None else _parts(recipe, dim, several, limited)
    for m in parts:
        for k in _CENTROIDS if recipe.centroids is None else (recipe.centroids,):
            if k >= _NAMING or not m or not several or recipe.centroids or recipe.subspaces:
                yield Plan(k, m)


def _parts(recipe: HPCColPali, dim: int, several: bool, limited: bool) -> list[int]:
    """One table of 256 entries beside as many centroids would say the same again."""
    if recipe.scoring == "hamming" or (several and not limited):
        return [0]
    least = 2 if several else 1
    return [m for m in range(min(_PARTS, dim), least - 1, -1) if dim % m == 0] + [0]
