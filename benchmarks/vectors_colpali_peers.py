"""What others keep of documents of many vectors, for vectors_colpali.py: each gives all scores, bytes held, and a
search.

Written here for the comparison, from what their papers and pages say: all in numpy on one thread, where the
originals have kernels of their own, so that times of the codecs are upper bounds; bytes and recall are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from holdall.parts.codebook import assigned, kmeans
from holdall.vectors import Documents
from holdall.vectors.passages import max_sim

Peer = tuple[np.ndarray, int, Callable[[Documents], Any]]
_OFFSET = 4  # bytes a document, for where it begins


def multiplied(x: np.ndarray, starts: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(x @ query.T, starts, axis=0).sum(1)


def every(search: Callable[[Documents], np.ndarray], asked: Documents) -> np.ndarray:
    return np.stack([search(asked.cut(i, i + 1)) for i in range(asked.count)])


def whole(documents: Documents, asked: Documents) -> Peer:
    x, starts = documents.ready("cosine"), documents.offsets[:-1]
    held = x.nbytes + _OFFSET * documents.count
    return max_sim(documents, asked), held, lambda q: multiplied(x, starts, q.ready("ip"))


def half(documents: Documents, asked: Documents) -> Peer:
    x, starts = documents.ready("cosine").astype(np.float16), documents.offsets[:-1]
    back = Documents.of([p.astype(np.float32) for p in np.split(x, starts[1:])])
    held = x.nbytes + _OFFSET * documents.count
    return max_sim(back, asked), held, lambda q: multiplied(x.astype(np.float32), starts, q.ready("ip"))


def mean(documents: Documents, asked: Documents) -> Peer:
    def pooled(d: Documents) -> np.ndarray:
        x = np.add.reduceat(d.ready("cosine"), d.offsets[:-1], axis=0)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    x = pooled(documents)
    return pooled(asked) @ x.T, x.nbytes, lambda q: pooled(q) @ x.T


def tokens_pooled(documents: Documents, asked: Documents, factor: int = 3) -> Peer:
    """Of each document a third as many vectors, means of clusters (Ward), in float16."""
    parts = []
    for x in np.split(documents.ready("cosine"), documents.offsets[1:-1]):
        most = max(1, len(x) // factor)
        owner = fcluster(linkage(x, "ward"), most, "maxclust") if len(x) > 2 else np.arange(1, len(x) + 1)
        sums = np.stack([x[owner == c].mean(0) for c in np.unique(owner)])
        parts.append((sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float16))
    return half(Documents.of(parts), asked)


def residual(bits: int) -> Callable[[Documents, Documents], Peer]:
    """As ColBERTv2 and PLAID: a centroid (16 bits) and so many bits for each number of what is left, by quantiles
    of a sample; 200 documents by their centroids, then those decoded."""

    def peer(documents: Documents, asked: Documents) -> Peer:
        x, starts = documents.ready("cosine"), documents.offsets[:-1]
        k = 1 << int(np.log2(16 * np.sqrt(len(x))))
        centroids = kmeans(x, k, rounds=4, spherical=True).astype(np.float16).astype(np.float32)
        own = assigned(x, centroids)
        left = x - centroids[own]
        levels = np.quantile(left[::50], (np.arange(1 << bits) + 0.5) / (1 << bits)).astype(np.float32)
        edges = (levels[1:] + levels[:-1]) / 2
        codes = np.searchsorted(edges, left).astype(np.uint8)
        held = len(x) * (2 + x.shape[1] * bits // 8) + centroids.size * 2 + _OFFSET * len(starts)

        def search(q: Documents) -> np.ndarray:
            query = q.ready("ip")
            coarse = np.maximum.reduceat((centroids @ query.T)[own], starts, axis=0).sum(1)
            found, first = np.full(len(starts), -1e9), np.argpartition(-coarse, 199)[:200]
            for d in first:
                some = slice(documents.offsets[d], documents.offsets[d + 1])
                y = centroids[own[some]] + levels[codes[some]]
                y /= np.linalg.norm(y, axis=1, keepdims=True)
                found[d] = (y @ query.T).max(0).sum()
            return found

        return every(search, asked), held, search

    return peer


def signs(documents: Documents, asked: Documents) -> Peer:
    """A bit a number, the query's too, as binary quantisation has it where nothing is compared again."""
    starts = documents.offsets[:-1]

    def packed(d: Documents) -> np.ndarray:
        return np.packbits(d.ready("cosine") > 0, axis=1).view(np.uint64)

    x = packed(documents)

    def search(q: Documents) -> np.ndarray:
        alike = [-np.bitwise_count(x ^ row).sum(1, dtype=np.int16) for row in packed(q)]
        return np.maximum.reduceat(np.stack(alike, 1), starts, axis=0).sum(1)

    return every(search, asked).astype(np.float32), x.nbytes + _OFFSET * len(starts), search


def signs_of_documents(documents: Documents, asked: Documents) -> Peer:
    """As `signs`, with queries in float32."""
    x, starts = np.packbits(documents.ready("cosine") > 0, axis=1), documents.offsets[:-1]

    def search(q: Documents) -> np.ndarray:
        return multiplied(np.unpackbits(x, axis=1).astype(np.float32) * 2 - 1, starts, q.ready("ip"))

    return every(search, asked), x.nbytes + _OFFSET * len(starts), search


def nearest_tokens(parts: int) -> Callable[[Documents, Documents], Peer]:
    """faiss's product codes over all vectors; each vector of a query finds 200, and documents sum the best of
    these: no late interaction, as in the paper's repository."""

    def peer(documents: Documents, asked: Documents) -> Peer:
        x = documents.ready("cosine")
        index = faiss.IndexPQ(x.shape[1], parts, 8, faiss.METRIC_INNER_PRODUCT)
        index.train(x)
        index.add(x)
        owner = np.repeat(np.arange(documents.count), np.diff(documents.offsets))

        def search(q: Documents) -> np.ndarray:
            worth, rows = index.search(q.ready("ip"), 200)
            found = np.zeros(documents.count, np.float32)
            for w, r in zip(worth, rows, strict=True):
                best = np.zeros(documents.count, np.float32)
                np.maximum.at(best, owner[r], w)
                found += best
            return found

        held = len(x) * (parts + _OFFSET) + 4 * 256 * x.shape[1]
        return every(search, asked), held, search

    return peer


PEERS: dict[str, Callable[[Documents, Documents], Peer]] = {
    "float32 MaxSim": whole, "float16 MaxSim": half, "mean vector, float32": mean,
    "tokens pooled by 3, float16": tokens_pooled, "centroid and 2 bits": residual(2), "centroid and 1 bit":
    residual(1), "signs": signs, "signs, queries in float32": signs_of_documents, "faiss PQ m 8, nearest tokens":
    nearest_tokens(8),
}  # fmt: skip
