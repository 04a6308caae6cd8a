"""SPANN's lists while vectors come and go: they grow and are split, shrink and are merged, and are written again.

A list that has become longer than lists may be is split in two by balanced clustering, around the vectors nearest to
the middles. Vectors that go are a bit each at first; once there are many, all lists are written again without them, and
the vectors of lists that have become short go to the next heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.parts.codebook import assigned
from holdall.vectors.bits import Bits
from holdall.vectors.clustering import balanced
from holdall.vectors.heads import Heads
from holdall.vectors.lists import Lists
from holdall.vectors.spann_build import cap_of, owned, placed

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.shelf import State
    from holdall.vectors.source import Vectors
    from holdall.vectors.spann import Postings

_SHORT = 0.25  # of the mean length, below which a list is merged into others
_GONE = 0.2  # of the rows, from which lists are written again without those that are gone
_AROUND, _PASSES = 12, 3  # lists that a new head's vectors come from; rounds of splitting and filling
_WASTE = 0.3  # of a file that no list refers to any more, from which it is written again
Entries = tuple[np.ndarray, np.ndarray]  # rows int32 [n], vectors [n, D]


class Renewal:
    """One change of an open index."""

    def __init__(self, shelf: Postings, change: Change):
        self.shelf, self.change, self.lists = shelf, change, shelf.lists
        self.made = {n: shelf.folder.arrays[n] for n in ("heads", "heads/scale", "groups", "groups/of")}
        self.heads = Heads.decoded(self.made)
        self.there, self.stored = shelf.there, shelf.stored
        self.fresh: dict[int, Entries] = {}  # lists that are not as they are in the file
        self.gone: set[int] = set()  # lists that have been merged into others

    def grown(self, vectors: Vectors) -> State:
        coming: dict[int, list[Entries]] = {}
        for first, raw in vectors.blocks():
            rows = np.arange(self.stored + first, self.stored + first + len(raw), dtype=np.int32)
            for at, places in self._homes(raw, self.shelf.recipe.replicas):
                coming.setdefault(at, []).append((rows[places], raw[places]))
        self.stored += vectors.count
        if self.there is not None:
            self.there = Bits(np.concatenate([self.there.flags, np.ones(vectors.count, bool)]))
        for at, parts in sorted(coming.items()):
            self.fresh[at] = _joined([self.entries(at), *parts])
        for _ in range(_PASSES):
            changed = {new for at in sorted(self.fresh) for new in self._split(at)}
            if not changed:
                break
            self._refill(changed)
        return self._state(self._wasted() > _WASTE)

    def shrunk(self, keep: np.ndarray) -> State:
        flags = np.ones(self.stored, bool) if self.there is None else self.there.flags
        flags[np.flatnonzero(flags)[~keep]] = False
        self.there = Bits(flags)
        clean = self.shelf.folder.meta.get("clean", 0)  # rows that were gone when lists were written last
        again = self.stored - self.there.count - clean > _GONE * (self.stored - clean)
        if again:
            self._merge()
        return self._state(again)

    def entries(self, at: int) -> Entries:
        """A list as it will be, without vectors that are gone."""
        rows, vectors = (
            self.fresh[at] if at in self.fresh else self.lists.read(self.shelf.folder, np.array([at]))
        )
        if self.there is None:
            return rows, vectors
        alive = self.there.has(rows.astype(np.int64))
        return rows[alive], vectors[alive]

    def _homes(self, raw: np.ndarray, replicas: int) -> list[tuple[int, np.ndarray]]:
        """(list, which of the vectors go there)."""
        x = placed(raw, self.shelf.recipe.metric, self.shelf.reach)
        owners = owned(self.shelf.recipe.but(replicas=replicas), self.shelf.heads, self.heads, x)
        rows, place = np.nonzero(owners >= 0)
        return [(at, rows[some]) for at, some in _grouped(owners[rows, place])]

    def _split(self, at: int) -> set[int]:
        """Until no part is longer than a list may be; the lists that have another head now, the first part's too."""
        recipe, work, changed = self.shelf.recipe, [at], set()
        cap = cap_of(recipe, self.lists.dim, self.lists.dtype)
        while work:
            at = work.pop()
            rows, vectors = self.fresh[at]
            if len(rows) <= cap:
                continue
            x = placed(vectors, recipe.metric, self.shelf.reach)
            owners = assigned(x, balanced(x, 2, recipe.seed))
            if len(np.unique(owners)) < 2:
                continue  # all the same: they stay together
            new = len(self.heads)
            self.heads = np.concatenate([self.heads, self.heads[at : at + 1]])
            for place, side in ((at, 0), (new, 1)):
                mine = owners == side
                part = x[mine]
                self.heads[place] = part[np.square(part - part.mean(0)).sum(1).argmin()]
                self.fresh[place] = rows[mine], vectors[mine]
                work.append(place)
                changed.add(place)
        return changed

    def _refill(self, changed: set[int]) -> None:
        """Lists with new heads take what closure gives them of the vectors around; none of their own is lost."""
        order = sorted(changed)
        index = Heads(Heads.renewed(self.made, self.heads, self.shelf.recipe.seed))
        _, near = index.nearest(self.heads[order], _AROUND)
        around = [at for at in np.unique(near[near >= 0]).tolist() if at not in changed]
        rows, vectors = _joined([self.entries(at) for at in [*order, *around]])
        own = sum(len(self.entries(at)[0]) for at in order)
        rows, first = np.unique(rows, return_index=True)
        vectors, mine = vectors[first], first < own  # mine: those that must not be lost
        owners = owned(
            self.shelf.recipe, index, self.heads, placed(vectors, self.shelf.recipe.metric, self.shelf.reach)
        )
        which, place = np.nonzero(owners >= 0)
        lists = owners[which, place]
        for at, some in _grouped(lists):
            places = which[some]
            if at in changed:
                self.fresh[at] = rows[places], vectors[places]
            elif mine[places].any():
                there, held = self.entries(at)
                new = places[mine[places] & ~np.isin(rows[places], there)]
                if len(new):
                    self.fresh[at] = _joined([(there, held), (rows[new], vectors[new])])
        for at in changed - set(lists.tolist()):
            self.fresh[at] = rows[:0], vectors[:0]

    def _merge(self) -> None:
        """Vectors of short lists go to the nearest other head, unless that list has them; those of the shortest, too,
        while there are more heads than the index had for as many vectors when it was built."""
        lengths = np.array([len(self.entries(at)[0]) for at in range(len(self.heads))])
        count = self.stored if self.there is None else self.there.count
        spare = len(lengths) - round(self.shelf.share * count)
        few = max(spare, int((lengths < _SHORT * lengths.mean()).sum()), 0)
        short = np.argsort(lengths, kind="stable")[:few]
        if len(short) == len(lengths):
            short = short[1:]
        others = np.setdiff1d(np.arange(len(lengths)), short)
        coming: dict[int, list[Entries]] = {}
        for at in short.tolist():
            rows, vectors = self.entries(at)
            self.gone.add(at)
            if len(rows):
                x = placed(vectors, self.shelf.recipe.metric, self.shelf.reach)
                for to, places in _grouped(others[assigned(x, self.heads[others])]):
                    coming.setdefault(to, []).append((rows[places], vectors[places]))
        for at, parts in sorted(coming.items()):
            rows, vectors = _joined([self.entries(at), *parts])
            _, first = np.unique(rows, return_index=True)
            self.fresh[at] = rows[np.sort(first)], vectors[np.sort(first)]
            self._split(at)

    def _wasted(self) -> float:
        """The share of the file that no list refers to, or will not."""
        size = self.shelf.folder.size(self.lists.name)
        used = sum(int(n) for at, n in enumerate(self.lists.counts) if at not in self.fresh) * self.lists.each
        more = sum(len(rows) for rows, _ in self.fresh.values()) * self.lists.each
        return 1 - (used + more) / max(1, size + more)

    def _state(self, again: bool) -> State:
        """again: all lists into a new file."""
        kept = [at for at in range(len(self.heads)) if at not in self.gone]
        changed = [at for at in kept if again or at in self.fresh]
        name = self.lists.name
        if again:
            self.change.drop(name)
            name = f"lists-{int(name.rpartition('-')[2]) + 1}"
        new = Lists.write(
            self.change, name, self.lists.dim, self.lists.dtype, (self.entries(at) for at in changed)
        )
        whole = {"starts": np.int64, "counts": np.int32, "sums": np.uint64}
        arrays = {}
        for field, kind in whole.items():
            values = np.zeros(len(self.heads), kind)
            values[: self.lists.count] = getattr(self.lists, field)
            values[changed] = getattr(new, field)
            arrays[field] = values[kept]
        lists = Lists(name, self.lists.dim, self.lists.dtype, **arrays)
        heads = Heads.renewed(self.made, self.heads[kept], self.shelf.recipe.seed)
        there = {} if self.there is None or self.there.count == self.stored else {"there": self.there.packed}
        told = {"lists": lists.to_meta(), "reach": self.shelf.reach, "stored": self.stored}
        told |= {"spacing": self.shelf.spacing, "share": self.shelf.share}
        before = self.shelf.folder.meta.get("clean", 0)
        told["clean"] = self.stored - self.there.count if again and self.there is not None else before
        return {**heads, **lists.sections(), **there}, told


def _joined(parts: list[Entries]) -> Entries:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _grouped(owners: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(owner, whose places)."""
    order = np.argsort(owners, kind="stable")
    different, starts = np.unique(owners[order], return_index=True)
    return list(zip(different.tolist(), np.split(order, starts[1:]), strict=True))
