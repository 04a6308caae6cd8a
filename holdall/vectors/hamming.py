"""Bit strings for centroids, so that few bits differ where centroids are near.

The numbers that k-means gives are names without any order: bits of them say nothing. Here a centroid's number
becomes its place in a balanced tree (bit t = which half of the split at depth t), and then numbers are exchanged in
pairs for as long as that lowers

    cost = sum over k, l of n_k n_l (hamming(k, l) - a |c_k - c_l|^2)^2

with n the vectors of a centroid and `a` the best for the numbers as they are.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.parts.codebook import kmeans

_ROUNDS = 30  # passes over all pairs; fewer where one finds nothing


def tree_labels(centroids: np.ndarray) -> np.ndarray:
    """int64 [K], each of 0 to K - 1 once: halves of halves, split across what parts the two means of a node.

    K is a power of two. The highest bit is the first split; which half is 1 follows the direction in which the node
    before it was split at the same depth, so that a bit says alike things on both sides.
    """
    labels, nodes = np.zeros(len(centroids), np.int64), [np.arange(len(centroids))]
    while len(nodes[0]) > 1:
        halves, last = [], None
        for node in nodes:
            x = centroids[node]
            two = kmeans(x, 2, rounds=10)
            along = two[1] - two[0] if (two[0] != two[1]).any() else x[-1] - x[0]
            along = along if last is None or along @ last >= 0 else -along
            last = along
            order = np.argsort(x @ along, kind="stable")
            halves += [node[np.sort(order[: len(node) // 2])], node[np.sort(order[len(node) // 2 :])]]
        labels *= 2
        for half in halves[1::2]:
            labels[half] += 1
        nodes = halves
    return labels


def swapped(labels: np.ndarray, centroids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same numbers, exchanged in pairs until no exchange lowers `cost`."""
    found, weights = labels.copy(), np.maximum(counts, 1) / max(1, counts.max())
    away = np.maximum(_squares(centroids), 0)
    for _ in range(_ROUNDS):
        if not _exchange(found, _scale(found, away, weights) * away, weights):
            break
    return found


def cost(labels: np.ndarray, centroids: np.ndarray, counts: np.ndarray) -> float:
    """As above, by the definition."""
    bits = np.bitwise_count(labels[:, None] ^ labels)
    away, weights = _squares(centroids), np.outer(counts, counts)
    scale = (weights * bits * away).sum() / max((weights * away * away).sum(), 1e-12)
    return float((weights * np.square(bits - scale * away)).sum())


def _scale(labels: np.ndarray, away: np.ndarray, weights: np.ndarray) -> float:
    """Least squares of bits that differ on squared distances."""
    both = np.outer(weights, weights)
    bits = np.bitwise_count(labels[:, None] ^ labels)
    return float((both * bits * away).sum() / max((both * away * away).sum(), 1e-12))


def _squares(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    sizes = np.square(wide).sum(1)
    return np.asarray(sizes[:, None] + sizes - 2 * wide @ wide.T)


@njit(cache=True, nogil=True)
def _exchange(labels, wanted, weights):  # type: ignore[no-untyped-def]
    """One pass over all pairs; how many were exchanged."""
    count, made = len(labels), 0
    bits = np.empty((count, count))
    for a in range(count):
        for b in range(count):
            bits[a, b] = _differ(a, b)
    for k in range(count):
        for m in range(k):
            gain, a, b = 0.0, labels[k], labels[m]
            for other in range(count):
                if other in (k, m):
                    continue
                c = labels[other]
                to_a, to_b = bits[a, c], bits[b, c]
                now = (
                    weights[k] * (to_a - wanted[k, other]) ** 2 + weights[m] * (to_b - wanted[m, other]) ** 2
                )
                then = (
                    weights[k] * (to_b - wanted[k, other]) ** 2 + weights[m] * (to_a - wanted[m, other]) ** 2
                )
                gain += weights[other] * (now - then)
            if gain > 1e-9:
                labels[k], labels[m] = b, a
                made += 1
    return made


@njit(cache=True, nogil=True)
def _differ(a, b):  # type: ignore[no-untyped-def]
    left, count = a ^ b, 0
    while left:
        left &= left - 1
        count += 1
    return count
