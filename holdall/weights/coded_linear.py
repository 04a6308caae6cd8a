"""Coded matrices as running modules hold them. Imported only when a model is opened, for torch's sake."""

from __future__ import annotations

import numpy as np
import torch

from holdall.parts.rows import by_rows
from holdall.weights.coded import Band, Coded
from holdall.weights.coded_kernels import Cut, Tokens, looked_up, mix_of, products, spread

_WORTH = 6_000_000  # products that are worth another thread
_MANY = 64  # tokens from which a palette's values are laid out once for all


class CodedMatrix:
    """A coded matrix that multiplies: what a packed module holds.

    eight: tokens are rounded to 8 bits, not 16: half the work where there are many, for a little quality.
    """

    def __init__(self, coded: Coded, eight: bool = False):
        self.coded, self.eight = coded, eight
        self._bands = [_Running(band) for band in coded.bands]

    @property
    def shape(self) -> tuple[int, int]:
        return self.coded.shape

    @property
    def nbytes(self) -> int:
        return self.coded.nbytes

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T [T, O] for float32 x [T, I]."""
        out = torch.empty(len(x), self.shape[0])
        ready: dict[int, Tokens] = {}
        for band in self._bands:
            group = band.band.group
            if band.whole and group not in ready:
                ready[group] = Tokens(x.numpy(), band.cut, self.eight)
            band.multiply(x, ready.get(group), out)
        return out

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self.coded.rows(ids)

    def dense(self) -> np.ndarray:
        return self.coded.dense()


class _Running:
    """A band and what the kernels take of it."""

    def __init__(self, band: Band):
        self.band, self.cut, self.width = band, Cut(band.columns, band.group), (0,) * band.bits
        self.scale = band.scale.view(np.uint16)
        self.low = self.scale if band.low is None else band.low.view(np.uint16)
        self.whole = band.table is None  # its products are made of whole numbers
        if band.table is None:
            self.mix = mix_of(band.level, band.bits)
        else:
            self.table = np.zeros(max(16, len(band.table)), np.float32)
            self.table[: len(band.table)] = band.table

    def multiply(self, x: torch.Tensor, tokens: Tokens | None, out: torch.Tensor) -> None:
        band, cut = self.band, self.cut
        where = (band.rows, out.numpy())
        work = len(x) * band.tiles.size * 8 / band.bits / _WORTH
        if tokens is not None:
            grid = (self.scale, self.low, self.mix, cut.begins, cut.owners)
            given = (tokens.x, tokens.xs, tokens.sums, *where)
            by_rows(products, len(band.tiles), work, self.width, band.tiles, *grid, *given)
        elif len(x) < _MANY:
            laid = np.zeros((len(x), cut.width), np.float32)
            spread(x.numpy(), cut.begins, cut.firsts, laid)
            table = (self.scale, self.table, cut.begins, cut.owners)
            by_rows(looked_up, len(band.tiles), work, self.width, band.tiles, *table, laid, *where)
        else:
            self._many(x, out)

    def _many(self, x: torch.Tensor, out: torch.Tensor) -> None:
        step = max(64, (1 << 18) // self.band.columns)
        for start in range(0, len(self.band.rows), step):
            which = np.arange(start, min(start + step, len(self.band.rows)))
            weight = torch.from_numpy(self.band.dense(which))
            out[:, torch.from_numpy(self.band.rows[which]).long()] = x @ weight.T
