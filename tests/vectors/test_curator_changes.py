"""Curator's changes: lists pushed down and merged up, twenty thousand random ones, and against a dictionary."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from vectors.tenanted import best_of, made, tenanted

from holdall.errors import BadInput
from holdall.vectors import Curator
from holdall.vectors.quality import naive_search, real, recall


def test_lists_are_pushed_down_and_merged_up_at_the_limit():
    vectors, _, _ = tenanted(3000, 1)
    held = made(vectors, {"a": np.arange(128)})
    assert held.own(1).nodes.tolist() == [0]
    more = held.granted({"a": np.array([128])})
    below = more.own(1).nodes
    assert (more.tree.parents[below] == 0).all() and len(below) > 1  # one level, as its children have few
    assert more.revoked({1: np.array([5])}).own(1).nodes.tolist() == [0]
    gone = more.revoked({1: np.arange(129)})
    assert gone.lists.count == 1 and len(gone.names) == 0
    deep = held.granted({"a": np.arange(3000)})
    assert np.array_equal(deep.own(1).nodes, deep.own(0).nodes)  # it has what everyone has
    for least in (2000, 300, 129, 128, 1):
        deep = deep.revoked({1: np.arange(least, 3000)})
        assert deep.fault() == "" and len(deep.own(1).ids) == least
    assert deep.own(1).nodes.tolist() == [0]


def test_after_twenty_thousand_changes_all_invariants_hold_and_recall_is_that_of_a_new_index():
    vectors, queries, who = tenanted(3000, 20, 600)
    recipe = Curator(leaf=30, shortlist=30, probes=6)
    held, mine = made(vectors[:1500], {}, recipe), {n: set() for n in who}
    there, draw = vectors[:1500].copy(), np.random.default_rng(0)
    spare, names = 1500, list(who)
    for step in range(20_000):
        what, name = draw.random(), names[int(draw.integers(len(names)))]
        if what < 0.55:
            row = int(draw.integers(len(there)))
            held = held.granted({name: np.array([row])})
            mine[name].add(row)
        elif what < 0.85 and mine[name]:
            row = sorted(mine[name])[int(draw.integers(len(mine[name])))]
            held = held.revoked({held.names.number(name): np.array([row])})
            mine[name].remove(row)
        elif what < 0.93:
            new = vectors[spare % 3000][None] + np.float32(spare // 3000) * 0.01
            held, there, spare = held.entered([new]), np.concatenate([there, new]), spare + 1
        elif len(there) > 1000:
            keep = np.ones(len(there), bool)
            keep[int(draw.integers(len(there)))] = False
            held, number = held.left(keep, there), np.cumsum(keep) - 1
            there = there[keep]
            mine = {n: {int(number[r]) for r in rows if keep[r]} for n, rows in mine.items()}
        if step % 4000 == 0:
            assert held.fault() == "", step
    assert held.fault() == ""
    for name, rows in mine.items():
        if rows:
            assert sorted(held.own(held.names.number(name)).ids.tolist()) == sorted(rows)
    exact = np.zeros(len(held.tree.ends))
    for node in range(len(exact)):
        under = (held.leaves >= node) & (held.leaves < held.tree.ends[node])
        exact[node] = (
            np.linalg.norm(there[under] - held.tree.centroids[node], axis=1).mean() if under.any() else 0
        )
    assert np.allclose(held.tree.spread, exact, rtol=1e-4, atol=1e-4)
    fresh = made(there, {n: np.array(sorted(r)) for n, r in mine.items()}, recipe)
    ours, new = (searched(h, there, queries, mine) for h in (held, fresh))
    assert new > 0.8 and ours >= new - 0.02


def searched(held, vectors, queries, mine):
    """Recall over all tenants."""
    from holdall.vectors.curator_search import search

    known = (held.filters.words, held.filters.offsets, held.filters.hashes, True)
    tree = (held.tree.centroids, held.tree.spread, held.tree.ends)
    told = []
    for name, rows in mine.items():
        if len(rows) > 10:
            which = held.names.number(name)
            how = (max(30, int(6 * np.sqrt(len(rows)))), np.float32(0), np.float32(2), 0)
            rest = (which, held.names.tokens[which], known, how, 10, np.zeros(4))
            found = search(queries, vectors, tree, held.lists.arrays, *rest)
            told.append(recall(found[1], best_of(vectors, np.array(sorted(rows)), queries, 10)))
    return float(np.mean(told))


def test_the_tree_is_made_again_when_a_leaf_has_grown_eightfold():
    vectors, _, who = tenanted(3000, 4, 900)
    crowd = vectors[5] + np.random.default_rng(0).normal(size=(400, 96)).astype("f4") * 0.05
    with Curator(leaf=20, shortlist=20).build(vectors, tenants=who) as index:
        nodes = len(index._held().tree.ends)
        index.add(crowd[:100], tenants="tenant 3")
        assert len(index._held().tree.ends) == nodes
        index.add(crowd[100:], tenants="tenant 3")
        held = index._held()
        leaves = held.tree.ends == np.arange(1, len(held.tree.ends) + 1)
        assert len(held.tree.ends) > nodes and held.tree.counts[leaves].max() <= 60 and held.fault() == ""
        found = index.search(crowd[:50], 1, tenant="tenant 3").ids[:, 0]
        assert (found == 3000 + np.arange(50)).mean() > 0.9
        assert index.tenants["tenant 3"] == len(who["tenant 3"]) + 400
    with Curator().build(np.zeros((3000, 4), "f4")) as index:  # which no tree can part
        for at in range(3):
            index.add(np.zeros((9, 4), "f4"), 3000 + 9 * at + np.arange(9))
        assert len(index._held().tree.ends) == 1


STEPS = some.lists(
    some.tuples(
        some.sampled_from(["grant", "revoke", "add", "remove", "open"]),
        some.sampled_from(["a", "b", "c"]),
        some.lists(some.integers(0, 69), min_size=1, max_size=30),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, metric=some.sampled_from(["l2", "cosine", "ip"]))
def test_it_finds_what_a_dictionary_and_exact_search_find(tmp_path_factory, steps, metric):
    vectors, queries = real()
    url = str(tmp_path_factory.mktemp("curator") / "v.index")
    recipe = Curator(metric=metric, leaf=6, shortlist=4, branches=3, probes=1e6)
    ids, mine = list(range(100, 150)), {n: set() for n in "abc"}
    index = recipe.build(vectors[:50], ids=np.array(ids), to=url)
    try:
        for what, name, rows in steps:
            known = sorted({100 + r for r in rows} & set(ids))
            if what == "grant":
                assert index.grant(known, name) == len(set(known) - mine[name])
                mine[name] |= set(known)
            elif what == "revoke" and mine[name]:
                assert index.revoke([100 + r for r in rows], name) == len(
                    {100 + r for r in rows} & mine[name]
                )
                mine[name] -= {100 + r for r in rows}
            elif what == "add" and (new := sorted({100 + r for r in rows} - set(ids))):
                index.add(vectors[np.array(new) - 100], np.array(new), tenants=[[name, "c"]] * len(new))
                ids += new
                mine[name] |= set(new)
                mine["c"] |= set(new)
            elif what == "remove" and len(known) < len(ids):
                assert index.remove(known) == len(known)
                ids = [i for i in ids if i not in known]
                mine = {n: have - set(known) for n, have in mine.items()}
            elif what == "open":
                index.close()
                index = Curator().open(url)
        assert index.tenants == {n: len(have) for n, have in mine.items() if have}
        assert index._held().fault() == ""
        for name, have in [*mine.items(), (None, set(ids))]:
            exact(index, vectors, queries[:3], metric, name, sorted(have))
    finally:
        index.close()


def exact(index, vectors, queries, metric, name, have):
    k = min(5, index.count)
    if not have:
        with pytest.raises(BadInput, match="has vectors"):
            index.search(queries, k, tenant=name)
        return
    hits = index.search(queries, k, tenant=name)
    told, _ = naive_search(vectors[np.array(have) - 100], queries, k, metric)
    real = np.isfinite(hits.distances)
    assert (real.sum(1) == min(k, len(have))).all() and set(hits.ids[real].tolist()) <= set(have)
    assert (hits.ids[~real] == -1).all()
    np.testing.assert_allclose(hits.distances[real].reshape(len(queries), -1), told, rtol=1e-4, atol=1e-4)
