"""Vectors with tenants for tests: half of them clustered, half drawn by lot."""

from __future__ import annotations

from typing import Any

import numpy as np

from holdall.vectors import Curator
from holdall.vectors.curator_state import Held
from holdall.vectors.quality import _drawn, naive_search


def tenanted(
    count: int = 6000, tenants: int = 40, most: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(vectors [count, 96], queries [200, 96], rows of each tenant), sizes from `most` down by rank to 30."""
    drawn = _drawn(count + 200)
    order = np.random.default_rng(seed).permutation(len(drawn))
    vectors, queries = drawn[order[200:]], drawn[order[:200]]
    draw, who = np.random.default_rng(seed + 1), {}
    for rank in range(tenants):
        size = max(30, int(most / (rank + 1)))
        if rank % 2:
            rows = draw.choice(count, size, replace=False)
        else:
            away = np.square(vectors - vectors[draw.integers(count)]).sum(1)
            rows = np.argpartition(away, size)[:size]
        who[f"tenant {rank}"] = np.sort(rows)
    return vectors, queries, who


def best_of(vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows [Q, k] nearest among some."""
    return rows[naive_search(vectors[rows], queries, k, "l2")[1]]


def depths(ends: np.ndarray, parents: np.ndarray) -> np.ndarray:
    found = np.zeros(len(ends), int)
    for node in range(1, len(ends)):
        found[node] = found[parents[node]] + 1
    return found


def arrays_of(thing: Any, seen: set[int]) -> int:
    """Bytes of numpy arrays that hang on an object, each once."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return arrays_of(thing.base, seen) if isinstance(thing.base, np.ndarray) else thing.nbytes
    if isinstance(thing, tuple | list):
        return sum(arrays_of(t, seen) for t in thing)
    inside = getattr(thing, "__dict__", {})
    return sum(arrays_of(t, seen) for t in inside.values())


def made(vectors, who, recipe=None) -> Held:
    recipe = Curator() if recipe is None else recipe
    held = Held.learn(recipe, vectors, len(vectors), vectors.dtype).entered([vectors])
    return held.granted(who)
