"""The lines of Curator's card, on SmolLM2's token embeddings in 96 dimensions: what it promises, measured."""

from __future__ import annotations

import argparse
import time
from typing import Any

import faiss
import numpy as np
import vectors_tenants_ways as ways
from vectors_tenants_data import asks, keep, load, tenants_of, truth

from holdall.vectors import Curator
from holdall.vectors.curator_state import Held
from holdall.vectors.quality import recall


def card(args: argparse.Namespace) -> None:
    base, queries = load("tokens")
    who = tenants_of(base, 200, 20_000, 50, 2.2)
    ours, ivf, hnsw = ways.Ours(base, who), ways.inverted(base, 300), ways.graph(base)
    for low, high in ((40, 150), (150, 491), (491, 1500), (1500, 5000), (5000, 20_000)):
        pairs = asks(who, queries, (low, high), args.queries)
        wanted, row = truth(base, who, pairs), {}
        before = ours.touched
        row["curator_recall"] = recall([ours.find(t, q) for t, q in pairs], wanted)
        row["curator"] = (ours.touched - before) / len(pairs)
        for label, index, how, steps in (
            ("ivf", ivf, "nprobe", (1, 2, 4, 8, 16, 32, 64, 128, 300)),
            ("hnsw", hnsw, "efSearch", (16, 40, 100, 250, 640, 1600, 4000, 10_000, 25_000)),
        ):
            for step in steps:
                way = ways.Shared(index, who, len(base), **{how: step})
                if recall([way.find(t, q) for t, q in pairs], wanted) >= 0.9:
                    row[label] = float(np.mean([way.looked_at(t, q) for t, q in pairs]))
                    break
        keep("card", f"1: touched at recall .9, tenants of {low} to {high}", row)
        if high <= len(base) // 100 + 10:
            fine = row["curator"] <= min(row["ivf"], row["hnsw"]) / 5
            print(f"card: line 1, at most 1 % of the vectors: a fifth of the others' touches: {fine}")
    sizes(base, ivf)
    isolation(base, queries, who)
    random_changes(base, queries)
    depth(ours, who)


def sizes(base: np.ndarray, ivf: Any) -> None:
    """With five tenants a vector, each of a hundred with as many."""
    draw = np.random.default_rng(1)
    who = [draw.choice(len(base), len(base) // 20, replace=False) for _ in range(100)]
    ours = ways.Ours(base, who).nbytes
    bare = len(faiss.serialize_index(ivf))  # with no filter at all, and with one bitmap for each tenant
    shared, copies = bare + 100 * len(base) / 8, sum(w.size for w in who) * (base[0].nbytes + 8)
    row = {"of_ivf": ours / bare, "of_ivf_with_bitmaps": ours / shared, "of_raw": ours / base.nbytes}
    row |= {"copies_of_ivf": copies / bare}
    keep("card", "2: bytes", row | {"holds": ours <= 1.3 * bare and copies >= 2.5 * bare})


def isolation(base: np.ndarray, queries: np.ndarray, who: list[np.ndarray]) -> None:
    row = {}
    for label, bits in (("usual", 10.0), ("tiny", 0.02), ("blind", 10.0)):
        way, foreign, seen = ways.Ours(base, who, bits=bits), 0, 0
        if label == "blind":  # all bits set
            words, *rest = way.index._filters
            way.index._filters = (np.full_like(words, 2**64 - 1), *rest)
        for t, rows in enumerate(who):
            hits = way.index.search(queries[(50 * t) % 1000 :][:50], 10, tenant=t)
            foreign += int((~np.isin(hits.ids[np.isfinite(hits.distances)], rows)).sum())
            seen += int(np.isfinite(hits.distances).sum())
        row |= {
            f"{label}_foreign": foreign,
            f"{label}_results": seen,
            f"{label}_touched": way.touched / 10_000,
        }
    keep("card", "3: foreign rows; filters as usual, tiny, all bits set", row)


def random_changes(base: np.ndarray, queries: np.ndarray, count: int = 10_000, steps: int = 20_000) -> None:
    draw, recipe = np.random.default_rng(0), Curator()
    there, spare = base[:count].copy(), count
    held = Held.learn(recipe, there, count, there.dtype).entered([there])
    held = held.granted(dict(enumerate(tenants_of(there, 100, 4000, 50, 3))))
    cost: dict[str, list[float]] = {"grant": [], "revoke": [], "insert": [], "delete": []}
    for _ in range(steps):
        what = str(draw.choice(list(cost), p=[0.45, 0.35, 0.1, 0.1]))
        tenant, row = int(draw.choice(list(held.names))), int(draw.integers(len(there)))
        own, start = held.own(held.names.number(tenant)).ids, time.process_time()
        if what == "grant":
            held = held.granted({tenant: np.array([row])})
        elif what == "revoke":
            held = held.revoked({held.names.number(tenant): own[[row % len(own)]]})
        elif what == "insert":
            held, there, spare = (
                held.entered([base[spare][None]]),
                np.concatenate([there, base[spare][None]]),
                spare + 1,
            )
        else:
            keep_ = np.arange(len(there)) != row
            held, there = held.left(keep_, there), there[keep_]
        cost[what].append(time.process_time() - start)
    mine = {n: held.own(i).ids for n, i in held.names.numbers.items()}
    new = Held.learn(recipe, there, len(there), there.dtype).entered([there]).granted(mine)
    told = {f"{n}_us": 1e6 * float(np.median(c)) for n, c in cost.items()}
    row = {"fault": held.fault() or "none", "recall": shown(held, there, queries, mine), **told}
    keep("card", "4: 20,000 random changes", row | {"recall_new": shown(new, there, queries, mine)})


def shown(held: Held, vectors: np.ndarray, queries: np.ndarray, mine: dict[Any, np.ndarray]) -> float:
    from holdall.vectors.curator_search import search

    tree = (held.tree.centroids, held.tree.spread, held.tree.ends)
    known = (held.filters.words, held.filters.offsets, held.filters.hashes, True)
    told = []
    for name, rows in mine.items():
        which, knobs = held.names.number(name), held.recipe
        probes = max(knobs.shortlist, int(knobs.probes * np.sqrt(len(rows))))
        how = (probes, np.float32(knobs.boost), np.float32(knobs.prune), 0)
        some = (held.lists.arrays, which, held.names.tokens[which], known, how, 10, np.zeros(4))
        wanted = truth(vectors, [rows], [(0, q) for q in queries[:30]])
        told.append(recall(search(queries[:30], vectors, tree, *some)[1], wanted))
    return float(np.mean(told))


def depth(ours: ways.Ours, who: list[np.ndarray]) -> None:
    held, row = ours.index._held(), {}
    deep = np.zeros(len(held.tree.ends), int)
    for node in range(1, len(deep)):
        deep[node] = deep[held.tree.parents[node]] + 1
    for t in (4, 5, 14, 15):
        own = held.own(held.names.number(t))
        sizes = np.diff(np.append(own.firsts, len(own.ids)))
        row[f"{'drawn' if t % 2 else 'clustered'}_{len(who[t])}"] = float(
            np.average(deep[own.nodes], weights=sizes)
        )
    keep("card", "5: mean depth of a vector's list", row)
