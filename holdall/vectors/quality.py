"""How the room measures: recall against exact search, what a query reads and computes, latencies, memory."""

from __future__ import annotations

import tempfile
import time
from functools import cache
from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.files import is_local, local_path
from holdall.kinds import Spend
from holdall.memory import release
from holdall.meter import resident_bytes
from holdall.optional import need
from holdall.registry import get
from holdall.report import Report, provenance
from holdall.vectors import documents, metrics
from holdall.vectors.aiming import truth
from holdall.vectors.building import opened
from holdall.vectors.documents import Documents
from holdall.vectors.folder import STATE
from holdall.vectors.numbered import Numbered
from holdall.vectors.source import Vectors

FLOORS: tuple[str, ...] = ("vectors.none", "vectors.random")


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    found = need("sklearn.datasets", "test").load_digits().data.astype(np.float32)
    order = np.random.default_rng(0).permutation(len(found))
    return found[order[197:]], found[order[:197]]


def real() -> tuple[np.ndarray, np.ndarray]:
    """(vectors [1600, 64], queries [197, 64]): images of handwritten digits, none twice."""
    base, queries = _digits()
    return base.copy(), queries.copy()


def specimens() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Odd ones: (vectors, queries)."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    constant = np.ones((63, 5), np.float32)
    return {
        "one vector": (normal(1, 7), normal(3, 7)),
        "one column": (normal(63, 1), normal(3, 1)),
        "three": (normal(3, 3), normal(1, 3)),
        "all the same": (constant, constant[:2]),
        "no queries": (normal(40, 4), normal(0, 4)),
        "far from zero": (normal(200, 8) + 1000, normal(5, 8) + 1000),
        "half precision": (normal(130, 16).astype(np.float16), normal(5, 16)),
        "bytes": (draw.integers(0, 256, (130, 16), np.uint8), draw.integers(0, 256, (5, 16), np.uint8)),
        "signed bytes": (draw.integers(-128, 128, (130, 16), np.int8), normal(5, 16)),
    }


