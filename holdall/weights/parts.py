"""The loaded blocks of one piece of a matrix, and what can be computed from them without unpacking it."""

from __future__ import annotations

import numpy as np

from holdall.weights.iavd import Block
from holdall.weights.layout import Piece

WORTH = 6_000_000  # signs that are worth another thread


class Part:
    """The blocks of one piece that are loaded, stacked for the kernels.

    words: [L, m, G] sign words of 16 columns; a: [L, m, k] and b: [L, k, 16 G] float16.
    """

    def __init__(self, piece: Piece):
        groups = -(-piece.columns // 16)
        self.piece = piece
        self.words = np.zeros((0, piece.rows, groups), np.uint16)
        self.a = np.zeros((0, piece.rows, piece.rank), np.float16)
        self.b = np.zeros((0, piece.rank, 16 * groups), np.float16)

    def resize(self, levels: int) -> None:
        """Room for `levels` blocks, in one piece of memory each; what is there stays, and what is freed is freed."""
        keep = min(levels, len(self.words))
        for field in ("words", "a", "b"):
            old = getattr(self, field)
            new = np.zeros((levels, *old.shape[1:]), old.dtype)
            new[:keep] = old[:keep]
            setattr(self, field, new)

    def put(self, level: int, block: Block) -> None:
        from holdall.weights.kernels import to_words

        self.words[level] = to_words(block.signs)
        self.a[level] = block.a
        self.b[level, :, : self.piece.columns] = block.b

    @property
    def levels(self) -> int:
        return len(self.words)

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.a.nbytes + self.b.nbytes

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b as the kernels take them."""
        return widened(self.a), widened(self.b)

    def dense(
        self, out: np.ndarray, start: int = 0, factors: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        """Rows of W_hat from `start` on into `out` [rows, n] float32. factors: what `factors` gave, for many calls."""
        from holdall.parts.rows import by_rows
        from holdall.weights.kernels import rebuild

        work = self.levels * out.size / WORTH
        by_rows(rebuild, len(out), work, self.words, *(factors or self.factors()), out, start)

    def rows(self, which: np.ndarray) -> np.ndarray:
        """Some rows of W_hat [len(which), n] float32."""
        from holdall.weights.kernels import rebuild

        out = np.zeros((len(which), self.piece.columns), np.float32)
        words, a = np.ascontiguousarray(self.words[:, which]), np.ascontiguousarray(self.a[:, which])
        rebuild(words, widened(a), widened(self.b), out, 0, 0, len(which))
        return out

    def product(self, x: np.ndarray, y: np.ndarray, start: int = 0) -> None:
        """x W_hat^T [T, m] into y [T, .] from column `start` on, for x [T, 16 G] with zeros behind the last column."""
        from holdall.parts.rows import by_rows
        from holdall.weights.kernels import products

        by_rows(
            products, self.piece.rows, self.words.size * 16 / WORTH, self.words, *self.factors(), x, y, start
        )


def widened(x: np.ndarray) -> np.ndarray:
    """As float32; torch does it six times as fast as numpy, and begins at a multiple of 64 bytes."""
    import torch

    return torch.from_numpy(x).float().numpy()


class Scratch:
    """One buffer that all layers rebuild into, a layer at a time."""

    def __init__(self) -> None:
        self._flat = np.zeros(0, np.float32)

    def take(self, m: int, n: int) -> np.ndarray:
        if self._flat.size < m * n:
            self._flat = np.zeros(m * n, np.float32)
        return self._flat[: m * n].reshape(m, n)
