"""The loaded blocks of one piece of a matrix, and what can be computed from them without unpacking it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.weights.iavd import Block
from holdall.weights.layout import Piece

if TYPE_CHECKING:
    import torch

WORTH = 6_000_000  # signs that are worth another thread
_FEW = 128  # up to so many tokens are multiplied from the signs; for more, W is rebuilt once
_NEAR = 1 << 18  # weights rebuilt at a time: 1 MB, half of a core's second cache,
_LEAST = 64  # but not fewer rows than a product pays for


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


class Pieces:
    """A matrix as its pieces, one below the other: what a packed module holds."""

    def __init__(self, parts: list[Part], scratch: Scratch):
        self.parts, self._scratch = parts, scratch

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[-1].piece.stop, self.parts[0].piece.columns

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        out = torch.empty(len(x), self.shape[0])
        if len(x) <= _FEW:
            spare = -x.shape[1] % 16
            tokens = torch.nn.functional.pad(x, (0, spare)) if spare else x
            for part in self.parts:
                part.product(tokens.numpy(), out.numpy(), part.piece.start)
        else:
            for part in self.parts:
                self._many(part, x, out[:, part.piece.start : part.piece.stop])
        return out

    def _many(self, part: Part, x: torch.Tensor, out: torch.Tensor) -> None:
        """Some rows of W_hat at a time are rebuilt once for all tokens, few enough to stay in a near cache."""
        import torch

        piece, factors = part.piece, part.factors()
        step = max(_LEAST, _NEAR // piece.columns)
        for start in range(0, piece.rows, step):
            stop = min(start + step, piece.rows)
            weight = self._scratch.take(stop - start, piece.columns)
            part.dense(weight, start, factors)
            out[:, start:stop] = x @ torch.from_numpy(weight).T

    def rows(self, ids: np.ndarray) -> np.ndarray:
        out = np.zeros((len(ids), self.shape[1]), np.float32)
        for part in self.parts:
            here = np.flatnonzero((ids >= part.piece.start) & (ids < part.piece.stop))
            if len(here):
                out[here] = part.rows(ids[here] - part.piece.start)
        return out

    def dense(self) -> np.ndarray:
        out = np.zeros(self.shape, np.float32)
        for part in self.parts:
            part.dense(out[part.piece.start : part.piece.stop])
        return out
