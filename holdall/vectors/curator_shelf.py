"""An open index of many tenants: search for one of them, grant, revoke, and what every index does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Hits
from holdall.vectors.curator_kernels import still
from holdall.vectors.curator_lists import NOTHING, Lists, Own, granted
from holdall.vectors.curator_rows import Resident
from holdall.vectors.curator_search import search, through
from holdall.vectors.curator_state import Held
from holdall.vectors.curator_tree import plain
from holdall.vectors.given import Given, State
from holdall.vectors.ids import Ids, listed
from holdall.vectors.metrics import METRICS, asked, exactly, ready
from holdall.vectors.shelf import Shelf
from holdall.vectors.tenants import Name, chosen, known, named, shared

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.source import Vectors


def made(recipe: Any, change: Change, given: Given, tenants: Any) -> None:
    """Build and commit; BudgetError where what an open index holds would be more than the budget."""
    vectors, draw = given.vectors, np.random.default_rng(recipe.seed)
    rows = np.sort(draw.permutation(vectors.count)[: recipe.sample])
    sample = ready(vectors.take(rows), recipe.metric)
    held = Held.learn(recipe, sample, vectors.count, vectors.dtype)
    del sample
    held = held.entered(block for _, block in vectors.blocks())
    held = held.granted(shared(tenants, given.ids))
    least = held.nbytes + vectors.nbytes + given.beside
    if given.limit is not None and least > given.limit:
        why = "the vectors, the tree and the lists of all tenants"
        raise BudgetError(given.limit, least, who=recipe.full_name(), why=why)
    head = Resident.written(change, vectors.dim, vectors.dtype, (b for _, b in vectors.blocks()))
    given.commit(change, recipe, (held.sections(), head))


class Tenants(Shelf):
    """What `Curator` opens: nothing is ever found for a tenant but what it was granted."""

    store: Resident | None = None

    def load(self) -> None:
        self.store = Resident.open(self.folder, self.count, self.store)
        held = self._held()
        self.names, self.lists, self._size = held.names, held.lists, held.nbytes
        self._vectors, self._lists = plain(self.resident.vectors), held.lists.arrays
        self._tree = (plain(held.tree.centroids), held.tree.spread, held.tree.ends)
        self._filters = (held.filters.words, held.filters.offsets, held.filters.hashes, True)
        self._metric = METRICS.index(self.recipe.metric)
        self._seen = getattr(self, "_seen", np.zeros(4))

    @property
    def resident(self) -> Resident:
        assert self.store is not None  # since it was loaded
        return self.store

    def _held(self) -> Held:
        """All of it, as it is on disk."""
        return Held.of_sections(self.recipe, self.folder, self.count, self.dim, self.resident.rows.dtype)

    def held(self) -> int:
        return self._size + self.resident.nbytes

    def least(self, own: State) -> int:
        return int(own[1]["held"])

    @property
    def tenants(self) -> dict[Name, int]:
        """How many vectors each tenant may find; those without any are not there."""
        sizes = np.diff(self.lists.starts)
        return {name: int(sizes[i]) for name, i in self.names.numbers.items()}

    def search(
        self,
        queries: Any,
        k: int = 10,
        where: Any = None,
        recall: float | None = None,
        *,
        tenant: Any = None,
        tenants: str | None = None,
    ) -> Hits:
        """The k nearest of each query [Q, D] or [D] among what a tenant was granted; without one, among all.

        tenants: a condition in place of a tenant, as "acme AND NOT trial"; never take it from a tenant. where: as every
        index. BadInput for a tenant that has nothing, and for k above the vectors that there are.
        """
        if recall is not None:
            self.aimed(recall)
        wanted = self._asked(queries)
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.count:
            raise BadInput("k", k, f"1 to the {self.count} vectors that there are")
        which = 0 if tenant is None else self.names.number(tenant)
        keep = self._kept(where)
        if tenants is not None:
            mask = chosen(tenants, self.count, self._rows_of)
            keep = mask if keep is None else keep & mask
        away, rows = (
            self._found(wanted, int(k), which) if keep is None else self._among(wanted, int(k), which, keep)
        )
        self._counts["queries"] += len(wanted)
        return Hits(self.ids.at(rows), away)

    def _asked(self, queries: Any) -> np.ndarray:
        """As `metrics.asked`, in less time than a small tenant is searched in; kernels see what is not finite."""
        usual = type(queries) is np.ndarray and queries.dtype == np.float32 and queries.flags.carray
        if usual and queries.ndim in (1, 2) and queries.shape[-1] == self.dim and self._metric != 1:
            return queries.reshape(-1, self.dim)
        found = asked(queries, self.dim, self.recipe.metric)
        return found if found.flags.writeable else found.copy()

    def _rows_of(self, name: str) -> np.ndarray:
        """Of a tenant in a condition, where whole numbers are written like words."""
        whole = name.removeprefix("-").isdecimal() and any(isinstance(n, int) for n in self.names)
        return self.lists.own(self.names.number(int(name) if whole else name)).ids

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return self._found(queries, k, 0) if keep is None else self._among(queries, k, 0, keep)

    def _found(self, queries: np.ndarray, k: int, which: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = self._lists[1][which : which + 2].tolist()
        probes = self._probes(last - first, k)
        if last - first <= probes:  # all of them would be gathered
            return self._through(queries, k, self._lists[0], first, last)
        return self._searched(queries, k, self._lists, which, self._filters, probes)

    def _through(
        self, queries: np.ndarray, k: int, ids: np.ndarray, first: int, last: int
    ) -> tuple[np.ndarray, np.ndarray]:
        rest = (self._vectors, still(ids), first, last, self._metric, k, self._seen)
        return self._told(queries, through(queries, *rest))

    def _searched(
        self, queries: np.ndarray, k: int, lists: Any, which: int, filters: Any, probes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        how = (probes, np.float32(self.recipe.boost), np.float32(self.recipe.prune), self._metric)
        rest = (lists, which, self.names.tokens[which], filters, how, k, self._seen)
        return self._told(queries, search(queries, self._vectors, self._tree, *rest))

    def _probes(self, rows: int, k: int) -> int:
        """How many of so many to gather."""
        return max(self.recipe.shortlist, 2 * k, int(self.recipe.probes * math.sqrt(rows)))

    def _told(
        self, queries: np.ndarray, found: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._seen[3]:
            self._seen[3] = 0
            asked(queries, self.dim, self.recipe.metric)  # says which query is not finite
        return found

    def _among(
        self, queries: np.ndarray, k: int, which: int, keep: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Through a tree of shortlists that is made for this condition alone."""
        own = self.lists.own(which)
        places = np.flatnonzero(keep[own.ids])
        probes = self._probes(len(places), k)
        if len(places) <= probes:
            return self._through(queries, k, own.ids[places], 0, len(places))
        # where a list is, a part of it has no need to be deeper
        leaves = np.repeat(own.nodes, np.diff(own.firsts, append=len(own.ids)))[places]
        numbers = np.arange(len(places), dtype=np.int32)
        there: Any = map(still, (*NOTHING, numbers, leaves, self._tree[2]))
        some, nodes, firsts = granted(*(*there, self.recipe.shortlist))
        lists = tuple(still(a) for a in Lists.of([Own(own.ids[places[some]], nodes, firsts)]).arrays)
        blind = (*self._filters[:3], False)
        return self._searched(queries, k, lists, 0, blind, probes)

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        return ready(self.resident.vectors[rows], self.recipe.metric)

    def grant(self, ids: Any, tenant: Any) -> int:
        """Let a tenant find these vectors, too; how many are new to it. BadInput for ids that are not there."""
        name, rows = named(tenant), known(self.ids, ids)
        mine = self.lists.own(self.names.numbers[name]).ids if name in self.names.numbers else NOTHING.ids
        new = rows[~np.isin(rows, mine)]
        if len(new):
            self._keep(lambda: self._held().granted({name: new}))
        return len(new)

    def revoke(self, ids: Any, tenant: Any) -> int:
        """Let a tenant find these no longer; how many of them it could. One that has none left is forgotten."""
        which = self.names.number(tenant)
        rows = self.ids.rows(listed(ids))
        gone = np.intersect1d(rows[rows >= 0], self.lists.own(which).ids)
        if len(gone):
            self._keep(lambda: self._held().revoked({which: gone}))
        return len(gone)

    def _keep(self, made: Callable[[], Held]) -> None:
        """Commit a change that leaves vectors as they are."""
        store = self.resident
        rest = {"rows": store.rows.to_meta(), "pages": store.pages}
        gone = {} if store.gone is None else {"gone": store.gone}
        self._change(self.ids, self.attributes, {}, lambda _: self._state(made(), (gone, rest), self.count))

    def _state(self, held: Held, stored: State, count: int) -> State:
        size = count * self.resident.rows.row_bytes + sum(a.nbytes for a in stored[0].values())
        return held.sections() | stored[0], stored[1] | {"held": held.nbytes + size}

    def add(self, vectors: Any, ids: Any = None, attributes: Any = None, *, tenants: Any = None) -> None:
        """Take more. tenants: who may find them: one name for all, or for each a name, a list of names, or None."""
        if isinstance(tenants, Mapping):
            raise BadInput(
                "tenants", "ids by name", "one name, or one, a list or None for each vector; then grant()"
            )
        self._added(vectors, ids, attributes, partial(self.grown, tenants=tenants))

    def grown(self, change: Change, vectors: Vectors, room: int | None, tenants: Any = None) -> State:
        store, count = self.resident, self.count + vectors.count
        rows = shared(tenants, Ids(count), self.count)
        new = np.concatenate([exactly(b, store.rows.dtype) for _, b in vectors.blocks()])
        held = self._held().entered([new]).granted(rows)
        if held.outgrown:
            held = held.again([store.vectors, new])
        return self._state(held, store.appended(change, self.folder, iter([new])), count)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        store = self.resident
        held = self._held().left(keep, store.vectors)
        return self._state(held, store.thinned(change, keep), int(keep.sum()))

    def traffic(self) -> Mapping[str, float]:
        """As every index, and: touched (ids), distances, lists."""
        seen = dict(zip(("touched", "distances", "lists"), self._seen.tolist(), strict=False))
        return {**super().traffic(), **seen}
