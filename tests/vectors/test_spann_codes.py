"""SPANN's layout with codes: what is read, taken and held, how entries lie; and how both layouts are built."""

import tracemalloc

import numpy as np
import pytest

from holdall.errors import BudgetError, CorruptArtefact
from holdall.parts.codebook import ProductQuantiser, even_turn
from holdall.vectors import IVFPQ, SPANN, SuperGlobal, spann_codes_build
from holdall.vectors.codes_scan import nearest_codes, products
from holdall.vectors.entries import PAGE, Entries
from holdall.vectors.folder import Folder, changing
from holdall.vectors.metrics import nearest
from holdall.vectors.numbered import Numbered
from holdall.vectors.quality import naive_search, real, recall


def test_few_pages_find_what_codes_alone_cannot():
    """At a tenth of the vectors in memory; the same bytes as codes alone find less."""
    vectors, queries = real()
    vectors = vectors + np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32) / 8
    _, wanted = naive_search(vectors, queries, 10, "l2")
    with SPANN(layout="codes").build(vectors, "31%") as index:
        found = recall(index.search(queries, 10).ids, wanted)
        told = index.traffic()
        disk = sum(index.folder.size(n) for n in index.folder.files)
        alone = recall(_by_codes(index, queries), wanted)
    with IVFPQ().build(vectors, "31%") as other:
        codes_only = recall(other.search(queries, 10).ids, wanted)
    assert found > 0.95 and found > codes_only + 0.1 and found > alone + 0.1
    assert told["reads"] / len(queries) <= 20 and disk < 1.15 * vectors.nbytes
    assert told["bytes_read"] < 20 * len(queries) * 1.5 * PAGE + disk


def test_vectors_are_held_where_shorter_codes_let_them_be():
    """Nothing is then read, and the nearest are those that reading finds, with conditions too."""
    vectors, queries = real()
    x, q = np.rint(vectors), np.rint(queries)
    limit = int(0.7 * x.nbytes)
    with SPANN(layout="codes").build(x, limit, attributes={"n": np.arange(len(x)) % 3}) as index:
        assert index.whole is not None and index.whole.dtype == np.uint8 and index.nbytes <= limit
        assert index.codes.shape[1] <= x.shape[1] // 8
        _, wanted = naive_search(x, q, 10, "l2")
        before = index.traffic()
        held = [
            index.search(q, 10),
            index.search(q, 10, where="n = 1"),
            index.search(q, 10, where=np.arange(7, 20)),
        ]
        assert index.traffic()["bytes_read"] == before["bytes_read"]
        assert recall(held[0].ids, wanted) > 0.95
        index.whole, index.recipe = None, index.recipe.but(rerank=8.0)
        read = [
            index.search(q, 10),
            index.search(q, 10, where="n = 1"),
            index.search(q, 10, where=np.arange(7, 20)),
        ]
        assert index.traffic()["bytes_read"] > before["bytes_read"]
        for one, other in zip(held, read, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_allclose(one.distances, other.distances, rtol=1e-6)
    with SPANN(layout="codes", code_bytes=16).build(x, limit) as index:
        assert index.codes.shape[1] == 16


def _by_codes(index, queries):
    """The ten nearest by their codes only."""
    turned, (away, near) = queries @ index.turn, index.heads.nearest(queries, 64)
    keys, places = np.empty(10, np.float32), np.empty(10, np.int64)
    out = []
    for i in range(len(queries)):
        products(turned[i], index.flat, index.table)
        nearest_codes(
            index.table, near[i], away[i], index.starts, index.codes, index.bias, index.scale[0], index.scale[1],
            index.rows, np.zeros(1, np.uint8), False, keys, places,
        )  # fmt: skip
        out.append(index.rows[places])
    return np.array(out)


def test_estimates_are_distances_to_what_codes_stand_for():
    vectors, queries = real()
    with SPANN(layout="codes", code_bytes=16).build(vectors) as index:
        tables = index.flat.transpose(0, 2, 1)
        rest = ProductQuantiser(np.ascontiguousarray(tables)).decode(index.codes) @ index.turn.T
        owners = np.repeat(np.arange(index.heads.count), np.diff(index.starts[0]))
        heads = index.folder.arrays["heads"] * index.folder.arrays["heads/scale"][1]
        stands = rest + heads[owners] + index.folder.arrays["heads/scale"][0]
        turned, (away, near) = queries @ index.turn, index.heads.nearest(queries, index.heads.count)
        keys, places = np.empty(300, np.float32), np.empty(300, np.int64)
        for i in range(5):
            products(turned[i], index.flat, index.table)
            nearest_codes(
                index.table, near[i], away[i], index.starts, index.codes, index.bias, index.scale[0],
                index.scale[1], index.rows, np.zeros(1, np.uint8), False, keys, places,
            )  # fmt: skip
            true = np.square(stands - queries[i]).sum(1)
            np.testing.assert_allclose(keys, true[places], rtol=2e-3)
            np.testing.assert_allclose(keys, np.sort(true)[:300], rtol=2e-3)


def test_directions_share_variance_out():
    """A product quantiser loses less where parts are even; zeros stand behind where parts do not divide."""
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(4000, 24)) * 0.8 ** np.arange(24)).astype(np.float32)
    mix = np.linalg.qr(draw.normal(size=(24, 24)))[0].astype(np.float32)
    x = x @ mix
    lost = {}
    for name, turn in {"plain": np.eye(24, dtype=np.float32), "even": even_turn(x, 6)}.items():
        np.testing.assert_allclose(turn.T @ turn, np.eye(24), atol=1e-5)
        tables = ProductQuantiser.learn(x @ turn, 6, bits=6)
        lost[name] = float(np.square(tables.decode(tables.encode(x @ turn)) - x @ turn).sum())
    assert lost["even"] < 0.8 * lost["plain"]
    odd = even_turn(x, 5)
    assert odd.shape == (24, 25) and np.allclose(np.square(x @ odd).sum(1), np.square(x).sum(1), rtol=1e-4)


