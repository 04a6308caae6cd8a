"""SPANN's second layout: short codes in memory, vectors on disk once each, in the order of lists.

A query estimates distances to what is in the lists of near heads from the codes, and reads those that look nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.parts.codebook import ProductQuantiser
from holdall.vectors.bits import Bits
from holdall.vectors.codes_scan import nearest_codes, nearest_held, products
from holdall.vectors.entries import Entries
from holdall.vectors.heads import Heads
from holdall.vectors.lists import scan
from holdall.vectors.metrics import ready
from holdall.vectors.numbered import NO_BITS, Numbered
from holdall.vectors.spann_build import placed

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.given import State
    from holdall.vectors.source import Vectors

PROBES = 64
RERANK, RERANK_HELD = 2.0, 8.0
_TOGETHER = 256  # queries whose heads are searched at once
_BLOCK = 4096  # vectors that are read at a time, where all are
_READ, _HELD, _LOOK = 20.0, 0.3, 0.02  # microseconds, about: a vector from disk, from memory, a code


class Coded(Numbered):
    """Codes in memory, vectors in a file; those too where the memory that is allowed has room for them."""

    def load(self) -> None:
        super().load()
        take = self.folder.array
        self.heads = Heads.of_sections(self.folder, self.dim + (self.recipe.metric == "ip"))
        self.entries = Entries.of_meta(self.folder.meta.get("entries"), self.dim, self.folder)
        self.turn = take("turn", np.float32, 2)
        self.tables = ProductQuantiser.of(take("tables", np.float32, 3), self.turn.shape[1]).tables
        self.codes, self.bias = take("codes", np.uint8, 2), take("bias", np.uint16, 1)
        self.rows, self.starts = take("rows", np.int32, 1), take("starts", np.int32, 2)
        self.scale = take("bias/scale", np.float32, 1)
        count, ends = self.entries.count, np.concatenate([[0], self.starts[:, -1]])
        fits = self.codes.shape == (count, len(self.tables)) and self.bias.shape == self.rows.shape == (
            count,
        )
        fits &= self.starts.shape[1] == self.heads.count + 1 and len(self.starts) > 0 and len(self.scale) == 2
        fits = fits and bool(
            (self.starts[:, 0] == ends[:-1]).all() and (np.diff(self.starts, axis=1) >= 0).all()
            and ends[-1] == count and np.isfinite(self.turn).all() and np.isfinite(self.scale).all()
            and self.turn.shape[0] == self.heads.dim and self.tables.shape[1] == 256
        )  # fmt: skip
        if not fits or (count and (self.rows.min() < 0 or self.rows.max() >= self.stored)):
            raise CorruptArtefact(self.folder.url, "its codes contradict each other")
        self.flat = np.ascontiguousarray(self.tables.transpose(0, 2, 1))
        self.table = np.empty((len(self.tables), 256), np.float32)
        del self.tables
        self.whole: np.ndarray | None = None
        beside = self.ids.nbytes + (0 if self.attributes is None else self.attributes.nbytes)
        room = -1 if self.limit is None else self.limit - self.held() - beside
        if count * self.dim * self.entries.dtype.itemsize <= room:
            self.whole = self.entries.all(self.folder)

    def held(self) -> int:
        own = (self.turn, self.flat, self.codes, self.bias, self.rows, self.starts, self.whole)
        arrays = sum(a.nbytes for a in own if a is not None)
        return self.heads.nbytes + arrays + (0 if self.there is None else self.there.nbytes)

    def least(self, own: State) -> int:
        bits = Bits.bytes_of(own[1]["stored"]) if "there" in own[0] else 0
        arrays = sum(own[0][n].nbytes for n in ("turn", "tables", "codes", "bias", "rows", "starts"))
        return Heads.bytes_of(*own[0]["heads"].shape) + arrays + bits

    def settings(self) -> list[tuple[dict[str, Any], float]]:
        each = _LOOK * self.entries.count / self.heads.count
        tried = [p for p in (8, 16, 24, 32, 40, 48, 64, 96, 128, 256, 512) if p <= 2 * self.heads.count]
        if self.whole is None:
            vector, ranks = _READ, [1.2, 1.4, 1.6, 2.0, 2.5, 3.0, 5.0, 8.0, 12.0]
            pairs = [
                (r, p) for r in ranks for p in tried if p >= 12 * r - 12 and p not in (24, 40)
            ]  # few lists need few vectors
        else:
            vector, ranks = _HELD, [2.0, 4.0, 6.0, 8.0, 12.0, 20.0]
            pairs = [(r, p) for r in ranks for p in tried]
        return [({"probes": p, "rerank": r}, 10 * r * vector + p * each) for r, p in pairs]

    def searched(
        self, queries: np.ndarray, bits: np.ndarray | None, keys: np.ndarray, rows: np.ndarray
    ) -> None:
        held = self.whole is not None and self.whole.dtype != np.float16  # which kernels do not know
        rerank = self.recipe.rerank or (RERANK if self.whole is None else RERANK_HELD)
        probes, most = self.recipe.probes or PROBES, int(np.ceil(rerank * keys.shape[1]))
        for first in range(0, len(queries), _TOGETHER):
            some = slice(first, min(first + _TOGETHER, len(queries)))
            x = placed(queries[some], self.recipe.metric, self.reach, query=True)
            turned, (away, near) = x @ self.turn, self.heads.nearest(x, probes)
            left: Any = range(len(x))
            if held:
                self._compared += nearest_held(
                    queries[some], turned, self.flat, self.table, near, away, self.starts, self.codes, self.bias,
                    self.scale[0], self.scale[1], self.rows, NO_BITS if bits is None else bits, bits is not None,
                    self.whole, self.kind, most, keys[some], rows[some],
                )  # fmt: skip
                left = np.flatnonzero(rows[some, -1] < 0) if near.shape[1] < self.heads.count else ()
            for i in left:
                q = first + int(i)
                products(turned[i], self.flat, self.table)
                self._one(queries[q], x[i : i + 1], (away[i], near[i]), most, bits, keys[q], rows[q])

    def _one(
        self, query: np.ndarray, x: np.ndarray, cells: tuple[np.ndarray, np.ndarray], most: int,
        bits: np.ndarray | None, keys: np.ndarray, rows: np.ndarray,
    ) -> None:  # fmt: skip
        """Reads the vectors that look nearest; where there are too few, looks at four times as many lists."""
        masked, keep = bits is not None, NO_BITS if bits is None else bits
        while True:
            away, near = cells
            guess, places = np.empty(most, np.float32), np.empty(most, np.int64)
            self._compared += nearest_codes(
                self.table, near, away, self.starts, self.codes, self.bias, self.scale[0], self.scale[1],
                self.rows, keep, masked, guess, places,
            )  # fmt: skip
            if places[len(rows) - 1] >= 0 or len(near) >= self.heads.count:
                break
            away, near = self.heads.nearest(x, 4 * len(near))
            cells = away[0], near[0]
        places = np.sort(places[places >= 0])
        vectors = self._vectors(places)
        if vectors.dtype == np.float16:
            vectors = vectors.astype(np.float32)
        scan(query, self.rows[places], vectors, self.kind, NO_BITS, False, keys, rows)

    def _vectors(self, places: np.ndarray) -> np.ndarray:
        if self.whole is not None:
            return self.whole[places]
        found, reads = self.entries.read(self.folder, places)
        self._reads += reads
        return found

    def alive(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, self.entries.count, _BLOCK):
            rows = self.rows[at : at + _BLOCK].astype(np.int64)
            left = np.ones(len(rows), bool) if self.there is None else self.there.has(rows)
            yield rows[left], self.entries.read(self.folder, at + np.flatnonzero(left))[0]

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        stored = np.asarray(rows, np.int64) if self.there is None else self.there.select(np.asarray(rows))
        different, which = np.unique(stored, return_inverse=True)
        places = np.flatnonzero(np.isin(self.rows, different))
        found = self._vectors(places)[np.argsort(self.rows[places], kind="stable")]
        return ready(found[which.reshape(-1)], self.recipe.metric)

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        from holdall.vectors.spann_codes_change import grown

        return grown(self, change, vectors)

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        from holdall.vectors.spann_codes_change import shrunk

        return shrunk(self, change, keep)
