"""SPANN's lists while vectors come and go: they grow and are split, shrink and are merged, and are written again.

A list that has become longer than lists may be is split in two by balanced clustering, around the vectors nearest to
the middles, and takes what closure gives it of the vectors around. Vectors that go are a bit each at first; once there
are many, heads of the shortest lists go too, and closure is done again for all that are left. So it is where much comes
at once, with heads of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.parts.codebook import assigned
from holdall.vectors.bits import Bits
from holdall.vectors.clustering import balanced
from holdall.vectors.heads import Heads
from holdall.vectors.lists import Lists
from holdall.vectors.numbered import GONE
from holdall.vectors.scratch import Scratch
from holdall.vectors.spann_build import headed, near_heads, placed, wide
from holdall.vectors.spann_lists import bytes_of, cap_of, spread

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.given import State
    from holdall.vectors.source import Vectors
    from holdall.vectors.spann_lists import Postings

_SHORT = 0.25  # of the mean length, below which a list is merged into others
_MUCH = 0.5  # of what is there, from which what comes has heads of its own
_AROUND, _PASSES = 12, 3  # lists that a new head's vectors come from; rounds of splitting and filling
_WASTE = 0.3  # of a file that no list refers to any more, from which it is written again
Entries = tuple[np.ndarray, np.ndarray]  # rows int32 [n], vectors [n, D]


class Renewal:
    """One change of an open index."""

    def __init__(self, shelf: Postings, change: Change, room: int | None = None):
        self.shelf, self.change, self.lists, self.room = shelf, change, shelf.lists, room
        self.made = {n: shelf.folder.arrays[n] for n in ("heads", "heads/scale", "groups", "groups/of")}
        self.heads = Heads.decoded(self.made)
        self.there, self.stored = shelf.there, shelf.stored
        self.fresh: dict[int, Entries] = {}  # lists that are not as they are in the file

    def grown(self, vectors: Vectors) -> State:
        recipe, before = self.shelf.recipe, self.stored
        self.stored += vectors.count
        if self.there is not None:
            self.there = Bits(np.concatenate([self.there.flags, np.ones(vectors.count, bool)]))
        dtype = wide(self.lists.dtype, vectors)
        much = recipe.replicas * vectors.nbytes > recipe.build_bytes or vectors.count > _MUCH * before
        if much or dtype != self.lists.dtype:
            heads = self._more_heads(vectors) if much else self.heads
            new = ((np.arange(before + at, before + at + len(raw)), raw) for at, raw in vectors.blocks())
            return self._again(heads, chain(self._alive(before), new), dtype)
        coming: dict[int, list[Entries]] = {}
        for first, raw in vectors.blocks():
            rows = np.arange(before + first, before + first + len(raw), dtype=np.int32)
            for at, places in self._homes(raw):
                coming.setdefault(at, []).append((rows[places], raw[places]))
        for at, parts in sorted(coming.items()):
            self.fresh[at] = _joined([self.entries(at), *parts])
        for _ in range(_PASSES):
            changed = {new for at in sorted(self.fresh) for new in self._split(at)}
            if not changed:
                break
            self._refill(changed)
        if self._wasted() > _WASTE:
            return self._again(self.heads, self._alive(self.stored), dtype)
        return self._state()

    def shrunk(self, keep: np.ndarray) -> State:
        flags = np.ones(self.stored, bool) if self.there is None else self.there.flags
        flags[np.flatnonzero(flags)[~keep]] = False
        self.there = Bits(flags)
        if self.there.count and self.stored - self.there.count > GONE * self.stored:
            return self._again(self._fewer_heads(), self._alive(self.stored), self.lists.dtype)
        return self._state()

    def _alive(self, last: int) -> Iterator[Entries]:
        """Vectors before row `last` that are left, each once, by their row."""
        seen = np.zeros(self.stored, bool)
        for at in range(len(self.heads)):
            rows, vectors = self.entries(at)
            mine = (~seen[rows]) & (rows < last)
            seen[rows] = True
            yield rows[mine], vectors[mine]

    def _more_heads(self, vectors: Vectors) -> np.ndarray:
        """Those there are, and some of what comes; no more than the index has memory for."""
        recipe, limit = self.shelf.recipe, self.room
        wanted = max(1, round(self.shelf.share * vectors.count))
        while (
            limit is not None and wanted and bytes_of(len(self.heads) + wanted, self.heads.shape[1]) > limit
        ):
            wanted = wanted * 9 // 10
        if not wanted:
            return self.heads
        work = Scratch(self.change.scratch, None)
        return np.concatenate([self.heads, headed(recipe, work, vectors, wanted, self.shelf.reach)])

    def _fewer_heads(self) -> np.ndarray:
        """Without those of short lists, nor those of the shortest, while there are more than the index had for as many
        vectors when it was built."""
        assert self.there is not None
        lengths = np.array([len(self.entries(at)[0]) for at in range(len(self.heads))])
        spare = len(lengths) - round(self.shelf.share * self.there.count)
        few = max(spare, int((lengths < _SHORT * lengths.mean()).sum()), 0)
        kept: np.ndarray = np.sort(np.argsort(lengths, kind="stable")[min(few, len(lengths) - 1) :])
        return self.heads[kept]

    def _again(self, heads: np.ndarray, blocks: Iterable[Entries], dtype: np.dtype[Any]) -> State:
        """All lists into a new file, by closure over these heads; rows are numbered anew."""
        recipe, old = self.shelf.recipe, self.lists
        made = Heads.renewed(self.made, heads, recipe.seed)
        there, count = self.there, self.stored if self.there is None else self.there.count
        named = ((rows if there is None else there.rank(rows.astype(np.int64)), raw) for rows, raw in blocks)
        work = Scratch(self.change.scratch, None)
        name = f"lists-{int(old.name.rpartition('-')[2]) + 1}"
        lists, spacing = spread(
            recipe, self.change, work, name, made, named, count, self.shelf.reach, old.dim, dtype
        )
        self.change.drop(old.name)
        told = {"lists": lists.to_meta(), "reach": self.shelf.reach, "stored": count, "spacing": spacing}
        return {**made, **lists.sections()}, told | {"share": self.shelf.share}

    def entries(self, at: int) -> Entries:
        """A list as it will be, without vectors that are gone."""
        rows, vectors = (
            self.fresh[at] if at in self.fresh else self.lists.read(self.shelf.folder, np.array([at]))
        )
        if self.there is None:
            return rows, vectors
        alive = self.there.has(rows.astype(np.int64))
        return rows[alive], vectors[alive]

    def _homes(self, raw: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(list, which of the vectors go there)."""
        x = placed(raw, self.shelf.recipe.metric, self.shelf.reach)
        owners = near_heads(self.shelf.recipe, self.shelf.heads, self.heads, x)
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
        x = placed(vectors, self.shelf.recipe.metric, self.shelf.reach)
        owners = near_heads(self.shelf.recipe, index, self.heads, x)
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

    def _wasted(self) -> float:
        """The share of the file that no list refers to, or will not."""
        size = self.shelf.folder.size(self.lists.name)
        used = sum(int(n) for at, n in enumerate(self.lists.counts) if at not in self.fresh) * self.lists.each
        more = sum(len(rows) for rows, _ in self.fresh.values()) * self.lists.each
        return 1 - (used + more) / max(1, size + more)

    def _state(self) -> State:
        """Changed lists behind the others in their file."""
        changed, old = sorted(self.fresh), self.lists
        new = Lists.write(self.change, old.name, old.dim, old.dtype, (self.entries(at) for at in changed))
        arrays = {}
        for field in ("starts", "counts", "sums"):
            before = getattr(old, field)
            values = np.zeros(len(self.heads), before.dtype)
            values[: old.count] = before
            values[changed] = getattr(new, field)
            arrays[field] = values
        lists = Lists(old.name, old.dim, old.dtype, **arrays)
        heads = Heads.renewed(self.made, self.heads, self.shelf.recipe.seed)
        there = {} if self.there is None or self.there.count == self.stored else {"there": self.there.packed}
        told = {"lists": lists.to_meta(), "reach": self.shelf.reach, "stored": self.stored}
        told |= {"spacing": self.shelf.spacing, "share": self.shelf.share}
        return {**heads, **lists.sections(), **there}, told


def _joined(parts: list[Entries]) -> Entries:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _grouped(owners: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(owner, whose places)."""
    order = np.argsort(owners, kind="stable")
    different, starts = np.unique(owners[order], return_index=True)
    return list(zip(different.tolist(), np.split(order, starts[1:]), strict=True))