def test_codes_find_more_in_even_directions(monkeypatch):
    draw = np.random.default_rng(0)
    mix = np.linalg.qr(draw.normal(size=(32, 32)))[0]
    x = ((draw.normal(size=(4200, 32)) * 0.85 ** np.arange(32)) @ mix).astype(np.float32)
    vectors, queries = x[200:], x[:200]
    _, wanted = naive_search(vectors, queries, 10, "l2")
    found = []
    for _ in range(2):
        with SPANN(layout="codes", code_bytes=8, cells=64).build(vectors) as index:
            found.append(recall(_by_codes(index, queries), wanted))
        monkeypatch.setattr(spann_codes_build, "even_turn", lambda x, parts: np.eye(32, dtype=np.float32))
    assert found[0] > found[1] + 0.04


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        (lambda x: np.rint(x), "uint8"),
        (lambda x: np.rint(x) - 8, "int8"),
        (lambda x: x / 4, "float16"),
        (lambda x: x / 3, "float32"),
        (lambda x: np.rint(x) * 40, "float16"),
    ],
)
@pytest.mark.parametrize("layout", ["lists", "codes"])
def test_numbers_are_stored_in_the_smallest_type_that_holds_them(make, stored, layout):
    vectors, queries = real()
    x, q = make(vectors).astype(np.float32), make(queries).astype(np.float32)
    x, q = np.concatenate([x[:500], x[-100:]]), q[:40]
    with SPANN(layout=layout).build(x[:500], to=None) as index:
        held = index.lists if layout == "lists" else index.entries
        assert held.dtype == stored
        index.recipe = index.recipe.but(probes=10_000, prune=1e30, rerank=200.0)
        away, _ = naive_search(x[:500], q, 5, "l2")
        np.testing.assert_allclose(index.search(q, 5).distances, away, rtol=1e-5, atol=1e-4)
        index.add(x[500:] / 7 + 0.3)  # which only float32 holds
        held = index.lists if layout == "lists" else index.entries
        assert held.dtype == np.float32
        away, _ = naive_search(np.concatenate([x[:500], x[500:] / 7 + 0.3]), q, 5, "l2")
        np.testing.assert_allclose(index.search(q, 5).distances, away, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("dim", "dtype"), [(128, "uint8"), (100, "float32"), (384, "float32"), (2000, "float32"), (3, "float16")]
)
def test_entries_lie_close_and_are_read_page_by_page(tmp_path, dim, dtype):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 200, (700, dim)).astype(dtype)
    url = str(tmp_path / "v")
    with changing(url) as change:
        entries = Entries("e", dim, np.dtype(dtype))
        entries.append(change, np.array_split(x[:500], 6))
        entries.append(change, [x[500:]])
        change.commit({}, {"entries": entries.to_meta()})
    folder = Folder.open(url)
    again = Entries.of_meta(folder.meta["entries"], dim, folder)
    np.testing.assert_array_equal(again.all(folder), x)
    some = np.unique(draw.integers(0, 700, 40))
    before = folder.traffic
    found, reads = again.read(folder, some)
    np.testing.assert_array_equal(found, x[some])
    assert reads <= len(some) and folder.size("e") <= 1.04 * 700 * again.each + 2 * PAGE
    pages = {
        p for s in again.where(some).tolist() for p in range(s // PAGE, (s + again.each - 1) // PAGE + 1)
    }
    assert folder.traffic - before <= len(pages) * PAGE
    with (tmp_path / "v" / "e").open("r+b") as handle:
        at = int(again.where(some[3:4])[0]) + 9
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 4]))
    with pytest.raises(CorruptArtefact, match=r"vector at byte"):
        again.read(folder, some)


