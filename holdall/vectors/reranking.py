"""Another order for what was found, from global vectors alone: SuperGlobal's re-ranking, of any embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.vectors.metrics import ready


def rerank(
    query: np.ndarray, candidates: np.ndarray, *, neighbours: int = 9, beta: float = 0.15
) -> np.ndarray:
    """Scores, higher is nearer, of each query's candidates: float32 [M] or [Q, M], in the order of `candidates`.

    query: [D] with candidates [M, D], its best first; or [Q, D] with [Q, M, D]. Lengths do not matter.
    """
    checked(neighbours, beta)
    q, x = np.asarray(query), np.asarray(candidates)
    if x.ndim not in (2, 3) or q.shape != (*x.shape[:-2], x.shape[-1]):
        raise BadInput("candidates", str(x.shape), f"[M, D] or [Q, M, D] for queries {q.shape}")
    if x.ndim == 3:
        scores = [rerank(a, b, neighbours=neighbours, beta=beta) for a, b in zip(q, x, strict=True)]
        return np.stack(scores) if scores else np.zeros(x.shape[:2], np.float32)
    q, x = ready(q[None], "cosine")[0], ready(x, "cosine")
    count, near = len(x), min(neighbours, len(x) - 1)
    if not count:
        return np.zeros(0, np.float32)
    alike = x @ x.T  # [M, M]
    np.fill_diagonal(alike, np.inf)  # each is the first of its own neighbours, among equals too
    weights = np.zeros_like(alike)
    if near:
        which = np.argpartition(-alike, near, axis=1)[:, : near + 1]
        chosen = np.take_along_axis(alike, which, 1)
        np.put_along_axis(weights, which, np.float32(beta) * np.clip(chosen, 0, 1), 1)
    np.fill_diagonal(weights, 1)
    refined = (weights @ x) / weights.sum(1, keepdims=True)  # x', not of length one
    first = refined @ q
    top = np.argsort(-first, kind="stable")[: near + 1]
    found: np.ndarray = (first + refined @ refined[top].max(0)) / 2
    return found


def naive_rerank(
    query: np.ndarray, candidates: np.ndarray, *, neighbours: int = 9, beta: float = 0.15
) -> list[float]:
    """`rerank` of one query by the card, a candidate at a time."""
    unit = [np.asarray(v, np.float64) / (np.linalg.norm(v) or 1) for v in (query, *candidates)]
    q, x = unit[0], unit[1:]
    refined = []
    for i, mine in enumerate(x):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(mine @ x[j]))[:neighbours]
        weights = [beta * max(0.0, float(mine @ x[j])) for j in others]
        total = mine + sum(w * x[j] for w, j in zip(weights, others, strict=True))
        refined.append(total / (1 + sum(weights)))
    first = [float(q @ v) for v in refined]
    top = sorted(range(len(x)), key=lambda i: -first[i])[: neighbours + 1]
    second = np.max([refined[i] for i in top], axis=0) if top else q
    return [(s + float(second @ v)) / 2 for s, v in zip(first, refined, strict=True)]


def checked(neighbours: Any, beta: Any) -> None:
    if type(neighbours) is not int or neighbours < 0:
        raise BadInput("neighbours", neighbours, "0 or more")
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < np.inf:
        raise BadInput("beta", beta, "0 or more")
