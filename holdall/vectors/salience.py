"""Which vectors of a document or query to keep: the most salient, at least one of each, in their order."""

from __future__ import annotations

import math

import numpy as np


def kept(salience: np.ndarray, offsets: np.ndarray, share: float) -> np.ndarray:
    """bool [sum M]: of each document ceil(share M) of the M vectors that are no padding (-inf), the first among
    equals.

    A document of padding alone keeps its first vector.
    """
    sizes = np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((-salience, owner))  # stable: documents in their order, the most salient first
    rank = np.empty(len(salience), np.int64)
    rank[order] = np.arange(len(salience)) - offsets[owner[order]]
    real = np.add.reduceat(salience > -np.inf, offsets[:-1]) if len(sizes) else sizes
    most = np.array([max(1, math.ceil(share * int(n) - 1e-9)) for n in real], np.int64)
    return np.asarray(rank < most[owner])


def norms(rows: np.ndarray) -> np.ndarray:
    """float32 [R]: lengths of vectors as they came."""
    return np.linalg.norm(rows.astype(np.float32), axis=1)


def rarity(held: np.ndarray, count: int) -> np.ndarray:
    """float32 [K]: log((N + 1) / (n + 1)), where n of N documents have a vector of that centroid."""
    return np.log((count + 1) / (held + 1)).astype(np.float32)
