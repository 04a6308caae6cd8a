"""HPC-ColPali: sets of codes, pruning, bits and speed beside full late interaction and what others do.

    OMP_NUM_THREADS=1 python benchmarks/vectors_colpali.py             (some 25 minutes of one core, 12 of them states)
    OMP_NUM_THREADS=1 python benchmarks/vectors_colpali.py --parts speed --layers 10

Documents are 1,000 paragraphs of WikiText-2 (test), up to 128 tokens each, as states of SmolLM2-135M behind
--layers of its 30 blocks (unit length, less their mean, 128 principal directions, unit length); a query is one
sentence of a paragraph without 30 % of its words and finds its paragraph or not. States are kept in the folder for
temporary files.

Parts: `quality` (recall, bytes, time: the method's settings and what is in vectors_colpali_peers.py), `pruning`
(which vectors to keep), `bits` (labels for Hamming distances, of documents and of single vectors), `speed` (scoring
alone, by the number of documents), `budgets` (what a budget gives). Results: results/vectors_colpali.json, row by
row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import vectors_colpali_peers as peers

from holdall.errors import BudgetError
from holdall.parts.codebook import assigned, kmeans
from holdall.report import provenance
from holdall.vectors import Documents, HPCColPali, Vectors, hamming
from holdall.vectors.passages import Passages, States, paragraphs, queries, ranks, reduced, states

RESULTS = Path(__file__).parent / "results" / "vectors_colpali.json"
DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
Row = dict[str, Any]
ROWS: list[str] = []  # beginnings of the names of rows of `quality`; none: all


def corpus(layer: int, count: int = 1000, longest: int = 128) -> Passages:
    texts = list(paragraphs((DATA / "wikitext2-test-raw.txt").read_text()))[:count]
    others = list(paragraphs((DATA / "wikitext2-valid.txt").read_text()))[:300]
    found = []
    for name, some in (("documents", texts), ("queries", None), ("others", others)):
        path = Path(tempfile.gettempdir()) / f"holdall-{name}-{layer}-{count}-{longest}.npz"
        if not path.exists():
            made = states(queries(texts, longest) if some is None else some, layer, longest)
            np.savez(path, x=made.x.astype(np.float16), attention=made.attention, offsets=made.offsets)
        with np.load(path) as held:
            found.append(States(held["x"].astype(np.float32), held["attention"], held["offsets"]))
    return reduced(found[0], found[1], found[2], 128)


def figures(places: np.ndarray) -> Row:
    shares = {f"recall@{k}": round(float((places < k).mean()), 4) for k in (1, 10)}
    return shares | {"mrr": round(float((1 / (1 + places)).mean()), 4)}


def placed(index: Any, asked: Documents, first: int = 0) -> np.ndarray:
    """Of each query where its own document stands; behind the first hundred it counts as not found."""
    ids = index.search(asked, 100).ids
    right = ids == (first + np.arange(len(ids)))[:, None]
    return np.where(right.any(1), right.argmax(1), 10**6)


def measured(documents: Documents, asked: Documents, **knobs: Any) -> Row:
    begun = time.process_time()
    with HPCColPali(**knobs).build(documents) as index:
        built = time.process_time() - begun
        row = figures(placed(index, asked))
        each = len(index.folder.arrays["centroids"]) * 4 * (documents.dim + 1)
        tables = index.folder.arrays.get("tables")
        books = each + (0 if tables is None else np.asarray(tables).nbytes)
        return row | {
            "bytes": index.nbytes, "of_them_books": books, "smaller": round(documents.nbytes / (index.nbytes -
            books), 1), "ms_a_query": timed(partial(index.search, k=10), asked), "build_seconds": round(built, 1),
        }  # fmt: skip


def timed(search: Any, asked: Documents, most: int = 100) -> float:
    """CPU milliseconds of a query, one at a time."""
    some = [asked.cut(i, i + 1) for i in range(min(most, asked.count))]
    search(some[0])
    begun = time.process_time()
    for q in some:
        search(q)
    return round(1000 * (time.process_time() - begun) / len(some), 3)


SETTINGS: dict[str, Row] = {
    **{f"K {k}": {"centroids": k} for k in (128, 256, 512)},
    **{f"K {k}, seed {seed}": {"centroids": k, "seed": seed} for k in (256, 512) for seed in (1, 2)},
    **{f"K {k}, symmetric": {"centroids": k, "scoring": "symmetric"} for k in (256, 512)},
    **{f"K 256, {n} probes": {"centroids": 256, "probes": n} for n in (8, 2)},
    "K 256, hamming": {"centroids": 256, "scoring": "hamming"},
    **{f"PQ m {m}": {"subspaces": m} for m in (8, 16, 32)},
    "PQ m 16, 50 candidates": {"subspaces": 16, "candidates": 50},
    "PQ m 16, symmetric": {"subspaces": 16, "scoring": "symmetric"},
}  # fmt: skip


def quality(data: Passages, layer: int) -> Iterator[tuple[str, Row]]:
    for name, peer in peers.PEERS.items():
        if not wanted(name):
            continue
        scores, held, search = peer(data.documents, data.queries)
        yield name, figures(ranks(scores)) | {"bytes": held, "ms_a_query": timed(search, data.queries, 30)}
    for name, knobs in SETTINGS.items():
        if wanted(name):
            yield name, measured(data.documents, data.queries, **knobs)
    assert data.others is not None
    for k in (256, 512):
        if not wanted(name := f"K {k}, centroids of other texts"):
            continue
        ids = np.arange(data.documents.count)
        with HPCColPali(centroids=k).build(data.others, ids=10**6 + np.arange(data.others.count)) as index:
            index.add(data.documents, ids=ids)
            index.remove(10**6 + np.arange(data.others.count))
            yield name, figures(placed(index, data.queries)) | {"bytes": index.nbytes}


def wanted(name: str) -> bool:
    """Whether a row of `quality` is asked for."""
    return not ROWS or any(name.startswith(r) for r in ROWS)


def with_salience(d: Documents, how: str, seed: int) -> Documents:
    if how == "attention":
        return d
    told = None
    if how == "lot":
        told = np.random.default_rng(seed).random(d.rows.count).astype(np.float32)
    elif how == "least attention":
        told = -d.salience
    return Documents(d.rows, d.offsets, told)


def pruning(data: Passages, layer: int) -> Iterator[tuple[str, Row]]:
    for how in ("attention", "least attention", "idf", "lot"):
        documents, asked = with_salience(data.documents, how, 0), with_salience(data.queries, how, 1)
        for share, both in ((0.8, "d"), (0.6, "d"), (0.4, "d"), (0.6, "q"), (0.6, "dq"), (0.4, "dq")):
            knobs: Row = {k: share for k, side in (("keep_docs", "d"), ("keep_query", "q")) if side in both}
            side = {"d": "documents", "q": "queries", "dq": "both"}[both]
            yield f"{how}, {side}, {share}", measured(documents, asked, centroids=256, **knobs)
        with HPCColPali(subspaces=16, keep_docs=0.6).build(documents) as index:
            yield f"{how}, documents, 0.6, PQ m 16", figures(placed(index, asked)) | {"bytes": index.nbytes}


def bits(data: Passages, layer: int) -> Iterator[tuple[str, Row]]:
    for k in (256, 512):
        for labels in ("raw", "tree", "swapped"):
            knobs = {"scoring": "hamming", "labels": labels, "centroids": k}
            yield f"documents, K {k}, {labels}", measured(data.documents, data.queries, **knobs)
    yield from single_bits(data)


def single_bits(data: Passages) -> Iterator[tuple[str, Row]]:
    """Every twelfth vector of the documents as a document of its own: how many of a vector's ten nearest are among
    the first tenth by bits, of all and of those in another cell than its own."""
    x, q = data.documents.ready("cosine")[::12], data.queries.ready("cosine")[::24]
    true = np.argsort(-(q @ x.T), axis=1)[:, :10]
    centroids = kmeans(x, 256, spherical=True)
    cells, own = assigned(x, centroids), assigned(q, centroids)
    tree = hamming.tree_labels(centroids)
    ways = {
        "raw": np.arange(256), "lot": np.random.default_rng(0).permutation(256), "tree": tree,
        "swapped": hamming.swapped(tree, centroids, np.bincount(cells, minlength=256)),
    }  # fmt: skip
    elsewhere = cells[true] != own[:, None]
    for name, labels in ways.items():
        away = np.bitwise_count(labels[own][:, None] ^ labels[cells])
        first = np.argsort(away, axis=1, kind="stable")[:, : len(x) // 10]
        hit = np.stack([np.isin(t, f) for t, f in zip(true, first, strict=True)])
        row = {
            "found": round(float(hit.mean()), 4),
            "found_in_other_cells": round(float(hit[elsewhere].mean()), 4),
        }
        yield f"single vectors, {name}", row | {"vectors": len(x)}


def speed(data: Passages, layer: int) -> Iterator[tuple[str, Row]]:
    """Scoring alone of all documents; more than there are by taking them several times."""
    x, offsets = data.documents.ready("cosine"), data.documents.offsets
    for times in (1, 4):
        many = np.tile(x, (times, 1))
        ends = np.concatenate([offsets[:-1] + i * len(x) for i in range(times)])

        def multiplied(q: Documents, many: np.ndarray = many, ends: np.ndarray = ends) -> np.ndarray:
            return peers.multiplied(many, ends, q.ready("ip"))

        pages = Documents(Vectors.of(many), [*ends, len(many)])
        row = {"float32, BLAS": timed(multiplied, data.queries, 20)}
        for name in ("K 256", "K 512", "K 256, symmetric", "K 256, hamming", "PQ m 16", "K 256, 8 probes"):
            with HPCColPali(**SETTINGS[name]).build(pages) as index:
                row[name] = timed(partial(index.search, k=10), data.queries)
        yield f"{len(ends)} documents, ms a query", row


def budgets(data: Passages, layer: int) -> Iterator[tuple[str, Row]]:
    for share in ("0.1%", "0.2%", "0.3%", "0.6%", "0.9%", "1.2%", "2%", "4%", "8%"):
        try:
            with HPCColPali().build(data.documents, share) as index:
                row = figures(placed(index, data.queries)) | {"bytes": index.nbytes}
        except BudgetError as fault:
            row = {"least": fault.least}
        yield share, row


PARTS = {"quality": quality, "pruning": pruning, "bits": bits, "speed": speed, "budgets": budgets}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", type=lambda t: t.split(","), default=list(PARTS))
    ask.add_argument("--layers", type=lambda t: [int(n) for n in t.split(",")], default=[10, 15])
    ask.add_argument("--rows", type=lambda t: t.split(","), default=[], help="of quality, by how they begin")
    args = ask.parse_args()
    ROWS.extend(args.rows)
    for layer in args.layers:
        data = corpus(layer)
        for part in (
            args.parts if layer == args.layers[0] else [p for p in args.parts if p in ("quality", "pruning")]
        ):
            for name, row in PARTS[part](data, layer):
                found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
                found.setdefault(f"layer {layer}", {}).setdefault(part, {})[name] = row
                found["provenance"] = provenance(documents=1000, vectors=data.documents.rows.count)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
                print(f"layer {layer}, {part}, {name}: {row}", flush=True)


if __name__ == "__main__":
    main()
