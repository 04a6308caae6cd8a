"""Tenants: how they are named, conditions on them, mistakes, and a process that is killed while rights change."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from deadly import DEADLY
from vectors.tenanted import best_of, tenanted

from holdall.errors import BadInput, BudgetError
from holdall.vectors import Curator
from holdall.vectors.quality import real, recall


@pytest.fixture(scope="module")
def many():
    return tenanted(12_000, 60, 4000)


def test_conditions_on_tenants_and_attributes_find_what_sets_say(many):
    vectors, queries, who = many
    odd = np.arange(len(vectors)) % 2 == 1
    a, b, c = (np.isin(np.arange(len(vectors)), who[f"tenant {t}"]) for t in (0, 1, 3))
    with Curator(probes=1e6).build(vectors, tenants=who, attributes={"odd": odd}) as index:
        for condition, mask in {
            "'tenant 0' AND 'tenant 1'": a & b,
            "'tenant 0' and not 'tenant 1'": a & ~b,
            '("tenant 0" OR "tenant 3") AND NOT \'tenant 1\'': (a | c) & ~b,
            "NOT ('tenant 0' OR 'tenant 1' OR 'tenant 3')": ~(a | b | c),
        }.items():
            rows = np.flatnonzero(mask)
            for where, some_rows in ((None, rows), ("odd", rows[odd[rows]])):
                hits = index.search(queries[:20], 10, where, tenants=condition)
                assert recall(hits.ids, best_of(vectors, some_rows, queries[:20], 10)) == 1
        hits = index.search(queries[:20], 10, "odd", tenant="tenant 3")
        rows = who["tenant 3"]
        assert recall(hits.ids, best_of(vectors, rows[odd[rows]], queries[:20], 10)) == 1
        none = index.search(queries[:2], 3, tenants="'tenant 0' AND NOT 'tenant 0'")
        assert np.isinf(none.distances).all() and (none.ids == -1).all()
    touched = []
    with Curator().build(vectors, tenants=who) as index:
        for condition in ("'tenant 0' OR 'tenant 1'", "'tenant 0' AND 'tenant 1'"):
            before = index.traffic()["touched"]
            hits = index.search(queries, 10, tenants=condition)
            mask = a | b if "OR" in condition else a & b
            assert recall(hits.ids, best_of(vectors, np.flatnonzero(mask), queries, 10)) >= 0.95
            touched.append((index.traffic()["touched"] - before) / len(queries) / mask.sum())
    assert touched[0] < 0.6  # searched as a tree, not row by row


def test_mistakes_are_one_line_and_change_nothing():
    vectors, _ = real()
    with Curator().build(vectors, ids=np.arange(1600) + 10, tenants={"a": [10, 11]}) as index:
        for said, act in {
            "one that has vectors": lambda: index.search(vectors[0], 1, tenant="b"),
            "got True": lambda: index.search(vectors[0], 1, tenant=True),
            "id: got 3": lambda: index.grant([10, 3], "a"),
            "strings, as the others are": lambda: index.grant([10], 7),
            "not empty": lambda: index.grant([10], ""),
            "has vectors in this index": lambda: index.revoke([10], "b"),
            "one, a list, or None": lambda: index.add(vectors[:2], [1, 2], tenants=["a", "b", "c"]),
            "then grant": lambda: index.add(vectors[:2], [1, 2], tenants={"a": [1]}),
            "an end where": lambda: index.search(vectors[0], 1, tenants="a AND"),
            "should not be": lambda: index.search(vectors[0], 1, tenants="a a"),
            "quote is not closed": lambda: index.search(vectors[0], 1, tenants="a AND 'a"),
            "at most 300": lambda: index.search(vectors[0], 1, tenants="(" * 400 + "a"),
            "got c": lambda: index.search(vectors[0], 1, tenants="a OR c"),
        }.items():
            with pytest.raises(BadInput) as caught:
                act()
            assert said in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
        assert index.tenants == {"a": 2} and index.count == 1600
        hits = index.search(vectors[0], 5, tenant="a")
        assert hits.ids[0, 2:].tolist() == [-1] * 3 and np.isinf(hits.distances[0, 2:]).all()
        assert index.revoke([10, 11, 99], "a") == 2 and index.tenants == {}
        index.add(vectors[:1], [5])
        assert index.grant([], "a") == 0 and index.tenants == {}
        assert index.grant([5], 3) == 1  # nobody is left whose kind it would have to be
    with pytest.raises(BudgetError) as refused:
        Curator().build(vectors, "50%", tenants={"a": range(1600)})
    with Curator().build(vectors, int(refused.value.least), tenants={"a": range(1600)}) as index:
        assert index.nbytes == refused.value.least
        with pytest.raises(BudgetError):
            index.grant(range(1600), "b")
        assert index.tenants == {"a": 1600}


def test_whole_numbers_strings_and_lists_name_tenants():
    vectors, _ = real()
    who = [None if i % 3 == 0 else (7 if i % 3 == 1 else [7, 8]) for i in range(1600)]
    with Curator().build(vectors, tenants=who) as index:
        assert index.tenants == {7: 1066, 8: 533} or index.tenants == {7: 1067, 8: 533}
        for tenant, rest in ((8, {2}), (np.int64(7), {1, 2})):
            found = index.search(vectors[:50], 3, tenant=tenant).ids
            assert set((found % 3).ravel().tolist()) == rest
        assert set((index.search(vectors[:50], 3, tenants="7 AND NOT 8").ids % 3).ravel().tolist()) == {1}
    names = np.array([f"é{i}" for i in range(1600)])
    with Curator().build(vectors, ids=names, tenants=np.array(["x", "y"])[np.arange(1600) % 2]) as index:
        assert index.search(vectors[4], 1, tenant="x").ids.tolist() == [["é4"]]
        assert index.search(vectors[4], 1, tenant="y").ids[0, 0] != "é4"


KILLED = (
    DEADLY
    + """
import sys
from holdall.vectors import Curator
from holdall.vectors.folder import Change
what, n, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with Curator().open(url) as index:
    os.fsync, os.replace, Change.commit = deadly(os.fsync), deadly(os.replace), deadly(Change.commit)
    getattr(index, what)(range(0, 900), "a")
"""
)


@pytest.mark.parametrize("what", ["grant", "revoke"])
def test_killed_while_rights_change_they_are_the_old_or_the_new_ones(tmp_path, what):
    vectors, _ = real()
    url = str(tmp_path / "v.index")
    Curator().build(vectors, tenants={"a": range(400, 1000)}, to=url).close()
    became = 1000 if what == "grant" else 100
    for n in range(1, 9):
        done = subprocess.run([sys.executable, "-c", KILLED, what, str(n), url], check=False)
        with Curator().open(url) as index:
            index.folder.check()
            if done.returncode == -signal.SIGKILL:
                assert index.tenants["a"] in (600, became)
            else:
                assert index.tenants["a"] == became
                break
            if index.tenants["a"] == became:
                index.revoke(range(400), "a") if what == "grant" else index.grant(range(400, 900), "a")
    assert n > 2 and os.listdir(tmp_path) == ["v.index"]