def test_vectors_too_are_held_where_memory_has_room():
    vectors, queries = real()
    with SPANN(layout="codes", code_bytes=8).build(vectors, "90%") as index:
        index.search(queries[:1], 10)
        before = index.traffic()["bytes_read"]
        hits = index.search(queries, 10)
        assert index.traffic()["bytes_read"] == before and index.nbytes <= index.limit
    with SPANN(layout="codes", code_bytes=8).build(vectors, "35%") as index:
        np.testing.assert_array_equal(index.search(queries, 10).ids, hits.ids)
        assert index.traffic()["reads"] > 0


def test_many_additions_and_losses_leave_one_stretch():
    vectors, queries = real()
    with SPANN(layout="codes").build(vectors[:800]) as index:
        for part in np.array_split(np.arange(800, 1600), 10):
            index.add(vectors[part], part)
        assert len(index.starts) < 10
        index.remove(np.arange(700))
        assert len(index.starts) == 1 and index.entries.count == index.stored == index.count == 900
        wanted = 700 + naive_search(vectors[700:], queries, 10, "l2")[1]
        assert recall(index.search(queries, 10).ids, wanted) > 0.97
        np.testing.assert_array_equal(index.vectors_of(np.array([5, 0, 5])), vectors[[705, 700, 705]])


def test_codes_are_taken_where_memory_has_room():
    vectors, _ = real()
    for budget, layout in (("4%", "heads"), ("30%", "codes"), (None, "codes")):
        with SPANN().build(vectors, budget) as index:
            assert ("codes" if "entries" in index.folder.meta else "heads") == layout
    with pytest.raises(BudgetError) as told:
        SPANN(layout="codes").build(vectors, "1%")
    with SPANN(layout="codes").build(vectors, int(told.value.least)) as index:
        assert index.nbytes <= told.value.least


@pytest.mark.parametrize("layout", ["lists", "codes"])
def test_building_holds_little(layout, tmp_path, monkeypatch):
    """Of vectors eight times what it may hold; one that may hold all finds the same or hardly more."""
    vectors, queries = real()
    x = np.tile(vectors, (12, 1)) + np.random.default_rng(0).normal(size=(19_200, 64)).astype(np.float32)
    _, wanted = nearest(queries, x, 10, "l2")
    url = str(tmp_path / "x.npy")
    np.save(url, x)
    monkeypatch.setattr(Numbered, "tune", lambda *_: None)  # takes long where memory is traced
    found = {}
    for name, most in {"some": x.nbytes // 8, "all": 1 << 30}.items():
        method = SPANN(layout=layout, build_bytes=most, ratio=0.05, cells=100, code_bytes=8, replicas=4)
        if name == "some":
            method.build(vectors).close()  # kernels are compiled, modules are there
        tracemalloc.start()
        with method.build(url) as index:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found[name] = recall(index.search(queries, 10).ids, wanted)
        if name == "some":
            assert peak < x.nbytes
    assert found["some"] > found["all"] - 0.02


@pytest.mark.parametrize("layout", ["lists", "codes"])
def test_superglobal_works_over_it(layout):
    vectors, queries = real()
    with SuperGlobal(inner=SPANN(metric="cosine", layout=layout, probes=400)).build(vectors) as index:
        found = index.search(queries, 10).ids
    with SuperGlobal().build(vectors) as index:
        assert recall(found, index.search(queries, 10).ids) > 0.95
