"""A sparse matrix as the kernels of `spmm_kernels` read it, and as files keep it.

To run: one stream `bias, weight, weight, ..., bias, weight, ...` in the order of rows, how many non-zeros each row has,
and from each non-zero the signed step to the channel of the next one. The last step leads back to the first non-zero,
so all steps add up to 0 and each strip of pixels finds the stream as the one before found it. NR rows may share their
non-zeros: the stream then holds NR biases and NR weights at a time, and what follows is of groups, not of rows.

On disk: the stream in half or single precision, two bytes a group for its count, and a byte a non-zero: how many
channels lie between it and the one before (255: so many lie there, and more follow).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.weights.pruning import cuts

_MORE = 255
_LEAST = np.finfo(np.float32).tiny  # anything nearer to 0 slows multiply-adds down by a hundred


@dataclass(frozen=True)
class SparseRows:
    """A matrix [O, I] with O a multiple of nr.

    stream: [nr * (groups + non-zeros)] float32. columns: [non-zeros] int32. counts: [groups] int32.
    """

    shape: tuple[int, int]
    nr: int
    stream: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray, nr: int = 1) -> SparseRows:
        """Whatever any of NR neighbouring rows has is a non-zero of all; O is a multiple of nr."""
        o, i = weight.shape
        weight = np.where(np.abs(weight) < _LEAST, np.float32(0), weight).astype(np.float32)
        groups = weight.reshape(o // nr, nr, i).transpose(0, 2, 1)  # [groups, I, nr]
        kept = (groups != 0).any(2)
        at, columns = np.nonzero(kept)
        counts = kept.sum(1).astype(np.int32)
        stream = np.empty((len(counts) + len(columns), nr), np.float32)
        biases = np.cumsum(counts + 1) - counts - 1
        stream[biases] = bias.reshape(-1, nr)
        others = np.ones(len(stream), bool)
        others[biases] = False
        stream[others] = groups[at, columns]
        return cls((o, i), nr, stream.reshape(-1), columns.astype(np.int32), counts)

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights [O, I] and biases [O]."""
        stream = self.stream.reshape(-1, self.nr)
        biases = np.cumsum(self.counts + 1) - self.counts - 1
        others = np.ones(len(stream), bool)
        others[biases] = False
        weight = np.zeros((len(self.counts), self.shape[1], self.nr), np.float32)
        weight[np.repeat(np.arange(len(self.counts)), self.counts), self.columns] = stream[others]
        return weight.transpose(0, 2, 1).reshape(self.shape), stream[biases].reshape(-1)

    @property
    def first(self) -> int:
        """The first non-zero's channel."""
        return int(self.columns[0]) if len(self.columns) else 0

    def steps(self, stride: int) -> np.ndarray:
        """Bytes from each non-zero's channel to the next one's, where channels are `stride` floats long."""
        far = (np.roll(self.columns, -1).astype(np.int64) - self.columns) * stride * 4
        if len(far) and np.abs(far).max() >= 2**31:
            raise OverflowError("channels of more than 2 GB")
        return far.astype(np.int32)

    def gaps(self) -> np.ndarray:
        """The bytes that say where the non-zeros are."""
        starts = np.cumsum(self.counts) - self.counts
        before = np.roll(self.columns, 1)
        before[starts[self.counts > 0]] = -1
        wide = self.columns - before - 1
        more = wide // _MORE
        out = np.full(len(wide) + int(more.sum()), _MORE, np.uint8)
        out[np.cumsum(more + 1) - 1] = wide % _MORE
        return out

    @classmethod
    def stored(
        cls, shape: tuple[int, int], nr: int, stream: np.ndarray, gaps: np.ndarray, counts: np.ndarray
    ) -> SparseRows:
        """The inverse: `gaps` are exactly this matrix's."""
        counts = counts.astype(np.int32)
        last = gaps != _MORE
        many = int(counts.sum(dtype=np.int64))
        if int(last.sum()) != many or (len(gaps) and not last[-1]):
            raise CorruptArtefact("a sparse matrix", f"{int(last.sum())} places for {many} non-zeros")
        if len(counts) * nr != shape[0] or len(stream) != nr * (len(counts) + many):
            raise CorruptArtefact("a sparse matrix", f"{len(stream)} weights for {many} non-zeros of {shape}")
        reached = np.cumsum(np.where(last, gaps.astype(np.int64) + 1, _MORE))[last]
        starts = np.cumsum(counts) - counts
        base = np.where(starts > 0, np.append(0, reached)[np.minimum(starts, many)], 0)
        columns = reached - np.repeat(base, counts) - 1
        if len(columns) and columns.max() >= shape[1]:
            raise CorruptArtefact("a sparse matrix", f"a non-zero in column {columns.max()} of {shape}")
        return cls(shape, nr, stream.astype(np.float32), columns.astype(np.int32), counts)


def pieces(weight: np.ndarray, bias: np.ndarray, nr: int) -> list[SparseRows]:
    """The whole groups of NR rows, then the rows that are left, one by one."""
    return [SparseRows.of(weight[a:b], bias[a:b], n) for a, b, n in cuts(len(weight), nr)]


def places(shape: tuple[int, int], nr: int) -> list[tuple[tuple[int, int], int]]:
    """Shape and NR of each of the `pieces` of a matrix."""
    return [((b - a, shape[1]), n) for a, b, n in cuts(shape[0], nr)]
