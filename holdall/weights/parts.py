"""The loaded blocks of one piece of a matrix, and what can be computed from them without unpacking it."""

from __future__ import annotations

import numpy as np

from holdall.weights.iavd import Block
from holdall.weights.layout import Piece

WORTH = 6_000_000  # signs of a product that are worth another thread; other kernels take four times as long a sign


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

    def dense(self, out: np.ndarray, rows: slice | np.ndarray = slice(None)) -> None:
        """Some rows of W_hat into `out` [rows, n] float32."""
        from holdall.parts.rows import by_rows
        from holdall.weights.kernels import rebuild

        words, a = np.ascontiguousarray(self.words[:, rows]), np.ascontiguousarray(self.a[:, rows])
        by_rows(
            rebuild,
            len(out),
            4 * words.size * 16,
            words,
            a.astype(np.float32),
            self.b.astype(np.float32),
            out,
        )

    def product(self, x: np.ndarray, y: np.ndarray) -> None:
        """y [m] = W_hat x [n]."""
        from holdall.parts.rows import by_rows
        from holdall.weights.kernels import product

        a, b = self.a.astype(np.float32), self.b.astype(np.float32)
        by_rows(product, len(y), self.words.size * 16 / WORTH, self.words, a, b, x, y)


class Scratch:
    """One buffer that all layers rebuild into, a layer at a time."""

    def __init__(self) -> None:
        self._flat = np.zeros(0, np.float32)

    def take(self, m: int, n: int) -> np.ndarray:
        if self._flat.size < m * n:
            self._flat = np.zeros(m * n, np.float32)
        return self._flat[: m * n].reshape(m, n)
