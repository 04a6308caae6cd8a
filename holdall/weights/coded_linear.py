"""Coded matrices as running modules hold them. Imported only when a model is opened, for torch's sake."""

from __future__ import annotations

import numpy as np
import torch

from holdall.parts.rows import by_rows
from holdall.weights.coded import Band, Coded
from holdall.weights.coded_kernels import Cut, Tokens, looked_up, mix_of, products, spread

_WORTH = 6_000_000  # products that are worth another thread
_MANY = 32  # tokens from which weights in float32 are laid out once for all


class Inputs:
    """Tokens [T, I], made ready once for all matrices that take them; `renew` after x has changed."""

    def __init__(self, x: np.ndarray):
        self.x = x
        self._whole: dict[tuple[int, bool], Tokens] = {}
        self._laid: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._stale: set[object] = set()

    def renew(self) -> None:
        self._stale = {*self._whole, *self._laid}

    def whole(self, cut: Cut, eight: bool) -> Tokens:
        key = (cut.group, eight)
        if key not in self._whole:
            self._whole[key] = Tokens(self.x, cut, eight)
        elif key in self._stale:
            self._whole[key].take(self.x)
            self._stale.discard(key)
        return self._whole[key]

    def laid(self, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
        """As float32, and the sums of blocks."""
        key, tokens = cut.group, len(self.x)
        if key not in self._laid:
            sums = np.empty((tokens, len(cut.owners)), np.float32)
            self._laid[key] = (np.zeros((tokens, cut.width), np.float32), sums)
            self._stale.add(key)
        if key in self._stale:
            spread(self.x, cut.begins, cut.firsts, *self._laid[key])
            self._stale.discard(key)
        return self._laid[key]


class CodedMatrix:
    """A coded matrix that multiplies: what a packed module holds.

    activations: bits that tokens are rounded to, 8 or 16, or 32 for float32; palettes know float32 only.
    """

    def __init__(self, coded: Coded, activations: int = 16):
        self.coded, self.activations = coded, activations
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
        self.into(Inputs(x.numpy()), out.numpy())
        return out

    def into(self, given: Inputs, out: np.ndarray) -> None:
        """The same, into an array [T, O]."""
        for band in self._bands:
            band.into(given, out, self.activations)

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
        self.mix = mix_of(band.level, band.bits)
        self.table = np.arange(max(16, 1 << band.bits), dtype=np.float32)
        if band.table is not None:
            self.table[: len(band.table)] = band.table
        self._work = len(band.rows) * band.columns / _WORTH

    def into(self, given: Inputs, out: np.ndarray, activations: int) -> None:
        if activations < 32 and self.band.table is None:
            self.multiply(given.whole(self.cut, activations == 8), out)
        elif len(given.x) < _MANY:
            band, cut, work = self.band, self.cut, len(out) * self._work
            grid = (self.scale, self.low, self.mix, self.table, cut.begins, cut.owners)
            what = (*grid, *given.laid(cut), band.rows, out)
            by_rows(looked_up, len(band.tiles), work, self.width, band.tiles, *what)
        else:
            self._many(torch.from_numpy(given.x), torch.from_numpy(out))

    def multiply(self, tokens: Tokens, out: np.ndarray) -> None:
        band, cut, work = self.band, self.cut, len(out) * self._work
        grid = (self.scale, self.low, self.mix, cut.begins, cut.owners)
        what = (*grid, tokens.x, tokens.xs, tokens.sums, band.rows, out)
        by_rows(products, len(band.tiles), work, self.width, band.tiles, *what)

    def _many(self, x: torch.Tensor, out: torch.Tensor) -> None:
        step = max(64, (1 << 18) // self.band.columns)
        for start in range(0, len(self.band.rows), step):
            which = np.arange(start, min(start + step, len(self.band.rows)))
            weight = torch.from_numpy(self.band.dense(which))
            out[:, torch.from_numpy(self.band.rows[which]).long()] = x @ weight.T
