"""The tree that all tenants share: hierarchical k-means over a sample, with mean distances of vectors to nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.parts.codebook import assigned, kmeans
from holdall.vectors.curator_kernels import descend, leave, parents_of
from holdall.vectors.metrics import METRICS, ready

if TYPE_CHECKING:
    from holdall.vectors.folder import Folder

_FULL = 0.6  # of the most that a leaf may have: what leaves have on average when the tree is made
_KINDS: dict[str, Any] = {"ends": np.int32, "sums": np.float64, "counts": np.int64, "born": np.int64}


def plain(x: np.ndarray) -> np.ndarray:
    """As kernels take it: halves as uint16."""
    return x.view(np.uint16) if x.dtype == np.float16 else x


@dataclass(frozen=True)
class Tree:
    """Nodes [V], each before those below it; below v are v + 1 to ends[v] - 1, and below a leaf is none.

    centroids [V, D] in the type of the vectors; sums and counts: distances of the vectors below to the centroid, and
    how many they are; born: how many they were when the tree was made.
    """

    centroids: np.ndarray
    ends: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    born: np.ndarray
    metric: str

    @classmethod
    def learn(
        cls, sample: np.ndarray, dtype: Any, metric: str, *, branches: int, leaf: float, seed: int
    ) -> Self:
        """sample: [N, D], as `metrics.ready` has them, of which a leaf is to have up to `leaf`."""
        round_ = metric == "cosine"
        middle = sample.mean(0, keepdims=True)
        work = [(np.arange(len(sample)), _stored(middle, dtype, round_)[0], -1)]
        centroids: list[np.ndarray] = []
        above: list[int] = []
        while work:
            rows, centroid, parent = work.pop()
            node = len(centroids)
            centroids.append(centroid)
            above.append(parent)
            if len(rows) <= max(leaf, 1):
                continue
            k = min(branches, max(2, -(-len(rows) // max(1, int(leaf * _FULL)))))
            found = kmeans(sample[rows], k, seed=seed + node, spherical=round_)
            stored = _stored(found, dtype, round_)
            owners = assigned(sample[rows], ready(stored, metric))
            parts = [(rows[owners == c], stored[c], node) for c in range(k)]
            parts = [p for p in parts if len(p[0])]
            if len(parts) > 1:  # else all are the same
                work += parts
        ends = np.arange(1, len(above) + 1, dtype=np.int32)
        for node in range(len(above) - 1, 0, -1):
            ends[above[node]] = max(ends[above[node]], ends[node])
        none = np.zeros(len(ends), np.int64)
        return cls(np.stack(centroids), ends, np.zeros(len(ends)), none, none, metric)

    @cached_property
    def kernel_metric(self) -> int:
        """Of clustering: inner products are clustered by distance."""
        return int(self.metric == "cosine")

    @cached_property
    def parents(self) -> np.ndarray:
        found: np.ndarray = parents_of(self.ends)
        return found

    @property
    def spread(self) -> np.ndarray:
        """float32 [V]: the mean distance to each centroid."""
        return (np.maximum(self.sums, 0) / np.maximum(self.counts, 1)).astype(np.float32)

    def entered(self, vectors: np.ndarray) -> tuple[np.ndarray, Self]:
        """(the leaf int32 of each [n, D], the tree that knows them)."""
        leaves, sums, counts = np.empty(len(vectors), np.int32), self.sums.copy(), self.counts.copy()
        x = ready(vectors, self.metric)
        descend(x, plain(self.centroids), self.ends, self.kernel_metric, leaves, sums, counts)
        return leaves, replace(self, sums=sums, counts=counts)

    def left(self, vectors: np.ndarray, leaves: np.ndarray) -> Self:
        """The tree without vectors [n, D] that are in these leaves."""
        sums, counts = self.sums.copy(), self.counts.copy()
        x = ready(vectors, self.metric)
        leave(x, plain(self.centroids), self.ends, self.kernel_metric, leaves, sums, counts)
        return replace(self, sums=sums, counts=counts)

    def grown(self, leaf: int, times: float) -> bool:
        """Whether a leaf has so many times what it was made for that the tree should be made again."""
        leaves = self.ends == np.arange(1, len(self.ends) + 1)
        return bool((self.counts > times * np.maximum(self.born, leaf))[leaves].any())

    def sections(self) -> dict[str, np.ndarray]:
        return {f"tree/{n}": getattr(self, n) for n in ("centroids", *_KINDS)}

    @classmethod
    def of_sections(cls, folder: Folder, dim: int, dtype: Any, metric: str) -> Self:
        """CorruptArtefact for what `sections` cannot have written."""
        centroids = folder.array("tree/centroids", dtype, 2)
        ends, *rest = (folder.array(f"tree/{n}", kind, 1) for n, kind in _KINDS.items())
        made = cls(centroids, ends, rest[0], rest[1], rest[2], metric)
        fits = centroids.shape == (len(made.ends), dim) and metric in METRICS
        fits = fits and len({len(a) for a in (made.ends, made.sums, made.counts, made.born)}) == 1
        fits = fits and len(made.parents) == len(made.ends) and int(made.counts.min()) >= 0
        if not fits or not (np.isfinite(made.sums).all() and np.isfinite(centroids).all()):
            raise CorruptArtefact(folder.url, "its tree contradicts itself")
        return made


def _stored(centroids: np.ndarray, dtype: Any, round_: bool) -> np.ndarray:
    """In the type of the vectors; where only directions count, whole numbers are as large as they may be."""
    if np.dtype(dtype).kind == "f":
        return centroids.astype(dtype)
    most = np.iinfo(dtype)
    if round_:
        centroids = centroids * (most.max / np.maximum(np.abs(centroids).max(1, keepdims=True), 1e-30))
    return np.clip(np.rint(centroids), most.min, most.max).astype(dtype)
