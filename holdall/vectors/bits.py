"""Which rows are there, a bit each: the number of a row among those that are, and the row of a number."""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 4096  # rows between two counts


class Bits:
    """Of flags bool [N]. In memory N / 8 bytes, and eight for every 4,096 rows."""

    def __init__(self, flags: np.ndarray):
        self.size = len(flags)
        self.packed = np.packbits(flags, bitorder="little")
        starts = np.arange(0, self.size, _BLOCK)
        blocks = np.add.reduceat(flags, starts, dtype=np.int64) if self.size else np.zeros(0, np.int64)
        self.before = np.concatenate([[0], np.cumsum(blocks, dtype=np.int64)]).astype(np.int64)

    @classmethod
    def of(cls, packed: np.ndarray, size: int) -> Bits:
        return cls(np.unpackbits(packed, count=size, bitorder="little").astype(bool))

    @staticmethod
    def bytes_of(size: int) -> int:
        return -(-size // 8) + 8 * (-(-size // _BLOCK) + 1)

    @property
    def count(self) -> int:
        return int(self.before[-1])

    @property
    def nbytes(self) -> int:
        return int(self.packed.nbytes + self.before.nbytes)

    @property
    def flags(self) -> np.ndarray:
        """bool [N], made anew."""
        return np.unpackbits(self.packed, count=self.size, bitorder="little").astype(bool)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """bool: whether each of these rows, 0 to N - 1, is there."""
        found: np.ndarray = (self.packed[rows >> 3] >> (rows & 7)) & 1 > 0
        return found

    def rank(self, rows: np.ndarray) -> np.ndarray:
        """How many are there before each row."""
        out = np.empty(rows.shape, np.int64)
        _rank(self.packed, self.before, np.ascontiguousarray(rows, np.int64).reshape(-1), out.reshape(-1))
        return out

    def select(self, numbers: np.ndarray) -> np.ndarray:
        """The row of each number, 0 to count - 1."""
        out = np.empty(numbers.shape, np.int64)
        _select(
            self.packed, self.before, np.ascontiguousarray(numbers, np.int64).reshape(-1), out.reshape(-1)
        )
        return out


@njit(nogil=True, cache=True)
def _ones(byte):  # type: ignore[no-untyped-def]
    count = 0
    while byte:
        byte &= byte - 1
        count += 1
    return count


@njit(nogil=True, cache=True)
def _rank(packed, before, rows, out):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        block = rows[i] // _BLOCK
        found = before[block]
        for at in range(block * (_BLOCK // 8), rows[i] >> 3):
            found += _ones(np.int64(packed[at]))
        rest = rows[i] & 7
        out[i] = found + (_ones(np.int64(packed[rows[i] >> 3]) & ((1 << rest) - 1)) if rest else 0)


@njit(nogil=True, cache=True)
def _select(packed, before, numbers, out):  # type: ignore[no-untyped-def]
    for i in range(len(numbers)):
        block = np.searchsorted(before, numbers[i], side="right") - 1
        left, at = numbers[i] - before[block], block * (_BLOCK // 8)
        while True:
            here = _ones(np.int64(packed[at]))
            if left < here:
                break
            left -= here
            at += 1
        byte, bit = np.int64(packed[at]), 0
        while True:
            if (byte >> bit) & 1:
                if left == 0:
                    break
                left -= 1
            bit += 1
        out[i] = 8 * at + bit
