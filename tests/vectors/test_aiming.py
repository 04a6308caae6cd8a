"""A share of the nearest is asked for and found; what was measured is what is found."""

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.vectors import IVFPQ, SPANN, Nothing
from holdall.vectors.aiming import truth
from holdall.vectors.metrics import ready
from holdall.vectors.quality import naive_search, real, recall


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_truth_is_what_exact_search_finds(metric):
    vectors, queries = real()
    blocks = ((np.arange(at, at + 100), vectors[at : at + 100]) for at in range(0, 1600, 100))
    away, rows = truth(blocks, ready(queries, metric), 5, metric)
    exact, wanted = naive_search(vectors, queries, 5, metric)
    np.testing.assert_allclose(away, exact, rtol=1e-5, atol=1e-6)
    assert recall(rows, wanted) > 0.998  # but for ties


@pytest.mark.parametrize("layout", ["lists", "codes"])
def test_the_share_that_is_asked_for_is_found(layout, tmp_path):
    draw = np.random.default_rng(0)
    made = draw.normal(size=(40, 10))[draw.integers(0, 40, 9200)] + 0.7 * draw.normal(size=(9200, 10))
    made = (made @ draw.normal(size=(10, 32))).astype(np.float32)
    vectors, queries = made[200:], made[:200]
    url = str(tmp_path / "v.index")
    SPANN(layout=layout, ratio=0.1, code_bytes=4).build(vectors, to=url).close()
    _, wanted = naive_search(vectors, queries, 10, "l2")
    reads = {}
    with SPANN().open(url) as index:
        shares = [share for *_, share in index.recalls]
        assert shares == sorted(shares) and len(shares) > 3
        before = index.recipe
        for asked in (0.5, 0.9, 0.97, 1.0):
            told = index.traffic()["bytes_read"]
            found = recall(index.search(queries, 10, recall=asked).ids, wanted)
            reads[asked] = index.traffic()["bytes_read"] - told
            assert found > asked - 0.02
        assert found > 0.9999 and index.recipe == before
        whole = sum(index.folder.size(name) for name in index.folder.files)
        for wrong in (0, 1.5, float("nan"), True):
            with pytest.raises(BadInput, match="recall"):
                index.search(queries, 10, recall=wrong)
    assert layout == "codes" or reads[0.5] <= reads[0.9] <= reads[0.97]
    assert 0.98 * whole < reads[1.0] < 1.02 * whole  # everything once, for all queries


@pytest.mark.parametrize("layout", ["lists", "codes"])
def test_queries_of_ones_own_are_measured(layout, tmp_path):
    """Those that lie far out need more; what is measured holds for others of their kind, and after changes."""
    vectors, queries = real()
    far = queries + np.random.default_rng(0).normal(size=queries.shape).astype(np.float32) * 20
    url = str(tmp_path / "v.index")
    with SPANN(layout=layout, ratio=0.1, code_bytes=4).build(vectors, to=url) as index:
        stored = index.recalls
        index.tune(far[:100])
        assert index.recalls != stored and index.traffic()["queries"] == 0
        with pytest.raises(BadInput, match="queries"):
            index.tune(far[:0])
        tuned = index.recalls
        index.remove(np.arange(100))
        assert index.recalls == tuned
    kept = np.arange(100, len(vectors))
    wanted = kept[naive_search(vectors[kept], far[100:], 10, "l2")[1]]
    with SPANN().open(url) as index:
        assert recall(index.search(far[100:], 10, recall=0.9).ids, wanted) > 0.87


def test_who_has_measured_none_says_so():
    vectors, queries = real()
    with Nothing().build(vectors) as index:  # finds all
        assert len(index.search(queries, 3, recall=0.9).ids) == len(queries)
    with IVFPQ().build(vectors) as index, pytest.raises(BadInput, match="recall"):
        index.search(queries, 3, recall=0.9)
