"""Data of the tenants' benchmarks: vectors, who has which, and where results go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from holdall.report import provenance

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "vectors"
RESULTS = Path(__file__).parent / "results" / "vectors_tenants.json"
Pairs = list[tuple[int, np.ndarray]]


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(vectors in their own type, queries float32)."""
    if name == "sift":
        return np.load(SHARED / "sift_base.npy"), np.load(SHARED / "sift_query.npy").astype(np.float32)
    if name == "glove":
        x = np.load(SHARED / "glove100.npy").astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    else:
        from holdall.weights import Model

        x = Model.read("smollm2").state["model.embed_tokens.weight"].float().numpy()
        x = x - x.mean(0)
        x = (x @ np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :96]).astype(np.float32)
    x = np.ascontiguousarray(x[np.random.default_rng(0).permutation(len(x))])
    return x[1000:], x[:1000]


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    """Print a row and merge it into the results."""
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    print(f"{part}: {name:42s} {told}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault(part, {})[name] = row
    found["provenance"] = provenance(threads=os.environ.get("OMP_NUM_THREADS"))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def asks(who: list[np.ndarray], queries: np.ndarray, band: tuple[int, int], count: int) -> Pairs:
    """Tenants of a band with a query each."""
    draw = np.random.default_rng(band[0])
    some = [t for t, rows in enumerate(who) if band[0] < len(rows) <= band[1]]
    return [
        (int(draw.choice(some)), queries[draw.integers(len(queries))]) for _ in range(count if some else 0)
    ]


def truth(base: np.ndarray, who: list[np.ndarray], pairs: Pairs) -> list[np.ndarray]:
    return [who[t][np.argsort(np.square(base[who[t]] - q).sum(1), kind="stable")[:10]] for t, q in pairs]


def tenants_of(
    base: np.ndarray, count: int, most: int, least: int, each: float, seed: int = 0
) -> list[np.ndarray]:
    """Rows of each tenant, rising: sizes fall by rank from `most` to `least` so that a vector has `each` tenants. Of
    two neighbours by rank one is clustered, with the vectors nearest to one of them, and one is drawn by lot."""
    draw, ranks = np.random.default_rng(seed), np.arange(1, count + 1)
    low, high = 0.0, 4.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        sizes = np.clip(most * ranks**-middle, least, most)
        low, high = (middle, high) if sizes.sum() > each * len(base) else (low, middle)
    found = []
    for rank, size in enumerate(sizes.astype(int)):
        if rank % 2:
            rows = draw.choice(len(base), size, replace=False)
        else:
            away = np.square(base - base[draw.integers(len(base))]).sum(1)
            rows = np.argpartition(away, size)[:size]
        found.append(np.sort(rows))
    return found
