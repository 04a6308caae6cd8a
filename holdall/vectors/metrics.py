"""Distances, all alike: smaller is nearer. faiss multiplies; what is told to users is computed again from the vectors.

l2: Euclidean. cosine: 1 - cosine of the angle; a vector of zeros is 1 away from all. ip: minus the inner product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy

faiss: Any = lazy("faiss", extra="vectors")  # its own types are of another release

METRICS = ("l2", "cosine", "ip")


def ready(vectors: np.ndarray, metric: str) -> np.ndarray:
    """float32, C-contiguous; of length one for cosine."""
    found = np.ascontiguousarray(vectors, np.float32)
    if metric != "cosine":
        return found
    sizes = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(sizes > 0, sizes, 1)


def asked(queries: Any, dim: int, metric: str) -> np.ndarray:
    """Queries [Q, D] or [D] as `ready` has them; BadInput for another dimension, or numbers that are not finite."""
    found = np.asarray(queries)
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or found.dtype.kind not in "fiu" or (found.size and found.shape[1] != dim):
        raise BadInput("queries", f"{found.dtype} {found.shape}", f"[Q, {dim}] numbers, as the index has")
    found = found.reshape(len(found), dim)
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad):
        raise BadInput("queries", f"row {bad[0]} has NaN or infinity", "finite numbers")
    return ready(found, metric)


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(keys float32 [Q, min(k, N)], smaller is nearer; places in `vectors`), both as `ready` has them."""
    k = min(k, len(vectors))
    if not k or not len(queries):
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    keys, places = faiss.knn(queries, vectors, k, metric=kind)
    return (-keys if metric == "ip" else keys), places


def distances(queries: np.ndarray, found: np.ndarray, metric: str) -> np.ndarray:
    """float32 [Q, k] from queries [Q, D] and vectors [Q, k, D], both as `ready` has them."""
    if metric == "ip":
        return -np.einsum("qd,qkd->qk", queries, found, dtype=np.float64).astype(np.float32)
    away = found.astype(np.float64) - queries[:, None]
    squares = np.einsum("qkd,qkd->qk", away, away)
    if metric == "l2":
        return np.sqrt(squares).astype(np.float32)
    zero = ~(np.any(queries, 1)[:, None] & np.any(found, 2))
    return np.where(zero, 1.0, squares / 2).astype(np.float32)


def best(keys: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest keys of each row [Q, N], rising, those of lower numbers first among equals."""
    order = np.lexsort((rows, keys), axis=1)[:, :k]
    return np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order, 1)


def holds(raw: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """Whether that type holds these numbers exactly."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.array_equal(raw.astype(dtype).astype(raw.dtype), raw))


def exactly(raw: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """As that type; BadInput for numbers that it does not hold."""
    if raw.dtype != dtype and not holds(raw, dtype):
        raise BadInput(
            "vectors", f"{raw.dtype} numbers", f"numbers that {dtype} holds, as the index stores them"
        )
    return raw.astype(dtype, copy=False)
