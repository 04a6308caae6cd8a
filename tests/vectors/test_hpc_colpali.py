"""HPC-ColPali: sets of codes score as all codes do, the card's lines on tokens of a language model, bits that mean
something."""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError
from holdall.parts.codebook import ProductQuantiser, assigned, kmeans
from holdall.vectors import Documents, HPCColPali, Vectors, hamming
from holdall.vectors.late import Ends, Fine, Sets, distinct
from holdall.vectors.passages import max_sim, paragraphs, passages, ranks
from holdall.vectors.quality import real
from holdall.vectors.salience import kept
from holdall.weights.texts import held_out_text


@cache
def corpus():
    """216 paragraphs of Python's reference and a query for each, as states of SmolLM2's tokens behind 6 layers."""
    lines = [" ".join(part.split()) for part in held_out_text().split("\n\n")]
    return passages(list(paragraphs("\n\n".join(lines), 250)), layer=6, longest=48)


def recall(index, asked, count=10):
    ids = index.search(asked, count).ids
    return float((ids == np.arange(len(ids))[:, None]).any(1).mean())


def found(documents, asked, **knobs):
    with HPCColPali(**knobs).build(documents) as index:
        return recall(index, asked)


@cache
def usual():
    """The corpus as it is indexed by default, for those who only look."""
    return HPCColPali().build(corpus().documents)


