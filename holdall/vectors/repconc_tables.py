"""Code books of vectors: each part of a vector by one entry, or by two that add up, and a rotation where that helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.parts.codebook import assigned, kmeans

faiss: Any = lazy("faiss", extra="vectors")  # its own types are of another release

_BEAM = 16  # entries of the first table that are tried with all of the second
_BLOCK = 8192  # vectors that are coded at once
_LARGE = 1e15  # squares of larger numbers, added, are none of 32 bits


@dataclass(frozen=True)
class Tables:
    """entries float32 [G, L, K, W]: G parts of a vector, up to W numbers each, coded as the sum of L entries (1 or 2).

    rotation float32 [G W, D]: before the vector is cut; None: it is cut as it is, into parts of as many numbers or one
    more, and zeros fill these up. coding: entries that codes are chosen by, where others than `entries` stand for them.
    """

    entries: np.ndarray
    rotation: np.ndarray | None = None
    coding: np.ndarray | None = None

    @classmethod
    def of(cls, entries: Any, rotation: Any, coding: Any, dim: int) -> Self:
        """From a file or a user: CorruptArtefact for what cannot code vectors of that many numbers."""
        fine = isinstance(entries, np.ndarray) and entries.dtype == np.float32 and entries.ndim == 4
        fine = fine and 1 <= entries.shape[0] <= dim and entries.shape[1] in (1, 2)
        fine = fine and entries.shape[3] == -(-dim // entries.shape[0]) and 2 <= entries.shape[2] <= 256
        if not fine or not np.abs(entries).max(initial=0) < _LARGE:
            raise CorruptArtefact("the tables of codes", f"they do not fit {dim} numbers")
        shape = (entries.shape[0] * entries.shape[3], dim)
        if rotation is not None and not (
            rotation.dtype == np.float32 and rotation.shape == shape and np.abs(rotation).max() < _LARGE
        ):
            raise CorruptArtefact("the rotation before the codes", f"it does not fit {dim} numbers")
        other = coding is not None and (coding.dtype != np.float32 or coding.shape != entries.shape)
        if other or (coding is not None and not np.abs(coding).max() < _LARGE):
            raise CorruptArtefact("the tables that codes are chosen by", "they are not like the others")
        return cls(entries, rotation, coding)

    @property
    def wide(self) -> int:
        """Numbers of a vector that is ready to be cut, G W."""
        return int(self.entries.shape[0] * self.entries.shape[3])

    @property
    def parts(self) -> int:
        """Bytes of a code."""
        return int(self.entries.shape[0] * self.entries.shape[1])

    def ready(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, G W] of vectors [N, D]: rotated, or with zeros between parts that are not of one width."""
        if self.rotation is not None:
            turned: np.ndarray = np.ascontiguousarray(x @ self.rotation.T, np.float32)
            return turned
        if x.shape[1] == self.wide:
            return np.ascontiguousarray(x, np.float32)
        out = np.zeros((len(x), self.wide), np.float32)
        out[:, _places(x.shape[1], self.entries.shape[0])] = x
        return out

    def encode(self, x: np.ndarray) -> np.ndarray:
        """uint8 [N, parts] of vectors that are `ready`: of each part the nearest entry, or nearly the nearest pair."""
        out = np.empty((len(x), self.parts), np.uint8)
        groups, layers, _, wide = self.entries.shape
        books = self.entries if self.coding is None else self.coding
        for start in range(0, len(x), _BLOCK):
            block = x[start : start + _BLOCK].reshape(-1, groups, wide)
            for g in range(groups):
                cut, at = np.ascontiguousarray(block[:, g]), slice(g * layers, (g + 1) * layers)
                out[start : start + _BLOCK, at] = _coded(cut, books[g])
        return out

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float32 [N, G W], nearly what was `ready`."""
        groups, layers, _, wide = self.entries.shape
        cut = codes.reshape(len(codes), groups, layers).astype(np.int64)
        found = self.entries[np.arange(groups)[:, None], np.arange(layers), cut]  # [N, G, L, wide]
        whole: np.ndarray = found.sum(2, dtype=np.float32).reshape(len(codes), groups * wide)
        return whole

    def products(self, queries: np.ndarray) -> np.ndarray:
        """float32 [Q, parts, K]: of each part of queries that are `ready` with each entry."""
        groups, layers, entries, wide = self.entries.shape
        cut = queries.reshape(-1, groups, wide).transpose(1, 0, 2)  # [G, Q, wide]
        flat = self.entries.reshape(groups, layers * entries, wide).transpose(0, 2, 1)
        found = np.matmul(cut, flat).transpose(1, 0, 2)
        return np.ascontiguousarray(found.reshape(len(queries), groups * layers, entries), np.float32)


def _coded(x: np.ndarray, tables: np.ndarray) -> np.ndarray:
    if len(tables) == 1:
        return assigned(x, tables[0])[:, None].astype(np.uint8)
    from holdall.vectors.repconc_kernels import nearest_pairs

    sizes = np.square(tables).sum(-1)
    first, second = (sizes[n] - 2 * (x @ tables[n].T) for n in (0, 1))
    out = np.empty((len(x), 2), np.uint8)
    nearest_pairs(first, second, 2 * tables[0] @ tables[1].T, min(_BEAM, tables.shape[1]), out)
    return out


def _places(dim: int, groups: int) -> np.ndarray:
    """Where each number of a vector stands among parts that all have as many as the widest."""
    wide = -(-dim // groups)
    cuts = np.array_split(np.arange(dim), groups)
    return np.concatenate([g * wide + np.arange(len(cut)) for g, cut in enumerate(cuts)])


def learned(
    x: np.ndarray, parts: int, layers: int, entries: int, rounds: int, *, turned: bool = False, seed: int = 0
) -> Tables:
    """From vectors [N, D]; parts / layers is at most D. turned: with OPQ's rotation."""
    groups, dim = parts // layers, x.shape[1]
    if parts % layers or not 1 <= groups <= dim:
        raise BadInput("parts", parts, f"{layers} to {layers * dim}, in steps of {layers}")
    wide = -(-dim // groups)
    rotation = opq(x, groups, entries) if turned else None
    blank = Tables(np.zeros((groups, layers, 2, wide), np.float32), rotation)
    cut = blank.ready(x).reshape(len(x), groups, wide)
    made = [_part(np.ascontiguousarray(cut[:, g]), layers, entries, rounds, seed + g) for g in range(groups)]
    return Tables(np.stack(made), rotation)


def _part(x: np.ndarray, layers: int, entries: int, rounds: int, seed: int) -> np.ndarray:
    """[L, K, d]: k-means; for two layers k-means of what is left, then `rounds` of coding and of least squares."""
    first = kmeans(x, entries, seed=seed, rounds=max(1, rounds))
    if layers == 1:
        return first[None]
    rest = x - first[assigned(x, first)]
    tables = np.stack([first, kmeans(rest, entries, seed=seed + 1, rounds=max(1, rounds))])
    for _ in range(rounds):
        tables = _solved(x, _coded(x, tables), tables)
    return tables


def _solved(x: np.ndarray, codes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The tables [2, K, d] that with these codes come nearest to x; a little drawn to what they were."""
    entries = before.shape[1]
    a, b = codes.astype(np.int64).T
    b = b + entries
    together = np.zeros((2 * entries, 2 * entries))
    together[:entries, entries:] = np.bincount(a * entries + b - entries, minlength=entries**2).reshape(
        entries, -1
    )
    together[entries:, :entries] = together[:entries, entries:].T
    counts = np.bincount(np.concatenate([a, b]), minlength=2 * entries)
    pull = 1e-3 * len(x) / entries
    together[np.arange(2 * entries), np.arange(2 * entries)] = counts + pull
    sums = np.stack([np.bincount(a, c, 2 * entries) + np.bincount(b, c, 2 * entries) for c in x.T], 1)
    found = np.linalg.solve(together, sums + pull * before.reshape(2 * entries, -1))
    return found.reshape(before.shape).astype(np.float32)


def opq(x: np.ndarray, groups: int, entries: int, rounds: int = 12, most: int = 16_384) -> np.ndarray:
    """faiss's rotation [G W, D], after which parts of vectors say less about each other."""
    x = np.ascontiguousarray(x[np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)], np.float32)
    bits = max(1, min(entries, len(x)).bit_length() - 1)
    wide = groups * -(-x.shape[1] // groups)
    learner, quantiser = faiss.OPQMatrix(x.shape[1], groups, wide), faiss.ProductQuantizer(wide, groups, bits)
    quantiser.cp.min_points_per_centroid = 1
    learner.niter, learner.niter_pq, learner.niter_pq_0, learner.pq = rounds, 2, 8, quantiser
    learner.train(x)
    found: np.ndarray = faiss.vector_to_array(learner.A).reshape(wide, x.shape[1])
    return found.copy()
