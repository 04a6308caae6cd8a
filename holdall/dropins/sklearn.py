"""scikit-learn's NearestNeighbors over an index: where a pipeline looks for neighbours, any method of Holdall does it.

`from holdall.dropins.sklearn import NearestNeighbors` stands in the place of scikit-learn's: `fit`, `kneighbors` and
`kneighbors_graph` take and give the same. What is fitted is held within `budget`, on disk where the method works from
disk, and `recall` says how many of the nearest are to be found. There is no `radius_neighbors`.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from holdall.errors import BadInput
from holdall.kinds import Searcher
from holdall.registry import get

METRICS = {"euclidean": "l2", "minkowski": "l2", "l2": "l2", "cosine": "cosine", "ip": "ip"}


class NearestNeighbors(BaseEstimator):
    """n_neighbors: how many are found by default. method: an index, such as vectors.spann; options: its knobs.

    metric: euclidean, cosine or ip (minus the inner product). budget: what searching may hold, "64MB" or "10%" of the
    vectors. recall: the share of the nearest to find, as it was measured when the index was built; None: by its knobs.
    Fitted, it has `index_`, the open index, whose temporary folder goes with it.
    """

    index_: Searcher

    def __init__(
        self,
        *,
        n_neighbors: int = 5,
        method: str = "vectors.spann",
        metric: str = "euclidean",
        budget: str | int | None = None,
        recall: float | None = None,
        options: dict[str, Any] | None = None,
    ):
        self.n_neighbors, self.method, self.metric = n_neighbors, method, metric
        self.budget, self.recall, self.options = budget, recall, options

    def fit(self, X: Any, y: Any = None) -> Self:
        """X [N, D], an array or a memory map. A fit before is given back."""
        if self.metric not in METRICS:
            raise BadInput("metric", self.metric, f"one of {', '.join(METRICS)}")
        X = validate_data(self, X, dtype=np.float32, order="C")
        if hasattr(self, "index_"):
            self.index_.close()
        recipe = get(self.method)(metric=METRICS[self.metric], **(self.options or {}))
        self.index_, self._fit_X = recipe.build(X, self.budget), X
        self.n_samples_fit_ = len(X)
        return self

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """(distances [Q, k], indices [Q, k]), the nearest first, or the indices alone. X None: the vectors that were
        fitted, of which none is its own neighbour."""
        check_is_fitted(self, "index_")
        k, own = self.n_neighbors if n_neighbors is None else n_neighbors, X is None
        asked = self._fit_X if own else validate_data(self, X, dtype=np.float32, order="C", reset=False)
        hits = self.index_.search(asked, k + own, recall=self.recall)
        distances, rows = hits.distances, hits.ids
        if own:
            mine = rows == np.arange(len(rows))[:, None]
            mine[~mine.any(1), -1] = True
            distances, rows = distances[~mine].reshape(-1, k), rows[~mine].reshape(-1, k)
        return (distances, rows) if return_distance else rows

    def kneighbors_graph(
        self, X: Any = None, n_neighbors: int | None = None, mode: str = "connectivity"
    ) -> csr_matrix:
        """[Q, N]: ones, or with mode "distance" distances, where a row's neighbours are."""
        if mode not in ("connectivity", "distance"):
            raise BadInput("mode", mode, "connectivity or distance")
        distances, rows = self.kneighbors(X, n_neighbors)
        fine = rows >= 0
        values = np.ones(int(fine.sum())) if mode == "connectivity" else distances[fine].astype(np.float64)
        ends = np.concatenate([[0], np.cumsum(fine.sum(1))])
        return csr_matrix((values, rows[fine], ends), shape=(len(rows), self.n_samples_fit_))