def naive_search(
    vectors: np.ndarray, queries: np.ndarray, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """(distances [Q, k], rows [Q, k]) by the definition, in float64; lower rows first among equals."""
    x, q = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        away = np.sqrt(np.square(q[:, None] - x).sum(2))
    elif metric == "ip":
        away = -(q @ x.T)
    else:
        sizes = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
        away = 1 - np.divide(q @ x.T, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    rows = np.argsort(away, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(away, rows, 1), rows


def recall(found: Any, wanted: Any) -> float:
    """The mean share of wanted ids [Q, k] that were found, whatever their order."""
    shares = [
        len(set(map(str, a)) & set(map(str, b))) / max(1, len(b)) for a, b in zip(found, wanted, strict=True)
    ]
    return float(np.mean(shares)) if shares else 1.0


UNITS = {
    "memory_bytes": "B", "resident_bytes": "B", "disk_bytes": "B", "read_bytes_a_query": "B",
    "build_cpu_seconds": "s", "cpu_ms_a_query": "ms",
    "p50_ms": "ms", "p95_ms": "ms", "p99_ms": "ms",
}  # fmt: skip
_QUERIES = 200  # that are held out where none are given


def measure(
    method: Any,
    budget: Spend = None,
    *,
    model: str | None = None,
    on: str | None = None,
    quick: bool = False,
    queries: str | None = None,
) -> Report:
    """Recall@10 against exact search, memory, disk, and what a query costs, beside the floors at the same budget.

    on: a file of vectors, of which some are held out as queries where no file of queries is given; without one,
    vectors are drawn around 300 middles in 24 of 96 dimensions, and the report says so. An index of the method is
    measured as it is, with the queries of a file. Documents of many vectors: beside all of their vectors, by MaxSim.
    """
    if model is not None:
        raise BadInput("--model", model, "no model: vectors are measured --on a file")
    if on is not None and is_local(on) and (local_path(on) / STATE).is_file():
        return _of_index(method, on, budget, queries, quick)
    several = None if on is None else documents.source(on)
    if several is not None:
        return _of_documents(method, budget, several, queries, quick)
    vectors = _drawn(4000 if quick else 20_000) if on is None else _all(on)
    if queries is None:
        order = np.random.default_rng(0).permutation(len(vectors))
        some = max(1, min(_QUERIES, len(vectors) // 10))
        asked, vectors = vectors[order[:some]], vectors[np.sort(order[some:])]
    else:
        asked = _all(queries)
    asked = asked[:50] if quick else asked
    k = min(10, len(vectors))
    with get("vectors.none")(metric=method.metric).build(vectors) as exact:
        wanted = exact.search(asked, k).ids
    rows = {}
    for name in FLOORS:
        floor = get(name)(metric=method.metric)
        rows[name] = figures(floor, None if floor.exact else budget, vectors, asked, k, wanted)
    rows[method.full_name()] = figures(method, budget, vectors, asked, k, wanted)
    told = provenance(
        method=method.to_dict(), budget=str(budget), on=on or "drawn", shape=list(vectors.shape)
    )
    return Report(rows, units=UNITS, provenance=told)


def figures(method: Any, budget: Spend, vectors: Any, asked: Any, k: int, wanted: Any) -> dict[str, float]:
    start = time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        method.build(vectors, budget, to=f"{folder}/v.index") as index,
    ):
        built = time.process_time() - start
        return {**_searched(index, asked, k, wanted), "build_cpu_seconds": built}


def _of_documents(method: Any, budget: Spend, given: Documents, queries: str | None, quick: bool) -> Report:
    """Late interaction by what is kept, beside the definition on every vector."""
    from holdall.vectors.passages import max_sim

    asked = None if queries is None else documents.source(queries)
    if asked is None:
        raise BadInput("--queries", str(queries), "a file of documents, each a query of several vectors")
    parts = [asked.cut(i, i + 1) for i in range(min(asked.count, 50) if quick else asked.count)]
    whole, *each = (Documents(Vectors.of(d.ready(method.metric)), d.offsets) for d in (given, *parts))
    k, start = min(10, given.count), time.process_time()
    wanted = np.concatenate([np.argsort(-max_sim(whole, q), 1, "stable")[:, :k] for q in each])
    spent = 1000 * (time.process_time() - start) / len(parts)
    every = {"recall": 1.0, "memory_bytes": float(4 * given.elements), "cpu_ms_a_query": spent}
    rows = {
        "every vector, float32": every,
        method.full_name(): figures(method, budget, given, parts, k, wanted),
    }
    told = provenance(
        method=method.to_dict(), budget=str(budget), on=given.name, shape=[given.count, given.dim]
    )
    return Report(rows, units=UNITS, provenance=told)


def _of_index(method: Any, url: str, budget: Spend, queries: str | None, quick: bool) -> Report:
    """As it is on disk: exact search goes through its own vectors."""
    if queries is None:
        raise BadInput("--queries", "none", "a file of queries, to measure an index with")
    with method.source(queries) as file:
        asked = file.read(0, min(file.count, 50) if quick else file.count)
    with opened(url, budget) as index:  # what it takes to load and compile is not the index's
        index.search(asked[:2], 1)
    release()
    start = resident_bytes()
    with opened(url, budget) as index:
        if index.recipe.full_name() != method.full_name():
            raise BadInput("method", method.full_name(), f"{index.recipe.full_name()}, as the index was made")
        if not isinstance(index, Numbered):
            raise BadInput("index", url, "one whose vectors can be looked at: measure the method on a file")
        k = min(10, index.count)
        ready = metrics.asked(asked, index.dim, index.recipe.metric)
        _, stored = truth(index.alive(), ready, k, index.recipe.metric)
        rows = stored if index.there is None else index.there.rank(stored)
        release()
        row = _searched(index, asked, k, index.ids.at(rows))
        row["resident_bytes"] = max(0, resident_bytes() - start)
        told = provenance(
            method=index.recipe.to_dict(), budget=str(budget), on=url, shape=[index.count, index.dim]
        )
    return Report({method.full_name(): row}, units=UNITS, provenance=told)


def _searched(index: Any, asked: Any, k: int, wanted: Any) -> dict[str, float]:
    for query in asked[:2]:  # loads and compiles outside the measure
        index.search(query, k)
    before, walls, found, cpu = index.traffic(), [], [], time.process_time()
    for query in asked:
        begun = time.perf_counter()
        found.append(index.search(query, k).ids[0])
        walls.append(1000 * (time.perf_counter() - begun))
    cpu = (time.process_time() - cpu) / len(asked)
    p50, p95, p99 = np.percentile(walls, [50, 95, 99])
    told = index.traffic()
    disk = sum(p.stat().st_size for p in local_path(index.folder.url).iterdir() if p.is_file())
    return {
        "recall": recall(found, wanted), "memory_bytes": index.nbytes, "disk_bytes": disk,
        "read_bytes_a_query": (told["bytes_read"] - before["bytes_read"]) / len(asked),
        "reads_a_query": (told.get("reads", 0.0) - before.get("reads", 0.0)) / len(asked),
        "cpu_ms_a_query": 1000 * cpu, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
    }  # fmt: skip


def _all(url: str) -> np.ndarray:
    with Vectors.open(url) as found:
        return found.read(0, found.count)


def _drawn(count: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    narrow = draw.normal(size=(300, 24))[draw.integers(0, 300, count)] + 0.5 * draw.normal(size=(count, 24))
    return (narrow @ draw.normal(size=(24, 96))).astype(np.float32)
