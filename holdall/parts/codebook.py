"""Code books: k-means and product quantisers, with faiss underneath; the same seed gives the same numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Self

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.optional import lazy

faiss: Any = lazy("faiss", extra="vectors")  # its own types are of another release


def kmeans(x: np.ndarray, k: int, *, seed: int = 0, rounds: int = 20, spherical: bool = False) -> np.ndarray:
    """Centroids float32 [k, D] of vectors [N, D]; of fewer than k vectors all are there, the first again and again."""
    x = np.ascontiguousarray(x, np.float32)
    if len(x) <= k:
        return np.resize(x, (k, x.shape[1]))
    learner = faiss.Clustering(x.shape[1], k)
    learner.niter, learner.seed, learner.spherical = rounds, seed + 1, spherical
    learner.min_points_per_centroid, learner.max_points_per_centroid = 1, len(x)
    learner.train(x, faiss.IndexFlatIP(x.shape[1]) if spherical else faiss.IndexFlatL2(x.shape[1]))
    found: np.ndarray = faiss.vector_to_array(learner.centroids).reshape(k, -1)
    return found.copy()


def assigned(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int64 [N]: the nearest centroid of each."""
    if not len(x):
        return np.zeros(0, np.int64)
    _, found = faiss.knn(np.ascontiguousarray(x, np.float32), centroids, 1)
    return np.asarray(found[:, 0])


def fill(index: Any, owners: np.ndarray, codes: np.ndarray) -> None:
    """Codes [N, .] into the inverted lists [N] of a faiss index that has none yet."""
    order = np.argsort(owners, kind="stable")
    ends = np.searchsorted(owners[order], np.arange(index.nlist + 1))
    for at, (first, last) in enumerate(pairwise(ends)):
        some = order[first:last].astype(np.int64)
        if len(some):
            own = np.ascontiguousarray(codes[some])
            index.invlists.add_entries(at, len(some), faiss.swig_ptr(some), faiss.swig_ptr(own))
    index.ntotal = len(owners)


class ProductQuantiser:
    """Vectors of D numbers as `parts` codes, each of a table of up to 256 sub-vectors [parts, entries, D / parts]."""

    def __init__(self, tables: np.ndarray):
        self.tables = np.ascontiguousarray(tables, np.float32)

    @classmethod
    def learn(cls, x: np.ndarray, parts: int, *, bits: int = 8, seed: int = 0, rounds: int = 20) -> Self:
        """parts must divide D."""
        cut = np.ascontiguousarray(x, np.float32).reshape(len(x), parts, -1)
        found = [kmeans(cut[:, m], 1 << bits, seed=seed + m, rounds=rounds) for m in range(parts)]
        return cls(np.stack(found))

    @classmethod
    def of(cls, tables: Any, dim: int) -> Self:
        """From a file: CorruptArtefact for what cannot be tables for that many numbers."""
        fine = isinstance(tables, np.ndarray) and tables.dtype == np.float32 and tables.ndim == 3
        if (
            not fine
            or tables.shape[0] * tables.shape[2] != dim
            or tables.shape[1] not in (2, 4, 8, 16, 32, 64, 128, 256)
        ):
            raise CorruptArtefact("the tables of a product quantiser", f"they do not fit {dim} numbers")
        if not np.isfinite(tables).all():
            raise CorruptArtefact("the tables of a product quantiser", "NaN or infinity")
        return cls(tables)

    @property
    def parts(self) -> int:
        return int(self.tables.shape[0])

    def encode(self, x: np.ndarray) -> np.ndarray:
        """uint8 [N, parts]: of each part the nearest entry."""
        cut = np.ascontiguousarray(x, np.float32).reshape(len(x), self.parts, -1)
        out = np.empty((len(x), self.parts), np.uint8)
        for m in range(self.parts):
            out[:, m] = assigned(cut[:, m], self.tables[m])
        return out

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float32 [N, D]."""
        found = self.tables[np.arange(self.parts), codes.astype(np.int64)]  # [N, parts, D / parts]
        return found.reshape(len(codes), -1)


def even_turn(x: np.ndarray, parts: int) -> np.ndarray:
    """[D, D']: turns vectors so that a product quantiser of `parts` codes loses less; D' is D, or with zeros behind it
    the next multiple of parts.

    Principal directions of x [N, D], dealt out so that the product of variances is about the same in each part (Ge et
    al., Optimized Product Quantization, the parametric solution).
    """
    dim = x.shape[1]
    each = -(-dim // parts)
    variances, directions = np.linalg.eigh((x.T.astype(np.float64) @ x) / max(1, len(x)))
    logs = np.log(np.maximum(variances, max(float(variances.max()) * 1e-6, 1e-30)))
    dealt: list[list[int]] = [[] for _ in range(parts)]
    sums = np.zeros(parts)
    for at in np.argsort(-logs, kind="stable").tolist():
        open_ = [p for p in range(parts) if len(dealt[p]) < each]
        best = min(open_, key=lambda p: sums[p])
        dealt[best].append(at)
        sums[best] += logs[at] - logs.min() + 1
    out = np.zeros((dim, parts * each), np.float32)
    for p, mine in enumerate(dealt):
        out[:, p * each : p * each + len(mine)] = directions[:, mine]
    return out
