"""Heads in memory: a byte a number, in groups, so that a query looks at some hundred of them (faiss underneath)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.optional import lazy
from holdall.parts.codebook import assigned, fill, kmeans
from holdall.vectors.folder import Folder

faiss: Any = lazy("faiss", extra="vectors")
_LOOKS = 24  # groups that a query looks into, or as many as hold four times the heads it wants


class Heads:
    """Made of sections: heads uint8 [H, D], for low + step * code in each dimension (heads/scale [2, D]); groups
    [G, D], and which of them each head is in (groups/of [H]). In memory only faiss's index of them stays."""

    def __init__(self, made: Mapping[str, np.ndarray]):
        codes, centroids, owners = made["heads"], made["groups"], made["groups/of"]
        self.low, self.step = made["heads/scale"]
        self.count, self.dim = codes.shape
        self._coarse = faiss.IndexFlatL2(self.dim)
        self._coarse.add(centroids)
        kind, groups = faiss.ScalarQuantizer.QT_8bit, len(centroids)
        self._index = faiss.IndexIVFScalarQuantizer(
            self._coarse, self.dim, groups, kind, faiss.METRIC_L2, False
        )
        # faiss takes a code for the middle of the 255th part of a width that begins at `low`
        trained = np.concatenate([self.low - self.step / 2, self.step * 255])
        faiss.copy_array_to_vector(trained, self._index.sq.trained)
        self._index.is_trained = True
        fill(self._index, owners, codes)
        self._groups = groups

    @staticmethod
    def sections(x: np.ndarray, whole: bool, seed: int = 0) -> dict[str, np.ndarray]:
        """Of vectors [H, D], float32. whole: they are whole numbers from 0 to 255 and stay so."""
        low, high = (np.zeros(x.shape[1]), np.full(x.shape[1], 255.0)) if whole else (x.min(0), x.max(0))
        scale = np.stack([low, np.maximum((high - low) / 255, 1e-20)]).astype(np.float32)
        groups = kmeans(x, max(1, round(len(x) ** 0.5)), seed=seed, rounds=10)
        return _sections(x, scale, groups)

    @staticmethod
    def renewed(made: Mapping[str, np.ndarray], x: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
        """With other heads: on the same steps and in the same groups, or in new ones where there are far more."""
        groups = made["groups"]
        if len(x) > 2 * len(made["heads"]) or len(groups) > len(x):
            groups = kmeans(x, max(1, round(len(x) ** 0.5)), seed=seed, rounds=10)
        return _sections(x, made["heads/scale"], groups)

    @staticmethod
    def decoded(made: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [H, D]."""
        low, step = made["heads/scale"]
        found: np.ndarray = made["heads"] * step + low
        return found

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(squared distances [Q, k], heads [Q, k], -1 behind the last) of queries [Q, D], float32."""
        k = min(k, self.count)
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        looks = max(_LOOKS, 4 * k * self._groups // self.count)
        how = faiss.SearchParametersIVF(nprobe=min(looks, self._groups))
        found: tuple[np.ndarray, np.ndarray] = self._index.search(queries, k, params=how)
        return found

    @staticmethod
    def bytes_of(count: int, dim: int) -> int:
        """In memory: codes, their numbers, and the middles of groups."""
        return count * (dim + 8) + 4 * dim * max(1, round(count**0.5)) + 8 * dim

    @property
    def nbytes(self) -> int:
        return self.bytes_of(self.count, self.dim)

    @classmethod
    def of_sections(cls, folder: Folder, dim: int) -> Heads:
        made = {
            "heads": folder.array("heads", np.uint8, 2), "heads/scale": folder.array("heads/scale", np.float32, 2),
            "groups": folder.array("groups", np.float32, 2), "groups/of": folder.array("groups/of", np.int32, 1),
        }  # fmt: skip
        heads, scale, groups, of = made.values()
        fits = (
            heads.shape[1] == groups.shape[1] == dim and scale.shape == (2, dim) and len(of) == len(heads) > 0
        )
        fits = fits and len(groups) > 0 and bool(np.isfinite(scale).all() and np.isfinite(groups).all())
        if not fits or of.min() < 0 or of.max() >= len(groups):
            raise CorruptArtefact(folder.url, "its heads contradict each other")
        return cls(made)


def _sections(x: np.ndarray, scale: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    codes = np.clip(np.rint((x - scale[0]) / scale[1]), 0, 255).astype(np.uint8)
    of = assigned(x, groups).astype(np.int32)
    return {"heads": codes, "heads/scale": scale, "groups": groups, "groups/of": of}
