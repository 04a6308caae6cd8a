"""RepCONC's training as a user sees it: how long and how, and what comes of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import nn

from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.parts.codebook import kmeans
from holdall.report import Report
from holdall.vectors.building import built
from holdall.vectors.repconc_cache import embedded
from holdall.vectors.repconc_tables import Tables

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.given import Given
    from holdall.vectors.repconc import RepCONC
    from holdall.vectors.shelf import Shelf


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How long and how. The paper's: epochs 5 to 8, batch 4096, chunk 64, pool 200, negatives 11, pull 1e-4, rates 2e-5
    and 5e-4, smoothing .003, transport 100."""

    epochs: int = 6  # of both together
    second: int = 2  # of the query encoder and the entries, with frozen codes
    batch: int = 1024  # pairs
    chunk: int = 64  # queries or documents in the encoder at once
    hard: int = 1  # documents in a batch for each pair, drawn from the best `pool` of the current index
    pool: int = 200
    negatives: int | None = 11  # of each query, those that score highest; None: the whole batch
    temperature: float = 1.0
    pull: float = 1e-4  # lambda: weight of the squared distance to the codes
    rate: float = 2e-5  # of the encoder
    entries_rate: float = 5e-4
    balanced: bool = True  # False: nearest codes, without the constraint
    smoothing: float = 0.003
    transport: int = 100  # rounds of Sinkhorn
    room: float = 1.05  # times its share that a code may take
    least: int = 8  # vectors for each code: smaller batches are balanced along with earlier ones
    held: float = 0.1  # share of the queries that only judge
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.batch, self.chunk, self.pool, self.transport, self.least)
        rates = (self.temperature, self.smoothing, self.rate, self.entries_rate)
        fine = (
            min(counts) >= 1 and min(self.epochs, self.second, self.hard, self.pull) >= 0 and min(rates) > 0
        )
        if not fine or self.room < 1 or not 0 <= self.held < 1 or (self.negatives or 1) < 1:
            raise BadInput(
                "training", str(dataclasses.asdict(self)), "counts >= 1, rates > 0, room >= 1, held < 1"
            )

    def but(self, **more: Any) -> Self:
        return dataclasses.replace(self, **more)


@dataclass(frozen=True)
class Trained:
    """queries, documents: encoders ready for inference. tables: their code books. report: an epoch a row, of which
    `best` was kept: loss; mrr of held-out queries; share of codes that are not the nearest (apart); imbalance, mean of
    |1 - n / (B / K)| of the codes trained with; nearest_imbalance, of those searched with; bits, a code's entropy on
    all documents; pull, the lambda."""

    recipe: RepCONC
    queries: nn.Module
    documents: nn.Module
    tables: Tables
    report: Report
    best: str

    def index(
        self,
        documents: Any,
        budget: Spend = None,
        ids: Any = None,
        *,
        attributes: Any = None,
        to: str | None = None,
    ) -> Shelf:
        """An open index of documents as the encoder takes them; search it with `vectors(queries)`."""
        x = embedded(self.documents, documents).numpy()
        recipe = self.recipe.but(residual=False)  # its code books are of whole vectors
        return built(recipe, x, budget, ids, attributes, to, lambda c, g: self._filled(recipe, c, g))

    def _filled(self, recipe: RepCONC, change: Change, given: Given) -> None:
        from holdall.vectors.repconc_lists import bytes_of

        usual = min(self.recipe.lists or round(4 * given.vectors.count**0.5), given.vectors.count)
        sizes = {
            n: bytes_of(self.tables, given, n, self.recipe.metric) for n in sorted({1, usual}, reverse=True)
        }
        lists = next((n for n, size in sizes.items() if given.limit is None or size <= given.limit), None)
        if lists is None:
            raise BudgetError(
                given.limit or 0, min(sizes.values()), who=self.recipe.full_name(), why="codes and tables"
            )
        sample = recipe.sampled(given)
        centroids = kmeans(sample, lists, seed=recipe.seed, rounds=10) if lists > 1 else None
        recipe.filled(change, given, self.tables, centroids, sample)

    def vectors(self, queries: Any) -> np.ndarray:
        """float32 [Q, D] of queries as the encoder takes them."""
        made: np.ndarray = embedded(self.queries, queries).numpy()
        return made
