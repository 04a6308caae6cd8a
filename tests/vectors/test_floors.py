"""Exact search, a random share and inverted lists of product codes: what other methods are measured against."""

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError
from holdall.vectors import IVFPQ, Curator, Nothing, Random, Vectors
from holdall.vectors.quality import naive_search, real, recall


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_exact_in_the_least_memory_is_exact_in_any(metric):
    """One page of vectors at a time, after additions and removals, against the definition."""
    vectors, queries = real()
    method = Nothing(metric=metric)
    with pytest.raises(BudgetError) as told:
        method.build(vectors, 1000)
    with method.build(vectors[:700], int(told.value.least) + 20_000) as index:
        index.add(vectors[700:])
        index.remove(np.arange(0, 400, 3))
        keep = np.ones(len(vectors), bool)
        keep[np.arange(0, 400, 3)] = False
        hits = index.search(queries, 10)
        wanted, rows = naive_search(vectors[keep], queries, 10, metric)
        assert np.array_equal(hits.ids, np.flatnonzero(keep)[rows])
        np.testing.assert_allclose(hits.distances, wanted, rtol=1e-5, atol=1e-5)
        assert index.nbytes <= index.limit < vectors.nbytes + 20_000
        seen = index.traffic()
        assert seen["bytes_read"] > vectors[keep].nbytes and seen["queries"] == len(queries)


def test_files_do_not_keep_what_was_forgotten(tmp_path):
    vectors, queries = real()
    with Nothing().build(vectors, to=str(tmp_path / "v.index")) as index:
        before = sum(p.stat().st_size for p in (tmp_path / "v.index").iterdir())
        index.remove(np.arange(100))  # a sixteenth: marked
        index.remove(np.arange(100, 900))  # more than the half: written again
        left = sum(p.stat().st_size for p in (tmp_path / "v.index").iterdir())
        assert left < 0.6 * before
        index.add(vectors[:5], np.arange(5))
        _, rows = naive_search(np.concatenate([vectors[900:], vectors[:5]]), queries, 5, "l2")
        assert np.array_equal(index.search(queries, 5).ids, np.r_[900 : len(vectors), :5][rows])


def test_a_random_share_finds_its_share():
    vectors, queries = real()
    _, wanted = naive_search(vectors, queries, 10, "l2")
    found = {}
    for share in ("20%", "60%"):
        with Random().build(vectors, share) as index:
            found[share] = recall(index.search(queries, 10).ids, wanted)
    assert 0.13 < found["20%"] < 0.25 and 0.5 < found["60%"] < 0.65
    with Random().build(vectors, "20%") as index:
        kept = len(index.rows)
        index.add(vectors[:800] + 0.5)
        assert len(index.rows) == kept and 0.25 < (index.rows >= len(vectors)).mean() < 0.42  # a third is new


def test_product_codes_find_more_with_more_lists_and_more_parts():
    vectors, queries = real()
    _, wanted = naive_search(vectors, queries, 10, "l2")

    def share(**knobs):
        with IVFPQ(lists=40, **knobs).build(vectors) as index:
            return recall(index.search(queries, 10).ids, wanted)

    few, many = share(parts=16, probes=1), share(parts=16, probes=40)
    assert few + 0.2 < many < 1 and share(parts=4, probes=40) < many - 0.1
    with IVFPQ(probes=40, parts=64).build(vectors) as index:
        assert recall(index.search(queries, 10).ids, wanted) > 0.9
        alone = index.search(vectors[::50], 1)
        assert (alone.ids[:, 0] == np.arange(0, len(vectors), 50)).mean() > 0.9 and alone.distances.max() < 15


def test_budgets_choose_how_long_codes_are():
    vectors = real()[0][:900]
    sizes = []
    for budget in ("45%", "80%"):
        with IVFPQ(lists=10).build(vectors, budget) as index:
            sizes.append(index.index.pq.M)
            assert index.nbytes <= index.limit
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    with pytest.raises(BudgetError):
        IVFPQ(parts=64).build(vectors, "20%")


def test_ids_and_attributes_come_from_files(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    vectors, queries = real()
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    names = [f"doc-{i}" for i in range(len(vectors))]
    table = pa.table({"id": names, "vector": flat, "lang": ["en", "de"] * (len(names) // 2)})
    pq.write_table(table, tmp_path / "docs.parquet")
    with Nothing().build(str(tmp_path / "docs.parquet"), to=str(tmp_path / "v.index")) as index:
        hits = index.search(queries, 5, "lang = 'de'")
    assert all(int(i.removeprefix("doc-")) % 2 == 1 for i in hits.ids.reshape(-1))
    with Nothing().open(str(tmp_path / "v.index")) as index:
        assert np.array_equal(index.search(queries, 5, "lang = 'de'").ids, hits.ids)
        index.remove(["doc-1", "doc-3", "nobody"])
        index.add(vectors[:2], ["a", "b"], {"lang": ["de", "fr"]})
        assert index.search(vectors[0], 1, "lang IN ('fr', 'de')").ids.tolist() == [["a"]]
        with pytest.raises(BadInput, match="lang"):
            index.add(vectors[:1], ["c"])


def test_lists_are_a_condition_and_foreign_ids_are_none():
    vectors, queries = real()
    with Nothing().build(vectors, ids=[f"v{i}" for i in range(len(vectors))]) as index:
        hits = index.search(queries[:4], 3, ["v7", "v9", "no"])
        assert set(hits.ids[:, :2].reshape(-1)) == {"v7", "v9"} and (hits.ids[:, 2] == "").all()
        assert np.isinf(hits.distances[:, 2]).all()
        assert (index.search(queries[:4], 3, [7, 9]).ids == "").all()  # whole numbers are other names


def test_vectors_may_be_opened_before():
    vectors, queries = real()
    with Vectors.of(vectors.astype(np.float16)) as given, Nothing().build(given) as index:
        assert index.search(queries, 2).ids.shape == (len(queries), 2)


@pytest.mark.parametrize("method", [Nothing(), Curator(), Random()])
def test_numbers_that_would_be_cut_are_refused(method):
    """An index of bytes stays one: what it cannot hold is not taken, and nothing has changed."""
    draw = np.random.default_rng(0)
    vectors = draw.integers(0, 256, (300, 8), np.uint8)
    with method.build(vectors) as index:
        index.add(vectors[:3].astype(np.float32) // 2)
        for wrong in (vectors[:2] + np.float32(0.5), vectors[:2].astype(np.float32) - 300):
            with pytest.raises(BadInput, match="uint8 holds"):
                index.add(wrong)
        assert index.count == 303
        index.folder.check()
