"""What open indexes of this room share: ids, attributes, conditions, and changes that happen whole or not at all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.files import is_local, local_path
from holdall.kinds import Hits, Searcher
from holdall.vectors.folder import STATE, Change, Folder, changing, generation
from holdall.vectors.given import State, written
from holdall.vectors.ids import Ids, listed
from holdall.vectors.metrics import asked
from holdall.vectors.source import Vectors
from holdall.vectors.where import Attributes

if TYPE_CHECKING:
    from holdall.vectors.base import VectorIndex


class Shelf(Searcher):
    """A method's open index. It writes `find`, `load`, `grown` and `shrunk`; rows are numbered as ids are."""

    own: Any = None  # what goes when the shelf is closed
    remembers = False  # whether `vectors_of` what is found will be asked for

    def __init__(self, recipe: VectorIndex, folder: Folder, limit: int | None):
        self.recipe: Any = recipe
        self.limit = limit
        self._counts = {"queries": 0.0, "seconds": 0.0}
        self._before = 0  # bytes that were read through folders of earlier states
        self._take(folder)

    def _take(self, folder: Folder) -> None:
        self.folder, meta = folder, folder.meta
        count, dim = meta.get("count"), meta.get("dim")
        if (
            type(count) is not int
            or type(dim) is not int
            or count < 0
            or dim < 1
            or type(meta.get("used")) is not int
        ):
            raise CorruptArtefact(folder.url, "it does not say how many vectors it has")
        self.dim = dim
        self.ids = Ids.of_sections(folder.arrays, count)
        self.attributes = Attributes.of_sections(folder.arrays, count)
        self.load()
        if self.limit is not None and self.nbytes > self.limit:
            raise BudgetError(
                self.limit, self.nbytes, who=self.recipe.full_name(), why="the index as it was built"
            )

    @abstractmethod
    def load(self) -> None:
        """Take what is the method's own out of `folder`; CorruptArtefact for what it cannot have written."""

    @abstractmethod
    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(distances [Q, k], rows [Q, k]), infinity and -1 where there are no more. keep: bool [count]."""

    @abstractmethod
    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        """The method's own state with more vectors behind. room: bytes of memory that it may take."""

    @abstractmethod
    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        """The method's own state without the rows where `keep` is false."""

    @abstractmethod
    def least(self, own: State) -> int:
        """Bytes of memory that the method needs with such a state."""

    @abstractmethod
    def held(self) -> int:
        """Bytes of what is the method's own."""

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """float32 [len(rows), D], as `metrics.ready` has them: of rows that `find` gave, in any order."""
        raise BadInput("index", self.recipe.full_name(), "one that keeps vectors: this one has only codes")

    @property
    def count(self) -> int:
        return self.ids.count

    @property
    def nbytes(self) -> int:
        return self.held() + self.ids.nbytes + (0 if self.attributes is None else self.attributes.nbytes)

    def tune(self, queries: Any = None) -> None:
        """Called when it has been built: a method that can be asked for a recall measures here what it finds.

        queries [Q, D]: what will be asked; None: some of the vectors.
        """
        if queries is not None and not self.recipe.exact:
            raise BadInput(
                "queries to tune with", "some", f"none: {self.recipe.full_name()} measures no recall"
            )

    def aimed(self, recall: float) -> VectorIndex:
        """The method with such knobs that searches find that share of the nearest."""
        if self.recipe.exact:
            return self.recipe
        raise BadInput(
            "recall", recall, f"no recall to aim at: {self.recipe.full_name()} has not measured any"
        )

    def search(self, queries: Any, k: int = 10, where: Any = None, recall: float | None = None) -> Hits:
        """The k nearest of each query [Q, D] or [D].

        where: a condition on attributes ("lang = 'en'"), or a list of ids. recall: the share of the nearest to find, as
        it was measured when the index was built. BadInput for k above the vectors there are.
        """
        if recall is not None:
            before, self.recipe = self.recipe, self.aimed(recall)
            try:
                return self.search(queries, k, where)
            finally:
                self.recipe = before
        wanted = asked(queries, self.dim, self.recipe.metric)
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.count:
            raise BadInput("k", k, f"1 to the {self.count} vectors that there are")
        distances, rows = self.find(wanted, int(k), self._kept(where))
        self._counts["queries"] += len(wanted)
        return Hits(self.ids.at(rows), distances)

    def _kept(self, where: Any) -> np.ndarray | None:
        if where is None:
            return None
        if isinstance(where, str):
            if self.attributes is None:
                raise BadInput("where", where, "an index with attributes")
            return self.attributes.mask(where)
        keep = np.zeros(self.count, bool)
        rows = self.ids.rows(where)
        keep[rows[rows >= 0]] = True
        return keep

    def add(self, vectors: Any, ids: Any = None, attributes: Any = None) -> None:
        self._added(vectors, ids, attributes, self.grown)

    def _added(self, vectors: Any, ids: Any, attributes: Any, grown: Callable[..., State]) -> None:
        """grown: as the method's own, which may know more of what comes."""
        new = self.recipe.source(vectors)
        if new.dim != self.dim:
            raise BadInput("vectors", f"{new.dim} numbers each", f"{self.dim}, as the index has")
        told = self.folder.meta
        names = self.ids.more(new.ids if ids is None else ids, new.count, told["used"])
        table = None
        if self.attributes is not None:
            table = self.attributes.more(attributes, new.count)
        elif attributes is not None:
            raise BadInput("attributes", "some", "none: the index has none")
        facts = {
            "raw_bytes": told["raw_bytes"] + new.nbytes, "elements": told["elements"] + new.elements,
            "used": told["used"] + new.count,
        }  # fmt: skip
        beside = names.nbytes + (0 if table is None else table.nbytes)
        room = None if self.limit is None else self.limit - beside
        self._change(names, table, facts, lambda change: grown(change, new, room))

    def remove(self, ids: Any) -> int:
        rows = self.ids.rows(listed(ids))
        keep = np.ones(self.count, bool)
        keep[rows[rows >= 0]] = False
        gone = int((~keep).sum())
        if not gone:
            return 0
        told, share = self.folder.meta, (self.count - gone) / self.count
        facts = {"raw_bytes": int(told["raw_bytes"] * share), "elements": int(told["elements"] * share)}
        table = None if self.attributes is None else self.attributes.kept(keep)
        self._change(self.ids.kept(keep), table, facts, lambda change: self.shrunk(change, keep))
        return gone

    def _change(
        self, ids: Ids, table: Attributes | None, facts: dict[str, Any], made: Callable[[Change], State]
    ) -> None:
        """Commit, and go on from what is on disk; also where a commit came through whose last sync failed."""
        names = ("dim", "raw_bytes", "elements", "limit", "used", "recalls")
        kept = {k: self.folder.meta[k] for k in names if k in self.folder.meta}
        try:
            with changing(self.folder.url, self.folder) as change:
                own = made(change)
                least = self.least(own) + ids.nbytes + (0 if table is None else table.nbytes)
                if self.limit is not None and least > self.limit:
                    why = "what it would then hold"
                    raise BudgetError(self.limit, least, who=self.recipe.full_name(), why=why)
                written(change, self.recipe, ids, table, kept | facts, own)
        finally:
            if generation(self.folder.url) != self.folder.generation:
                self._before += self.folder.traffic
                self.folder.close()
                self._take(Folder.open(self.folder.url))

    def traffic(self) -> Mapping[str, float]:
        return {**self._counts, "bytes_read": float(self._before + self.folder.traffic)}

    def save(self, url: str) -> None:
        """A copy at `url`, as it is committed."""
        if not is_local(url) or (local_path(url) / STATE).exists():
            raise BadInput("output", url, "a new local folder")
        with changing(url) as change:
            for name in self.folder.files:
                size = self.folder.size(name)
                for at in range(0, size, 8 << 20):
                    change.append(name, self.folder.read(name, at, min(size, at + (8 << 20))))
            meta = {k: v for k, v in self.folder.meta.items() if k != "files"}
            change.commit(dict(self.folder.arrays), meta)

    def close(self) -> None:
        self.folder.close()
        if self.own is not None:
            self.own.close()
            self.own = None
