"""The contract of the room: an index over `Vectors`, in memory or in a folder.

A method writes `made`, which fills a new folder, and a `Shelf` that finds rows; ids, attributes, conditions, additions
and removals are the shelf's.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kinds import Index, Spend
from holdall.method import knob
from holdall.vectors.metrics import METRICS

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.given import Given
    from holdall.vectors.shelf import Shelf
    from holdall.vectors.source import Vectors


@dataclass(frozen=True, kw_only=True)
class VectorIndex(Index):
    """Finds vectors near to a query. Budgets count what an open index holds in memory, ids and tables included; a share
    is of the bytes of the vectors as they were given, bits are for each of their numbers."""

    room: ClassVar[str] = "vectors"
    metrics: ClassVar[tuple[str, ...]] = METRICS  # that it works with
    gives_vectors: ClassVar[bool] = False  # whether what it opens has `vectors_of` the rows that it finds

    metric: str = knob("l2", "l2, cosine or ip (inner product)", other="ip")

    def __post_init__(self) -> None:
        if self.metric not in self.metrics:
            raise BadInput("metric", self.metric, f"one of {', '.join(self.metrics)}")

    @abstractmethod
    def made(self, change: Change, given: Given) -> None:
        """Fill a new folder and commit it; BudgetError before any work where that many bytes do not do."""

    @abstractmethod
    def shelf(self, folder: Folder, limit: int | None) -> Shelf:
        """What is in a folder, open, in at most `limit` bytes."""

    def source(self, given: Any, name: str | None = None) -> Vectors:
        """What it is built from or asked with. name: which array or column of a file."""
        from holdall.vectors.building import taken

        return taken(given, name)

    def build(
        self,
        vectors: Any,
        budget: Spend = None,
        ids: Any = None,
        *,
        attributes: Any = None,
        to: str | None = None,
    ) -> Shelf:
        """As every index. vectors: an array [N, D], a path or URL, or `Vectors`. attributes: a table, a row each."""
        from holdall.vectors.building import built

        return built(self, vectors, budget, ids, attributes, to)

    def open(self, url: str, memory: Spend = None) -> Shelf:
        from holdall.vectors.building import opened

        return opened(url, memory)

    @staticmethod
    def allowed(vectors: Vectors, budget: Spend) -> int | None:
        """The budget in bytes of memory."""
        asked = Budget.parse(budget)
        return None if asked is None else asked.limit(vectors.nbytes, vectors.elements)