def drawn(seed, count, width, most=90):
    """Codes of documents with 1 to `most` vectors, repeated ones too."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, most + 1, count)
    sizes[0] = 1
    return draw.integers(0, 1 << width, sizes.sum()), np.concatenate([[0], np.cumsum(sizes)])


def naive(codes, offsets, table):
    """MaxSim by the definition over every code, repeated ones too."""
    worth = table[:, codes]
    return np.array([worth[:, a:b].max(1).astype(np.float64).sum() for a, b in pairwise(offsets)])


# --- sets of codes


@pytest.mark.parametrize(
    ("count", "width", "most"), [(1, 8, 3), (63, 9, 90), (64, 7, 200), (130, 8, 3), (200, 9, 400)]
)
def test_the_set_of_codes_scores_as_all_codes_do(count, width, most):
    codes, offsets = drawn(count, count, width, most)
    flat, sizes = distinct(codes, offsets, 1 << width)
    table = np.random.default_rng(1).normal(size=(17, 1 << width)).astype(np.float32)
    listed, flags = both_forms(flat, sizes, width)
    wanted = naive(codes, offsets, table)
    np.testing.assert_allclose(listed.scores(table, None), wanted, rtol=1e-5)
    assert np.array_equal(listed.scores(table, None), flags.scores(table, None))
    keep = np.random.default_rng(2).random(count) < 0.6
    for form in (listed, flags):
        some = form.scores(table, keep)
        assert np.array_equal(some[keep], form.scores(table, None)[keep]) and np.isneginf(some[~keep]).all()
        assert np.array_equal(form.lists()[0], flat) and np.array_equal(form.lists()[1], sizes)
        smaller = Sets.of(flat, sizes, width)
        assert smaller.nbytes <= form.nbytes


def both_forms(flat, sizes, width):
    """The same sets as packed lists and as bits, whichever is smaller."""
    packed = np.zeros(-(-len(flat) * width // 8) + 1, np.uint8)
    from holdall.vectors import late_kernels

    late_kernels.pack(flat, width, packed)
    bits = np.zeros((-(-len(sizes) // 64), 1 << width), np.uint64)
    for document, code in zip(np.repeat(np.arange(len(sizes)), sizes), flat, strict=True):
        bits[document // 64, code] |= np.uint64(1 << int(document % 64))
    ends = Ends.of(sizes)
    empty = np.zeros((0, 1 << width), np.uint64)
    return Sets(width, ends, packed, empty), Sets(width, Ends(len(sizes), 1, ends.ends[:0]), packed[:0], bits)


def test_what_is_not_probed_counts_as_the_last_that_is():
    codes, offsets = drawn(5, 100, 8, 40)
    flat, sizes = distinct(codes, offsets, 256)
    table = np.random.default_rng(1).normal(size=(6, 256)).astype(np.float32)
    low = np.sort(table, axis=1)[:, -9][:, None]
    wanted = naive(codes, offsets, np.maximum(table, low))
    for form in both_forms(flat, sizes, 8):
        np.testing.assert_allclose(form.scores(table, None, 9), wanted, rtol=1e-5)


def test_nine_bits_are_nine_bits():
    flat, sizes = distinct(*drawn(3, 500, 9, 30), 512)
    held = Sets.of(flat, sizes, 9)
    assert not len(held.flags) and held.codes.nbytes == -(-len(flat) * 9 // 8) + 1
    assert held.nbytes == held.codes.nbytes + 4 * 500


def test_bits_in_common_are_counted_as_they_are():
    codes, offsets = drawn(7, 90, 9, 60)
    flat, sizes = distinct(codes, offsets, 512)
    asked = np.random.default_rng(1).integers(0, 512, 11)
    wanted = [
        sum(9 - min(bin(int(a) ^ int(c)).count("1") for c in codes[x:y]) for a in asked)
        for x, y in pairwise(offsets)
    ]
    for form in both_forms(flat, sizes, 9):
        assert form.alike(asked, None).tolist() == wanted


def test_product_codes_score_as_what_they_decode_to():
    draw = np.random.default_rng(0)
    x, query = draw.normal(size=(400, 24)).astype(np.float32), draw.normal(size=(5, 24)).astype(np.float32)
    quantiser = ProductQuantiser.learn(x, 6)
    sizes = np.array([1, 3, 63, 133, 200])
    held = Fine(quantiser, Ends.of(sizes), quantiser.encode(x))
    decoded, ends = quantiser.decode(held.codes), np.concatenate([[0], np.cumsum(sizes)])
    rows = np.array([4, 0, 2])
    wanted = [(decoded[ends[r] : ends[r + 1]] @ query.T).max(0).sum() for r in rows]
    np.testing.assert_allclose(held.scores(query, rows), wanted, rtol=1e-4)


# --- the card's lines


def test_codes_find_what_all_numbers_find():
    """(1): a byte a vector and less within 5 points of MaxSim, 16 bytes within 1; a single vector far below."""
    data = corpus()
    full = float((ranks(max_sim(data.documents, data.queries)) < 10).mean())
    mean = [
        Documents.of([part.mean(0, keepdims=True) for part in listed(d)])
        for d in (data.documents, data.queries)
    ]
    single = float((ranks(max_sim(*mean)) < 10).mean())
    assert full >= 0.95 and single < full - 0.05
    assert found(data.documents, data.queries, subspaces=16) >= full - 0.01
    with HPCColPali(centroids=256).build(data.documents) as index:
        assert recall(usual(), data.queries) >= recall(index, data.queries) >= full - 0.05
        assert 512 * index.sets.nbytes <= data.documents.nbytes  # before the centroids
        held = sum(np.asarray(a).nbytes for a in index.folder.arrays.values())
        assert index.nbytes == held == index.sets.nbytes + 256 * 129 * 4


def listed(documents):
    x = documents.ready("cosine")
    return np.split(x, documents.offsets[1:-1])


def test_centroids_of_other_texts_do():
    """Learned on a third of the texts, which are then taken out: no document had a say."""
    data, third = corpus(), 72
    with HPCColPali().build(data.documents.cut(0, third), ids=np.arange(third)) as index:
        index.add(data.documents.cut(third, 216), ids=np.arange(third, 216))
        index.remove(np.arange(third))
        hits = index.search(data.queries.cut(third, 216), 10)
    assert (hits.ids == np.arange(third, 216)[:, None]).any(1).mean() > 0.9


def test_pruning_both_sides_by_rare_centroids_beats_lots():
    """(2): 3 points at 60 %; what attention does on this encoder is in docs/vectors-colpali.md."""
    data = corpus()
    draw = np.random.default_rng(0)

    def by_lot(d):
        return Documents(d.rows, d.offsets, draw.random(d.rows.count).astype(np.float32))

    lots = found(
        by_lot(data.documents), by_lot(data.queries), keep_docs=0.4, keep_query=0.4, salience="given"
    )
    rare = found(data.documents, data.queries, keep_docs=0.4, keep_query=0.4, salience="idf")
    assert rare >= lots + 0.03, (rare, lots)


def test_bits_of_plain_numbers_say_nothing_and_bits_of_a_tree_do():
    """(3): how many of the ten nearest digits are among the first tenth by bits, of 1,600 in 256 cells."""
    x, queries = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in real())
    true = np.argsort(-(queries @ x.T), axis=1)[:, :10]

    def share(**knobs):
        with HPCColPali(scoring="hamming", centroids=256, **knobs).build(x) as index:
            ids = index.search(queries, 160).ids
        return np.mean([np.isin(t, i).mean() for t, i in zip(true, ids, strict=True)])

    centroids = kmeans(x, 256, spherical=True)
    lot = np.random.default_rng(0).permutation(256)
    bits = np.bitwise_count(lot[assigned(queries, centroids)][:, None] ^ lot[assigned(x, centroids)])
    nearest = np.argsort(bits, axis=1, kind="stable")[:, :160]
    random = np.mean([np.isin(t, i).mean() for t, i in zip(true, nearest, strict=True)])
    raw = share(labels="raw")
    assert abs(raw - random) < 0.05
    assert share(labels="tree") >= raw + 0.2 and share(labels="swapped") >= raw + 0.2


# --- labels


def test_exchanging_numbers_lowers_the_cost_and_loses_none():
    draw = np.random.default_rng(0)
    centroids = draw.normal(size=(64, 12)).astype(np.float32)
    counts = draw.integers(1, 50, 64)
    tree = hamming.tree_labels(centroids)
    better = hamming.swapped(tree, centroids, counts)
    assert sorted(tree) == sorted(better) == list(range(64))
    costs = [hamming.cost(labels, centroids, counts) for labels in (np.arange(64), tree, better)]
    assert costs[0] > costs[1] > costs[2], costs


def test_a_square_gets_its_own_bits():
    corners = np.array([[x, y] for x in (-3, 3) for y in (-1, 1)], np.float32)
    labels = hamming.tree_labels(corners[[2, 0, 3, 1]])
    bits = np.bitwise_count(labels[:, None] ^ labels)
    wanted = (corners[[2, 0, 3, 1]][:, None] != corners[[2, 0, 3, 1]]).sum(2)
    assert np.array_equal(bits, wanted)


# --- salience


def test_the_most_salient_stay_in_their_order():
    inf = np.inf
    told = np.array([0.1, 0.9, 0.5, 0.9, -inf, -inf, -inf, 3.0, -inf, 2.0, 1.0], np.float32)
    offsets = np.array([0, 4, 6, 11])
    assert kept(told, offsets, 0.5).nonzero()[0].tolist() == [
        1,
        3,
        4,
        7,
        9,
    ]  # ceil(2 of 4), padding alone, ceil(1.5)
    assert kept(told, offsets, 1.0).nonzero()[0].tolist() == [0, 1, 2, 3, 4, 7, 9, 10]
    assert kept(told, offsets, 0.01).sum() == 3


def test_padding_and_sinks_are_never_found():
    """The first vector is everywhere the same and has all the attention; behind each document lie zeros."""
    draw = np.random.default_rng(0)
    sink, parts, told = draw.normal(size=(1, 16)), [], []
    for _ in range(40):
        parts.append(np.concatenate([sink, draw.normal(size=(20, 16)), np.zeros((9, 16))]))
        told.append(np.concatenate([[9], draw.random(20), np.full(9, 5)]))
    pages = Documents.of(np.array(parts, np.float32), told)
    with HPCColPali(sinks=1, keep_docs=0.5).build(pages) as index:
        assert index.sets.lists()[1].max() <= 10
        lone = index.search(np.concatenate([sink, sink]).astype(np.float32)[None], 40)
    with HPCColPali(keep_docs=0.5).build(pages) as index:
        both = index.search(np.concatenate([sink, sink]).astype(np.float32)[None], 40)
    assert both.distances.max() < 0.05 and np.median(lone.distances) > 0.3


# --- budgets


def test_more_bytes_find_more():
    data, last = corpus(), 0.0
    for share in ("0.6%", "2%", "12%"):
        try:
            index = HPCColPali().build(data.documents, share)
        except BudgetError as fault:
            with HPCColPali().build(data.documents, int(fault.least)) as least:
                assert least.nbytes <= fault.least
            continue
        with index:
            assert index.nbytes <= float(share[:-1]) / 100 * data.documents.nbytes
            now = recall(index, data.queries, 1)
        assert now >= last - 0.01, (share, now, last)
        last = now
    assert last >= 0.95


# --- documents


def test_forms_of_queries_are_one():
    data = corpus()
    index = usual()
    asked = listed(data.queries.cut(0, 5))
    a, b = index.search(data.queries.cut(0, 5), 7), index.search(asked, 7)
    assert np.array_equal(a.ids, b.ids) and np.allclose(a.distances, b.distances, atol=1e-5)
    block = np.stack([q[:4] for q in asked])
    assert np.array_equal(index.search(block, 7).ids, index.search([q[:4] for q in asked], 7).ids)
    single = np.stack([q[0] for q in asked])
    assert np.array_equal(index.search(single, 7).ids, index.search(single[:, None], 7).ids)
    for wrong in (
        block[..., :9],
        [block[0], block[0][:, :5]],
        single[:, :9],
        np.full((1, 2, 128), np.nan),
    ):
        with pytest.raises(BadInput):
            index.search(wrong, 1)


def test_distances_are_what_is_left_of_a_whole_match():
    draw = np.random.default_rng(0)
    pages = [draw.normal(size=(n, 8)).astype(np.float32) for n in (3, 1, 5)]
    with (
        HPCColPali(subspaces=8).build(pages) as cosine,
        HPCColPali(metric="ip", subspaces=8).build(pages) as ip,
    ):
        unit = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in pages]
        query = pages[2][:2] + 0.1
        asked = query / np.linalg.norm(query, axis=1, keepdims=True)
        near, far = cosine.search([query], 3), ip.search([query], 3)
        wanted = {i: 1 - np.mean((asked @ p.T).max(1)) for i, p in enumerate(unit)}
        assert np.allclose(near.distances[0], [wanted[i] for i in near.ids[0]], atol=1e-4)
        sums = {i: -np.sum((query @ p.T).max(1)) for i, p in enumerate(pages)}
        assert np.allclose(far.distances[0], [sums[i] for i in far.ids[0]], atol=1e-3)


def test_what_comes_and_goes_leaves_the_others_as_they_were():
    data = corpus()
    for knobs in ({}, {"centroids": 128}, {"subspaces": 8}):
        with HPCColPali(**knobs).build(data.documents.cut(0, 100)) as index:
            before = index.search(data.queries, 20)
            index.add(data.documents.cut(100, 216))
            assert recall(index, data.queries) > 0.9
            assert index.remove(np.arange(100, 216)) == 116 and index.count == 100
            after = index.search(data.queries, 20)
            assert np.array_equal(before.ids, after.ids) and np.array_equal(before.distances, after.distances)
            index.folder.check()


@pytest.mark.parametrize("kind", ["npz", "safetensors", "parquet", "arrow"])
def test_documents_come_from_files(kind, tmp_path):
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    parts = [draw.normal(size=(n, 6)).astype(np.float32) for n in (4, 1, 7, 2)]
    offsets, path = np.cumsum([0, 4, 1, 7, 2]), str(tmp_path / f"pages.{kind}")
    ids = np.array([5, 9, 2, 40])
    if kind == "npz":
        np.savez_compressed(
            path, vectors=np.concatenate(parts), offsets=offsets, ids=ids, salience=np.arange(14.0)
        )
    elif kind == "safetensors":
        save_file({"vectors": np.concatenate(parts), "offsets": offsets, "ids": ids}, path)
    else:
        lists = pa.array([p.tolist() for p in parts], pa.list_(pa.list_(pa.float32())))
        table = pa.table({"id": ids, "lang": ["en", "fr", "en", "de"], "patches": lists})
        (pa.parquet.write_table if kind == "parquet" else pa.feather.write_feather)(table, path)
    with Documents.open(path) as pages:
        assert pages.count == 4 and pages.rows.count == 14 and pages.ids.tolist() == ids.tolist()
        assert (pages.salience is not None) == (kind == "npz")
    with HPCColPali().build(path) as index:
        assert index.search([parts[2]], 1).ids.tolist() == [[2]]
        if kind in ("parquet", "arrow"):
            assert index.search([parts[2]], 1, "lang = 'fr'").ids.tolist() == [[9]]
    with pytest.raises(BadInput, match="single vectors"):
        from holdall.vectors import Nothing

        Nothing().build(Documents.open(path))


def test_faults_are_named():
    rows = Vectors.of(np.ones((6, 4), np.float32))
    for offsets in ([0, 3], [1, 6], [0, 4, 4, 6], [0, 7, 6], [[0, 6]], [0.0, 6.0], [0]):
        with pytest.raises(BadInput):
            Documents(rows, np.array(offsets))
    for salience in ([1.0] * 5, [np.nan] * 6, [np.inf] * 6):
        with pytest.raises(BadInput):
            Documents(rows, [0, 6], salience)
    for wrong in ([np.ones((2, 3)), np.ones((2, 4))], [np.ones((2, 3)), np.ones(3)], []):
        with pytest.raises(BadInput):
            Documents.of(wrong)
    for knobs in (
        {"centroids": 300}, {"centroids": 1024}, {"keep_docs": 0.0}, {"keep_query": 1.5}, {"scoring": "x"},
        {"scoring": "hamming", "subspaces": 8}, {"probes": 0}, {"salience": "x"}, {"labels": "x"}, {"metric": "l2"},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            HPCColPali(**knobs)
    pages = Documents(rows, [0, 2, 6])
    with pytest.raises(BadInput, match="patches"):
        HPCColPali(patches=2).build(pages)
    with pytest.raises(BadInput, match="divisor"):
        HPCColPali(subspaces=3).build(pages)
    with pytest.raises(BadInput, match="salience"):
        HPCColPali(salience="given").build(pages)


def test_from_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from holdall.cli import app

    data, run = corpus(), CliRunner()
    for name, d in (("docs", data.documents), ("queries", data.queries)):
        np.savez(tmp_path / f"{name}.npz", vectors=d.ready("ip"), offsets=d.offsets)
    where = [str(tmp_path / n) for n in ("docs.npz", "queries.npz", "d.index", "hits.npz")]
    made = run.invoke(
        app, ["index", where[0], "--with", "vectors.hpc_colpali", "--centroids", "256", "-o", where[2]]
    )
    assert made.exit_code == 0, made.output
    asked = run.invoke(app, ["search", where[2], where[1], "-k", "10", "-o", where[3]])
    assert asked.exit_code == 0, asked.output
    with np.load(where[3]) as hits, HPCColPali(centroids=256).build(data.documents) as index:
        assert np.array_equal(hits["ids"], index.search(data.queries, 10).ids)
    told = run.invoke(
        app, ["measure", "vectors.hpc_colpali", "--on", where[0], "--queries", where[1], "--quick", "--json"]
    )
    assert told.exit_code == 0, told.output
    rows = json.loads(told.output)["report"]["rows"]
    ours, every = rows["vectors.hpc_colpali"], rows["every vector, float32"]
    assert 0.5 < ours["recall"] < 1 and ours["memory_bytes"] < every["memory_bytes"] / 10
    plain = run.invoke(app, ["measure", "vectors.spann", "--on", where[0], "--queries", where[1]])
    assert isinstance(plain.exception, BadInput) and "single vectors" in str(plain.exception)
