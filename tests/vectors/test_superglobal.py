"""SuperGlobal: better orders by vectors alone, on views of places and beside what others do with vectors."""

from functools import cache

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.vectors import IVFPQ, Nothing, Random, SuperGlobal, rerank
from holdall.vectors.quality import real
from holdall.vectors.reranking import naive_rerank
from holdall.vectors.views import instances


@cache
def places(seed=0):
    return instances(seed=seed)


def reordered(data, most=400, **knobs):
    """Scores [Q, N] of which the first `most` are made anew and stay in front."""
    scores = data.queries @ data.base.T
    for row, query in zip(scores, data.queries, strict=True):
        first = np.argsort(-row, kind="stable")[:most]
        row[first] = 10 + rerank(query, data.base[first], **knobs)
    return scores


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def weighed(vectors, others, count, power=3):
    """Each of `vectors` with its nearest of `others`, weighed by a power of their cosines."""
    near = vectors @ others.T
    first = np.argsort(-near, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(near, first, 1).clip(0) ** power
    return np.einsum("nk,nkd->nd", weights, others[first])


def alpha_qe(data, count=10):
    return unit(data.queries + weighed(data.queries, data.base, count)) @ data.base.T


def dba(data, count=9):
    return data.queries @ unit(weighed(data.base, data.base, count + 1)).T  # each is its own nearest


@pytest.mark.parametrize(
    ("count", "dim", "near"), [(1, 7, 9), (3, 3, 1), (63, 17, 9), (40, 5, 0), (40, 1, 3)]
)
def test_scores_are_those_of_the_card(count, dim, near):
    draw = np.random.default_rng(count)
    query, x = draw.normal(size=dim), draw.normal(size=(count, dim)) * draw.uniform(0.1, 9, (count, 1))
    x[count // 2] = 0
    for beta in (0.0, 0.15, 2.0):
        wanted = naive_rerank(query, x, neighbours=near, beta=beta)
        np.testing.assert_allclose(rerank(query, x, neighbours=near, beta=beta), wanted, rtol=1e-4, atol=1e-5)


def test_a_neighbour_in_common_lifts_what_the_query_hardly_sees():
    """Four on a path away from the query, and one alone that is a little nearer than the last of the path."""
    path = [[np.cos(a), np.sin(a), 0] for a in (0.3, 0.5, 0.7, 0.9)]
    x = np.array([*path, [np.cos(0.85), 0, np.sin(0.85)]])
    query = np.array([1.0, 0, 0])
    assert (x @ query)[3] < (x @ query)[4]
    lifted = rerank(query, x, neighbours=2)
    assert lifted[3] > lifted[4]


def test_views_of_a_place_come_before_look_alikes():
    """The card's (1): three points of mAP above plain cosines, and no worse than alpha-QE and DBA."""
    for seed in (0, 1):
        data = places(seed)
        plain, anew = data.precision(data.queries @ data.base.T), data.precision(reordered(data))
        expanded, averaged = data.precision(alpha_qe(data)), data.precision(dba(data))
        assert 0.3 < plain < 0.9 and anew > plain + 0.03, (plain, anew)
        assert anew >= max(expanded, averaged), (anew, expanded, averaged)


def test_without_candidates_or_neighbours_it_is_the_first_order():
    """M = 1 changes nothing. K = 0 leaves the vectors as they are: half a score is the query's, half the best one's."""
    data = places()
    assert np.array_equal(
        np.argsort(-reordered(data, 1), axis=1, kind="stable"),
        np.argsort(-(data.queries @ data.base.T), axis=1, kind="stable"),
    )
    query, x = data.queries[0], data.base[:300]
    first = x @ query
    second = x @ x[first.argmax()]
    np.testing.assert_allclose(rerank(query, x, neighbours=0), (first + second) / 2, atol=1e-6)
    assert np.array_equal(rerank(query, x, neighbours=0, beta=0.9), rerank(query, x, neighbours=0))


def test_batches_are_their_rows_and_duplicates_and_nothing_are_no_trouble():
    draw = np.random.default_rng(0)
    queries, x = draw.normal(size=(4, 8)), draw.normal(size=(4, 30, 8))
    both = rerank(queries, x)
    assert both.shape == (4, 30) and all(np.array_equal(both[i], rerank(queries[i], x[i])) for i in range(4))
    assert rerank(queries, x[:, :0]).shape == (4, 0) and rerank(queries[:0], x[:0]).shape == (0, 30)
    same = np.repeat(x[0, :2], 20, axis=0)
    np.testing.assert_allclose(rerank(queries[0], same), naive_rerank(queries[0], same), rtol=1e-4, atol=1e-5)
    for wrong in (
        lambda: rerank(queries[0], x), lambda: rerank(queries, x[..., :5]), lambda: rerank(queries, x, neighbours=-1),
        lambda: rerank(queries, x, beta=float("nan")),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            wrong()


def test_an_index_orders_its_candidates_anew_and_leaves_the_others():
    data = places()
    with Nothing(metric="cosine").build(data.base) as plain:
        before = plain.search(data.queries[:9], 150)
    with SuperGlobal(candidates=100).build(data.base) as index:
        hits = index.search(data.queries[:9], 150)
        few = index.search(data.queries[:9], 7)
    assert np.array_equal(few.ids, hits.ids[:, :7]) and np.array_equal(few.distances, hits.distances[:, :7])
    assert np.array_equal(hits.ids[:, 100:], before.ids[:, 100:]) and (np.diff(hits.distances) >= 0).all()
    for query, old, new, told in zip(data.queries, before.ids, hits.ids, hits.distances, strict=False):
        scores = rerank(query, data.base[old[:100]])
        order = np.argsort(-scores, kind="stable")
        assert np.array_equal(new[:100], old[:100][order]) and not np.array_equal(new[:100], old[:100])
        np.testing.assert_allclose(told[:100], 1 - scores[order], atol=1e-5)


@pytest.mark.parametrize("inner", [Nothing(metric="cosine"), Random(metric="cosine")])
def test_changes_and_conditions_go_through_to_the_inner_index(inner, tmp_path):
    """After additions, removals and a condition it is `rerank` of exact search among what is left."""
    vectors, queries = real()
    unit_vectors, unit_queries = unit(vectors), unit(queries)
    odd = np.arange(len(vectors)) % 2 == 1
    method = SuperGlobal(candidates=60, neighbours=4, inner=inner)
    with method.build(vectors[:900], attributes={"odd": odd[:900]}, to=str(tmp_path / "v.index")) as index:
        index.add(vectors[900:], attributes={"odd": odd[900:]})
        index.remove(np.arange(0, 1200, 5))
        index.remove(np.arange(1, 1200, 5))  # enough that the file is written again
        left = np.flatnonzero(~(np.isin(np.arange(1600) % 5, (0, 1)) & (np.arange(1600) < 1200)) & odd)
    with SuperGlobal().open(str(tmp_path / "v.index")) as index:
        assert index.recipe == method
        hits = index.search(queries[:20], 80, "odd")
        some = index.search(queries[:20], 30, left[:11])
    for query, found in zip(unit_queries, hits.ids, strict=False):
        old = left[np.argsort(-(unit_vectors[left] @ query), kind="stable")][:80]
        scores = rerank(query, unit_vectors[old[:60]], neighbours=4)
        wanted = [*old[:60][np.argsort(-scores, kind="stable")], *old[60:]]
        assert np.mean(found == wanted) > 0.9  # exact ties and last bits may change places
        assert set(found) == set(wanted)
    assert np.isfinite(some.distances[:, :11]).all() and np.isinf(some.distances[:, 11:]).all()
    assert all(set(row) == set(left[:11]) for row in some.ids[:, :11])


def test_it_stores_and_holds_what_its_inner_index_does():
    """The card's (2): extra storage 0 bytes; the recipe in the header is the only difference on disk."""
    vectors, _ = real()
    with Nothing(metric="cosine").build(vectors, "60%") as a, SuperGlobal().build(vectors, "60%") as b:
        assert a.nbytes == b.nbytes and a.limit == b.limit
        assert {n: a.folder.size(n) for n in a.folder.files} == {n: b.folder.size(n) for n in b.folder.files}
        assert sorted(a.folder.arrays) == sorted(b.folder.arrays)


def test_vectors_come_back_by_row_whatever_was_removed():
    vectors, _ = real()
    least = 3 * (64 << 10) + 40_000  # one page at a time
    with Nothing(metric="cosine").build(vectors, least) as index:
        keep = np.ones(len(vectors), bool)
        keep[::4] = False
        index.remove(np.arange(0, len(vectors), 4))
        rows = np.array([1100, 3, 3, 0, 1199, 600])
        before = index.traffic()["bytes_read"]
        np.testing.assert_allclose(index.vectors_of(rows), unit(vectors[keep])[rows], atol=1e-6)
        assert index.traffic()["bytes_read"] - before <= 5 * (64 << 10)
        assert index.vectors_of(rows[:0]).shape == (0, 64)


def test_what_it_cannot_work_with_is_named():
    for wrong, told in (
        ({"metric": "l2"}, "cosine"), ({"inner": Nothing()}, "cosine"), ({"inner": SuperGlobal()}, "keeps vectors"),
        ({"inner": IVFPQ(metric="cosine")}, "codes cannot be averaged"), ({"candidates": 0}, "1 or more"),
        ({"neighbours": -1}, "0 or more"), ({"beta": -0.1}, "0 or more"), ({"inner": "vectors.none"}, "index"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=told):
            SuperGlobal(**wrong)
    vectors, _ = real()
    with IVFPQ(lists=5, parts=4).build(vectors) as index, pytest.raises(BadInput, match="codes"):
        index.vectors_of(np.arange(3))
