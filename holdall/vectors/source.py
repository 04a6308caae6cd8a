"""Vectors: N rows of D numbers, from a file that may be larger than memory, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from typing import Any, Self

import numpy as np

from holdall.errors import BadInput
from holdall.vectors.source_rows import InMemory, Rows, kind_of

_BLOCK = 8 << 20
_STEP = 1 << 18  # numbers that are checked at once: what the check itself needs stays small
_OPENERS = {
    ".npy": ("source_files", "open_npy"),
    ".npz": ("source_npz", "open_npz"),
    ".fvecs": ("source_files", "open_vecs"),
    ".bvecs": ("source_files", "open_vecs"),
    ".ivecs": ("source_files", "open_vecs"),
    ".safetensors": ("source_files", "open_safetensors"),
    ".parquet": ("source_tables", "open_parquet"),
    ".arrow": ("source_tables", "open_arrow"),
    ".feather": ("source_tables", "open_arrow"),
}


class Vectors:
    """N vectors of D numbers: `count`, `dim`, `dtype`, and blocks of them. Nothing is read before it is asked for.

    Every block that is handed out has been checked: NaN or infinity is BadInput that names the row. Files are read
    with ranged reads, never mapped, so what is resident is what is in use.

        with Vectors.open("embeddings.npy") as vectors:
            for start, block in vectors.blocks():
                ...
    """

    def __init__(self, rows: Rows, name: str):
        self._rows, self.name = rows, name
        self.count, self.dim, self.dtype = rows.count, rows.dim, rows.dtype
        self._closed = False

    @classmethod
    def open(cls, url: Any, name: str | None = None) -> Self:
        """A .npy, .npz, .fvecs, .bvecs, .ivecs, .safetensors, .parquet, .arrow or .feather file, by path or URL.

        name: which array, tensor or column; needed where several could be meant.
        """
        url = str(url)
        suffix = kind_of(url)
        if suffix not in _OPENERS:
            raise BadInput("vectors", url, f"a file that ends in {', '.join(_OPENERS)}")
        module, function = _OPENERS[suffix]
        opener: Callable[[str, str | None], Rows] = getattr(
            import_module(f"holdall.vectors.{module}"), function
        )
        return cls(opener(url, name), url)

    @classmethod
    def of(cls, array: Any) -> Self:
        """An array [N, D], or [D] for one vector: of numpy, or anything that numpy can look at, such as a tensor."""
        return cls(InMemory(array), "the array")

    @property
    def nbytes(self) -> int:
        """Of the numbers as they are handed out."""
        return self.count * self.dim * self.dtype.itemsize

    @property
    def elements(self) -> int:
        """Numbers in all of them."""
        return self.count * self.dim

    def cut(self, start: int, stop: int) -> Any:
        """[start, stop) of them as an index is asked with; documents are more than rows."""
        return self.read(start, stop)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as [stop - start, D] of dtype, in memory of its own."""
        self._usable()
        if not 0 <= start <= stop <= self.count:
            raise BadInput("rows", f"{start} to {stop}", f"a range within 0 to {self.count}")
        block = self._rows.read(start, stop)
        at = self._first_odd(block)
        if at is not None:
            self._refuse(block[at], start + at)
        return block

    def take(self, rows: Any) -> np.ndarray:
        """These rows in this order, repeated ones too: [R, D]. Rows near each other are read at once."""
        self._usable()
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
            raise BadInput("rows", f"{wanted.dtype} {wanted.shape}", "a list of whole numbers")
        outside = (wanted < 0) | (wanted >= self.count)
        if outside.any():
            raise BadInput("row", str(wanted[outside][0]), f"0 to {self.count - 1}")
        wanted = wanted.astype(np.int64)
        block = self._rows.take(wanted)
        at = self._first_odd(block)
        if at is not None:
            self._refuse(block[at], int(wanted[at]))
        return block

    def blocks(self, bytes: int = _BLOCK) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, block) for all rows in order, blocks of at most that many bytes but of one row at least."""
        step = max(1, bytes // (self.dim * self.dtype.itemsize))
        for start in range(0, self.count, step):
            yield start, self.read(start, min(start + step, self.count))

    @cached_property
    def ids(self) -> np.ndarray | None:
        """What the file calls its rows: column "id" of a table, array "ids" of an .npz; int64 or strings [N]."""
        self._usable()
        return self._rows.ids()

    def attributes(self) -> Any:
        """The other scalar columns of a table, as a pyarrow Table; None where there are none."""
        self._usable()
        return self._rows.attributes()

    def close(self) -> None:
        self._closed = True
        self._rows.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Vectors({self.name!r}, {self.count} x {self.dim} {self.dtype})"

    def _usable(self) -> None:
        if self._closed:  # its file number may be another file's by now
            raise BadInput("vectors", f"{self.name}, which was closed", "vectors that are open")

    def _first_odd(self, block: np.ndarray) -> int | None:
        """The first row with a number that is not finite."""
        if block.dtype.kind != "f":
            return None
        step = max(1, _STEP // self.dim)
        for at in range(0, len(block), step):
            finite = np.isfinite(block[at : at + step])
            if not finite.all():
                return at + int(np.flatnonzero(~finite.all(axis=1))[0])
        return None

    def _refuse(self, row: np.ndarray, at: int) -> None:
        infinite = "infinity, or a number too large for float32" if self._rows.wide else "infinity"
        has = "NaN" if np.isnan(row).any() else infinite
        raise BadInput("vectors", f"row {at} has {has}", "finite numbers")
