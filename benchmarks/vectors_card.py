"""What SPANN's card requires, line by line; run by benchmarks/vectors.py --parts card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from vectors_data import load

from holdall.parts.codebook import assigned, kmeans
from holdall.vectors import SPANN
from holdall.vectors.metrics import nearest
from holdall.vectors.quality import recall

STEPS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def tokens() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """30,000 token embeddings in 64 principal dimensions, of length one; 300 queries held out."""
    base, asked, _ = load("tokens")
    x = np.concatenate([asked[:300], base[:30_000]])
    _, turn = np.linalg.eigh(x.T @ x)
    x = x @ turn[:, -64:]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[300:], x[:300], nearest(x[:300], x[300:], 10, "l2")[1]


def at(index: Any, queries: np.ndarray, wanted: np.ndarray, **knobs: Any) -> tuple[float, float, float]:
    """(recall, lists read, vectors read) a query."""
    index.recipe = index.recipe.but(**knobs)
    before = index.traffic()
    found = recall(index.search(queries, 10).ids, wanted)
    told = index.traffic()
    return found, *((told[n] - before[n]) / len(queries) for n in ("reads", "compared"))


def crossing(points: list[tuple[float, ...]], goal: float) -> list[float]:
    """The other numbers where the first passes `goal`, between the two steps around it; infinity where it does not."""
    for before, here in zip([(0.0,) * len(points[0]), *points], points, strict=False):
        if here[0] >= goal:
            share = (goal - before[0]) / (here[0] - before[0])
            return [b + (h - b) * share for b, h in zip(before[1:], here[1:], strict=True)]
    return [np.inf] * (len(points[0]) - 1)


def lines(args: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    base, queries, wanted = tokens()
    reads: dict[str, float] = {}
    for name, knobs in {"closure": {}, "1 replica": {"replicas": 1}, "no RNG rule": {"apart": False}}.items():
        with SPANN(layout="lists", ratio=0.1, prune=1e9, **knobs).build(base) as index:
            points = [at(index, queries, wanted, probes=p) for p in STEPS]
            lists, vectors = crossing(points, 0.9)
            reads[name], counts = lists, index.lists.counts
            yield f"tokens, recall .9: {name}", {
                "lists": lists, "vectors": vectors, "recall_at_32": points[STEPS.index(32)][0],
                "spread_of_sizes": float(counts.std() / counts.mean()), "replicas": float(counts.sum() / len(base)),
                "held_of_flat": index.nbytes / base.nbytes,
            }  # fmt: skip
    for cells in (1000, 3000):
        middles = kmeans(base, cells)
        owners = assigned(base, middles)
        _, near = nearest(queries, middles, 256, "l2")
        sizes = np.bincount(owners, minlength=cells)
        points = [
            (float((owners[wanted][..., None] == near[:, None, :p]).any(2).mean()), p, sizes[near[:, :p]].sum(1).mean())
            for p in STEPS
        ]  # fmt: skip
        lists, vectors = crossing(points, 0.9)
        reads[f"{cells} middles"] = lists
        yield f"tokens, recall .9: k-means, {cells} lists", {
            "lists": lists, "vectors": vectors, "spread_of_sizes": float(sizes.std() / sizes.mean()),
        }  # fmt: skip
    others = min(v for k, v in reads.items() if k not in ("closure", "no RNG rule"))
    yield (
        "1: lists of closure over those of the best without replicas (.6)",
        {"ratio": reads["closure"] / others},
    )
    yield from pruning("tokens", base, queries, 0.02 / 8)
    base, queries, _ = load("sift")
    yield from pruning("sift", base[::4], queries[:300], 2.0)


def pruning(
    name: str, base: np.ndarray, queries: np.ndarray, noise: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Half near-duplicates of stored rows, half held out; and fewer lists for all, which costs nothing to know."""
    draw = np.random.default_rng(0)
    easy = base[draw.permutation(len(base))[: len(queries)]]
    easy = easy + draw.normal(size=easy.shape).astype(np.float32) * noise
    mixed = np.concatenate([easy, queries]).astype(np.float32)
    wanted = nearest(mixed, base, 10, "l2")[1]
    with SPANN(layout="lists", ratio=0.1, probes=64).build(base) as index:
        whole = at(index, mixed, wanted, prune=1e9)
        yield f"4, {name}: 64 lists", {"recall": whole[0], "lists": whole[1]}
        for prune in (0.5, 0.6, 0.75, 1.0):
            found = at(index, mixed, wanted, prune=prune)
            yield (
                f"4, {name}: pruned at {prune}",
                {"recall": found[0], "lists": found[1], "lost": whole[0] - found[0]},
            )
        for probes in (24, 32, 48):
            found = at(index, mixed, wanted, prune=1e9, probes=probes)
            yield f"4, {name}: {probes} lists for all", {"recall": found[0], "lists": found[1]}
