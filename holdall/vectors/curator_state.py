"""What Curator keeps beside the vectors, and how it changes: insert, grant, revoke, delete. Never in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.vectors.curator_check import fault
from holdall.vectors.curator_filters import Filters
from holdall.vectors.curator_kernels import still
from holdall.vectors.curator_lists import NOTHING, Lists, Own, granted, revoked
from holdall.vectors.curator_tree import Tree
from holdall.vectors.metrics import ready
from holdall.vectors.tenants import Name, Names

if TYPE_CHECKING:
    from holdall.vectors.folder import Folder

_BLOCK = 8 << 20
_LISTS: dict[str, Any] = {
    "ids": np.int32, "starts": np.int64, "nodes": np.int32, "firsts": np.int32, "spans": np.int64,
}  # fmt: skip
_FILTERS: dict[str, Any] = {"words": np.uint64, "offsets": np.int64, "held": np.int32}
_TIMES = 8  # what it was made for, of a leaf: then the tree no longer fits what came
_NODE = 8  # bytes in memory of a node beside its centroid: its end, the mean distance


@dataclass(frozen=True)
class Held:
    """tree; leaves int32 [N], of each vector; lists of everyone (number 0) and of the tenants; filters; names."""

    recipe: Any
    tree: Tree
    leaves: np.ndarray
    lists: Lists
    filters: Filters
    names: Names

    @classmethod
    def learn(cls, recipe: Any, sample: np.ndarray, count: int, dtype: Any) -> Self:
        """A tree without vectors. sample: some of `count` vectors, as `metrics.ready` has them."""
        leaf = recipe.leaf * len(sample) / max(1, count)
        tree = Tree.learn(sample, dtype, recipe.metric, branches=recipe.branches, leaf=leaf, seed=recipe.seed)
        names = Names([])
        lists = Lists.of([NOTHING])
        filters = Filters.of(lists, names.tokens, tree.parents, recipe.bits)
        return cls(recipe, tree, np.zeros(0, np.int32), lists, filters, names)

    def entered(self, blocks: Iterable[np.ndarray]) -> Self:
        """With more vectors: each goes down to its leaf, and everyone's lists have it."""
        found, tree = [self.leaves], self.tree
        for block in blocks:
            leaves, tree = tree.entered(block)
            found.append(leaves)
        more = replace(self, tree=tree, leaves=np.concatenate(found))
        return more._granted({0: np.arange(len(self.leaves), len(more.leaves))})

    def granted(self, rows: Mapping[Name, np.ndarray]) -> Self:
        """rows: of each tenant, each once; those that it has already do not matter."""
        names = self.names.more([n for n in rows if len(rows[n])])
        more = replace(self, names=names)
        return more._granted({names.number(n): some for n, some in rows.items() if len(some)})

    def _granted(self, rows: Mapping[int, np.ndarray]) -> Self:
        filters, changed = self.filters.copy(), {}
        for which, some in rows.items():
            own = self.own(which)
            some = some[~np.isin(some, own.ids)] if len(own.ids) else some
            some = some[np.argsort(self.leaves[some], kind="stable")].astype(np.int32)
            there: Any = map(still, (*own, some, self.leaves, self.tree.ends))
            told = granted(*(*there, self.recipe.shortlist))
            changed[which] = Own(*told)
            new = _at(changed[which].nodes, self.tree) & ~_at(own.nodes, self.tree)
            filters.put(np.flatnonzero(new), self.names.tokens[which])
        more = replace(self, lists=self.lists.but(changed), filters=filters)
        if not filters.outgrown:
            return more
        fitting = Filters.of(more.lists, self.names.tokens, self.tree.parents, self.recipe.bits)
        return replace(more, filters=fitting)

    def own(self, which: int) -> Own:
        return self.lists.own(which) if which < self.lists.count else NOTHING

    def revoked(self, rows: Mapping[int, np.ndarray]) -> Self:
        """rows: of each tenant, by number, that it is to lose. Tenants that have none left are forgotten."""
        changed, lost = {}, np.zeros(len(self.tree.ends), bool)
        for which, some in rows.items():
            own = self.own(which)
            gone = np.isin(own.ids, some)
            if not gone.any():
                continue
            there: Any = map(still, (*own, gone, self.tree.parents, self.tree.ends))
            told = revoked(*(*there, self.recipe.shortlist))
            changed[which] = Own(*told)
            lost |= _at(own.nodes, self.tree) & ~_at(changed[which].nodes, self.tree)
        less = replace(self, lists=self.lists.but(changed), filters=self.filters.copy())
        keep = np.diff(less.lists.starts) > 0
        keep[0] = True
        if not keep.all():
            kept = Lists.of([less.own(int(i)) for i in np.flatnonzero(keep)])
            less = replace(less, lists=kept, names=self.names.kept(keep))
        less.filters.again(np.flatnonzero(lost), less.lists, less.names.tokens, self.tree.ends)
        return less

    def left(self, keep: np.ndarray, vectors: np.ndarray) -> Self:
        """Without the vectors where `keep` is false, for everyone; those behind them get lower numbers."""
        rows = np.flatnonzero(~keep)
        hit = np.searchsorted(self.lists.starts, np.flatnonzero(~keep[self.lists.ids]), side="right") - 1
        less = self.revoked({int(which): rows for which in np.unique(hit)})
        numbers = (np.cumsum(keep) - 1).astype(np.int32)
        lists = replace(less.lists, ids=numbers[less.lists.ids])
        tree = self.tree.left(vectors[rows], self.leaves[rows])
        return replace(less, tree=tree, leaves=self.leaves[keep], lists=lists)

    @property
    def outgrown(self) -> bool:
        """Whether the tree should be made again."""
        return self.tree.grown(self.recipe.leaf, _TIMES)

    def again(self, parts: list[np.ndarray]) -> Self:
        """The same vectors [., D], in parts, and the same tenants on a new tree."""
        count = sum(len(p) for p in parts)
        draw = np.sort(np.random.default_rng(self.recipe.seed).permutation(count)[: self.recipe.sample])
        cuts = np.cumsum([0, *(len(p) for p in parts)])
        some = [p[draw[(draw >= a) & (draw < a + len(p))] - a] for p, a in zip(parts, cuts, strict=False)]
        sample = ready(np.concatenate(some), self.recipe.metric)
        made = type(self).learn(self.recipe, sample, count, parts[0].dtype).entered(_blocks(parts))
        return made.granted({n: np.sort(self.own(i).ids) for n, i in self.names.numbers.items()})

    def fault(self) -> str:
        return fault(
            self.tree, self.leaves, self.lists, self.filters, self.names.tokens, self.recipe.shortlist
        )

    @property
    def nbytes(self) -> int:
        """In memory, of an index that is open, without its vectors: leaves stay on disk."""
        tree = self.tree.centroids.nbytes + _NODE * len(self.tree.ends)
        return int(tree + self.lists.nbytes + self.filters.nbytes + self.names.nbytes)

    def sections(self) -> dict[str, np.ndarray]:
        lists = {f"lists/{n}": getattr(self.lists, n) for n in _LISTS}
        filters = {f"filters/{n}": getattr(self.filters, n) for n in _FILTERS}
        return self.tree.sections() | {"leaves": self.leaves} | lists | filters | self.names.sections()

    @classmethod
    def of_sections(cls, recipe: Any, folder: Folder, count: int, dim: int, dtype: Any) -> Self:
        """CorruptArtefact for what `sections` cannot have written."""
        tree = Tree.of_sections(folder, dim, dtype, recipe.metric)
        lists = Lists(*(folder.array(f"lists/{n}", kind, 1) for n, kind in _LISTS.items()))
        words, offsets, known = (folder.array(f"filters/{n}", kind, 1) for n, kind in _FILTERS.items())
        filters = Filters(words, offsets, known, recipe.bits)
        names = Names.of_sections(folder.arrays, max(0, lists.count - 1))
        made = cls(recipe, tree, folder.array("leaves", np.int32, 1), lists, filters, names)
        wrong = made.fault() if len(made.leaves) == count else "it does not say where its vectors are"
        if wrong:
            raise CorruptArtefact(folder.url, wrong)
        return made


def _at(nodes: np.ndarray, tree: Tree) -> np.ndarray:
    """bool [V]: where a tenant with lists at these nodes is, there or below."""
    found = np.zeros(len(tree.ends), bool)
    while len(nodes):
        found[nodes] = True
        nodes = tree.parents[nodes]
        nodes = nodes[nodes >= 0]
        nodes = nodes[~found[nodes]]
    return found


def _blocks(parts: list[np.ndarray]) -> Iterable[np.ndarray]:
    for part in parts:
        step = max(1, _BLOCK // (4 * part.shape[1]))
        for at in range(0, len(part), step):
            yield part[at : at + step]
