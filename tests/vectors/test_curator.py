"""Curator: the card's lines, memory, and what filters and lists do."""

import faiss
import numpy as np
import pytest
from vectors.tenanted import arrays_of, best_of, depths, made, tenanted

from holdall.vectors import Curator
from holdall.vectors.curator_filters import Filters
from holdall.vectors.curator_kernels import has
from holdall.vectors.quality import naive_search, recall


@pytest.fixture(scope="module")
def many():
    vectors, queries, who = tenanted(12_000, 60, 4000)
    with Curator().build(vectors, tenants=who) as index:
        yield vectors, queries, who, index


def fewest(steps, found, wanted):
    """(what was touched, recall) at the first step that finds nine tenths."""
    for step in steps:
        ids, touched = found(step)
        if (told := recall(ids, wanted)) >= 0.9:
            return touched, told
    raise AssertionError("none of the steps finds nine tenths")


def test_small_tenants_touch_a_fifth_of_what_a_filter_behind_a_shared_index_does(many):
    vectors, queries, who, index = many
    inverted = faiss.index_factory(96, "IVF120,Flat")
    inverted.train(vectors)
    inverted.add(vectors)
    graph = faiss.IndexHNSWFlat(96, 16)
    graph.add(vectors)
    ours, lists, nodes = [], [], []
    for name in [n for n, rows in who.items() if len(rows) <= len(vectors) // 100][:12]:
        wanted = best_of(vectors, who[name], queries[:40], 10)
        before = index.traffic()["distances"]
        assert recall(index.search(queries[:40], 10, tenant=name).ids, wanted) >= 0.9
        ours.append((index.traffic()["distances"] - before) / 40)
        chosen = faiss.IDSelectorBatch(who[name])

        def by_lists(probes, chosen=chosen):
            faiss.cvar.indexIVF_stats.reset()
            how = faiss.SearchParametersIVF(sel=chosen, nprobe=probes)
            _, near = inverted.quantizer.search(queries[:40], probes)
            sizes = np.array([inverted.invlists.list_size(i) for i in range(120)])
            return inverted.search(queries[:40], 10, params=how)[1], sizes[near].sum() / 40 + 120

        def by_graph(width, chosen=chosen):
            faiss.cvar.hnsw_stats.reset()
            how = faiss.SearchParametersHNSW(sel=chosen, efSearch=width)
            return graph.search(queries[:40], 10, params=how)[1], faiss.cvar.hnsw_stats.ndis / 40

        lists.append(fewest((1, 2, 4, 8, 16, 32, 64, 120), by_lists, wanted)[0])
        nodes.append(fewest((50, 200, 800, 3200, 12_000), by_graph, wanted)[0])
    assert np.mean(ours) <= np.mean(lists) / 5 and np.mean(ours) <= np.mean(nodes) / 5, (ours, lists, nodes)


def test_all_tenants_together_take_little_more_than_one_shared_index():
    vectors, _, _ = tenanted(6000, 1)
    draw = np.random.default_rng(0)
    who = {t: draw.choice(6000, 300, replace=False) for t in range(100)}  # five for each vector
    with Curator().build(vectors, tenants=who) as index:
        shared = vectors.nbytes + 8 * len(vectors) + 77 * 4 * 96  # an IVF's vectors, ids and centroids
        copies = sum(len(r) for r in who.values()) * vectors[0].nbytes
        assert index.nbytes <= 1.3 * shared and copies >= 2.5 * shared


def test_what_is_told_of_memory_is_what_is_held(many):
    index = many[3]
    seen: set[int] = {id(index.folder), id(index.recipe)}
    inside = arrays_of(index, seen)
    beside = index.names.nbytes - index.names.tokens.nbytes
    assert abs(index.nbytes - beside - inside) <= 5000


def test_recall_is_kept_in_every_band_of_sizes(many):
    vectors, queries, who, index = many
    bands = {150: [], 700: [], 5000: []}
    for name, rows in who.items():
        found = index.search(queries, 10, tenant=name).ids
        bands[next(b for b in bands if len(rows) <= b)].append(
            recall(found, best_of(vectors, rows, queries, 10))
        )
    assert all(len(told) >= 2 and np.mean(told) >= 0.95 for told in bands.values()), bands
    everyone = naive_search(vectors, queries, 10, "l2")[1]
    assert recall(index.search(queries, 10).ids, everyone) >= 0.95


def test_a_large_tenant_reads_a_part_of_what_it_has(many):
    _, queries, who, index = many
    before = index.traffic()["touched"]
    index.search(queries, 10, tenant="tenant 1")
    assert (index.traffic()["touched"] - before) / len(queries) <= 0.6 * len(who["tenant 1"])


@pytest.mark.parametrize("bits", [0.02, 10.0])
def test_nothing_foreign_is_found_even_where_filters_know_nothing(bits):
    vectors, queries, who = tenanted(4000, 50, 2000)
    found, looked = [], []
    with Curator(bits=bits, leaf=20, shortlist=20, probes=3).build(vectors, tenants=who) as index:
        for blind in (False, True):
            if blind:  # filters that say yes to everyone, everywhere
                words, *rest = index._filters
                index._filters = (np.full_like(words, 2**64 - 1), *rest)
            before = index.traffic()["distances"]
            hits = {name: index.search(queries, 10, tenant=name) for name in who}
            looked.append(index.traffic()["distances"] - before)
            assert all(np.isin(h.ids, who[name]).all() for name, h in hits.items())
            assert sum(np.isfinite(h.distances).sum() for h in hits.values()) == 100_000
            found.append([h.ids for h in hits.values()])
    assert np.array_equal(found[0], found[1]) and looked[0] < looked[1]  # all that they do is to save work


def test_filters_miss_nobody_err_rarely_and_forget_by_being_made_again():
    vectors, _, who = tenanted(3000, 60, 800)
    held = made(vectors, who, Curator(leaf=30, shortlist=30))
    there = np.zeros((61, len(held.tree.ends)), bool)
    for which in range(61):
        for node in held.own(which).nodes:
            while node >= 0:
                there[which, node] = True
                node = held.tree.parents[node]

    def told(f: Filters, tokens):
        nodes = range(len(held.tree.ends))
        return np.array([[has(f.words, f.offsets, f.hashes, n, t) for n in nodes] for t in tokens])

    before = told(held.filters, held.names.tokens)
    assert before[there].all() and before[~there].mean() < 0.02
    gone = held.names.number("tenant 1")
    less = held.revoked({gone: who["tenant 1"]})
    after = told(less.filters, held.names.tokens)
    assert "tenant 1" not in less.names.numbers and after[gone].mean() < 0.03
    others = np.arange(61) != gone
    assert after[others][there[others]].all() and less.fault() == ""


def test_lists_of_a_clustered_tenant_are_deep_where_it_is(many):
    index = many[3]
    held = index._held()
    deep = depths(held.tree.ends, held.tree.parents)
    own = {n: held.own(held.names.number(n)) for n in ("tenant 2", "tenant 3")}
    mean = {n: deep[o.nodes].mean() for n, o in own.items()}
    assert mean["tenant 2"] > mean["tenant 3"]  # clustered, beside one of its size drawn by lot
    sizes = np.diff(np.append(own["tenant 2"].firsts, len(own["tenant 2"].ids)))
    inside = deep[own["tenant 2"].nodes][sizes >= np.median(sizes)].mean()
    outside = deep[own["tenant 2"].nodes][sizes < np.median(sizes)].mean()
    assert inside > outside
