"""Holdall's NearestNeighbors in the place of scikit-learn's: the same neighbours, in real pipelines."""

import numpy as np
import pytest
from sklearn import neighbors
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.exceptions import NotFittedError

from holdall.dropins.sklearn import NearestNeighbors
from holdall.errors import BadInput
from holdall.vectors.quality import real, recall


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("method", ["vectors.none", "vectors.spann"])
def test_neighbours_are_those_of_scikit_learn(metric, method):
    vectors, queries = real()
    theirs = neighbors.NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(vectors)
    mine = NearestNeighbors(n_neighbors=7, metric=metric, method=method, recall=1.0).fit(vectors)
    for asked in (queries, None):
        away, rows = mine.kneighbors(asked)
        wanted, right = theirs.kneighbors(asked)
        np.testing.assert_allclose(away, wanted, rtol=1e-3, atol=1e-4)
        assert recall(rows, right) > 0.995 and rows.shape == right.shape
    graph = mine.kneighbors_graph(queries, 3, mode="distance")
    other = theirs.kneighbors_graph(queries, 3, mode="distance")
    assert graph.shape == other.shape and graph.nnz == other.nnz
    np.testing.assert_allclose(graph.sum(1), other.sum(1), rtol=1e-3)
    assert (mine.kneighbors_graph(queries).data == 1).all()
    assert np.array_equal(mine.kneighbors(queries, 2, return_distance=False), mine.kneighbors(queries, 2)[1])


def test_it_is_an_estimator_within_a_budget():
    vectors, queries = real()
    mine = NearestNeighbors(budget="31%", recall=0.9, options={"layout": "codes"})
    copy = clone(mine.set_params(n_neighbors=10))
    assert copy.get_params() == mine.get_params() and copy.n_neighbors == 10
    with pytest.raises(NotFittedError):
        copy.kneighbors(queries)
    copy.fit(vectors)
    assert copy.n_features_in_ == 64 and copy.index_.nbytes <= 0.31 * vectors.nbytes
    wanted = neighbors.NearestNeighbors(n_neighbors=10).fit(vectors).kneighbors(queries)[1]
    assert recall(copy.kneighbors(queries)[1], wanted) > 0.87
    folder = copy.index_.folder.url
    copy.fit(vectors[:1400])
    assert copy.index_.count == 1400 and copy.index_.folder.url != folder
    for wrong in (vectors[:, :9], np.full((2, 64), np.nan)):
        with pytest.raises(ValueError):
            copy.kneighbors(wrong)
    with pytest.raises(BadInput, match="metric"):
        NearestNeighbors(metric="manhattan").fit(vectors)
    with pytest.raises(BadInput, match="mode"):
        copy.kneighbors_graph(queries, mode="weights")


def test_a_graph_of_neighbours_clusters():
    vectors, _ = real()
    graph = NearestNeighbors(n_neighbors=15, recall=1.0).fit(vectors).kneighbors_graph(mode="distance")
    theirs = neighbors.NearestNeighbors(n_neighbors=15).fit(vectors).kneighbors_graph(mode="distance")
    found, wanted = (
        DBSCAN(eps=18, min_samples=5, metric="precomputed").fit_predict(g) for g in (graph, theirs)
    )
    assert wanted.max() > 3 and (found == wanted).mean() > 0.98
