"""Residual vector quantisation: a vector as one entry of each of several books, whose sum it is; each book holds what
the ones before it missed.

books = Books.learnt(x, stages=6, codes=64)        # k-means, stage by stage
codes = books.encode(x); books.decode(codes)
books.follow(x)                                    # a step towards what x has become, as training goes on
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 10
_LEAST = 1e-5  # of an entry that nothing uses any more


class Books:
    """tables float32 [stages, codes, D]."""

    def __init__(self, tables: NDArray[Any]):
        self.tables = np.ascontiguousarray(tables, np.float32)
        self._counts: NDArray[Any] | None = None
        self._sums: NDArray[Any] | None = None

    @classmethod
    def learnt(cls, x: NDArray[Any], stages: int, codes: int, seed: int = 0) -> Books:
        """Of fewer vectors than codes there are as many codes."""
        rng = np.random.default_rng(seed)
        rest = np.array(x, np.float32)
        tables = np.zeros((stages, min(codes, len(x)), x.shape[1]), np.float32)
        for table in tables:
            table[:] = _means(rest, len(table), rng)
            rest -= table[_nearest(rest, table)]
        return cls(tables)

    def encode(self, x: NDArray[Any]) -> NDArray[Any]:
        """uint8 [N, stages]: of each book in turn the entry that misses least."""
        codes, _ = self._coded(x)
        return codes.astype(np.uint8)

    def decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        """float32 [N, D]."""
        out = np.zeros((len(codes), self.tables.shape[2]), np.float32)
        for table, column in zip(self.tables, codes.T, strict=True):
            out += table[column]
        return out

    def follow(self, x: NDArray[Any], decay: float = 0.8) -> NDArray[Any]:
        """What x [N, D] is taken for, float32; then each entry goes on to the running mean of what it stood for."""
        codes, rests = self._coded(x)
        taken = self.decode(codes)
        stages, size, dim = self.tables.shape
        if self._counts is None or self._sums is None:
            self._counts = np.stack([np.bincount(c, minlength=size) for c in codes.T]).astype(np.float32)
            self._sums = self.tables * self._counts[:, :, None]
        for s in range(stages):
            count = np.bincount(codes[:, s], minlength=size)
            total = np.stack([np.bincount(codes[:, s], rests[s][:, d], size) for d in range(dim)], 1)
            self._counts[s] += (1 - decay) * (count - self._counts[s])
            self._sums[s] += np.float32(1 - decay) * (total.astype(np.float32) - self._sums[s])
            used = self._counts[s] > _LEAST
            self.tables[s, used] = self._sums[s, used] / self._counts[s, used, None]
        return taken

    def _coded(self, x: NDArray[Any]) -> tuple[NDArray[Any], list[NDArray[Any]]]:
        """(int64 [N, stages], what was left before each stage [N, D])."""
        rest, codes, rests = np.array(x, np.float32), [], []
        for table in self.tables:
            codes.append(_nearest(rest, table))
            rests.append(rest)
            rest = rest - table[codes[-1]]
        return np.stack(codes, 1), rests


def naive_encode(tables: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """The slow truth of `Books.encode`."""
    rest, codes = np.array(x, np.float32), []
    for table in tables:
        codes.append(((rest[:, None] - table) ** 2).sum(2).argmin(1))
        rest = rest - table[codes[-1]]
    return np.stack(codes, 1)


def _nearest(x: NDArray[Any], book: NDArray[Any]) -> NDArray[Any]:
    from holdall.splats.residual_near import nearest

    out = np.zeros(len(x), np.int64)
    nearest(np.ascontiguousarray(x), np.ascontiguousarray(book), out)
    return out


def _means(x: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[Any]:
    """Lloyd's k-means [k, D], from vectors drawn far apart; an entry that nothing uses stays where it is."""
    found = x[_apart(x, k, rng)]
    for _ in range(_ROUNDS):
        mine = _nearest(x, found)
        count = np.bincount(mine, minlength=k)
        total = np.stack([np.bincount(mine, x[:, d], k) for d in range(x.shape[1])], 1)
        found = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], found).astype(np.float32)
    return found


def _apart(x: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[Any]:
    """k-means++: each drawn by the square of how far it is from those before it."""
    chosen = [int(rng.integers(len(x)))]
    off = ((x - x[chosen[0]]) ** 2).sum(1).astype(np.float64)
    while len(chosen) < k:
        total = off.cumsum()
        at = int(np.searchsorted(total, rng.random() * total[-1], side="right")) if total[-1] > 0 else 0
        chosen.append(min(at, len(x) - 1))
        off = np.minimum(off, ((x - x[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)
