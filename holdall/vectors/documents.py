"""Documents of several vectors each (pages of patches, passages of tokens): rows, and where each document ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.vectors.metrics import ready
from holdall.vectors.source import Vectors

_BLOCK = 8 << 20


class Documents(Vectors):
    """N documents, of which number i holds vectors [M_i, D]; where a method takes single vectors it refuses them.

    rows: all vectors, one document behind the other. offsets [N + 1]: where documents begin, and the end of the last.
    salience [sum M]: how much each vector matters, higher = more, -inf for padding; where there is none, methods
    compute one. A vector of zeros is padding too.

        Documents.of([page_1, page_2, page_3])       # arrays [M, D]
        with Documents.open("pages.npz") as pages:   # vectors, offsets; salience and ids where they are there
            ...
    """

    def __init__(
        self, rows: Vectors, offsets: Any, salience: Any = None, ids: Any = None, attributes: Any = None
    ):
        self.offsets = _offsets(offsets, rows.count)
        self.salience = None if salience is None else _salience(salience, rows.count)
        self.rows, self.name = rows, rows.name
        self.count, self.dim, self.dtype = len(self.offsets) - 1, rows.dim, rows.dtype
        self._ids, self._attributes = ids, attributes

    @classmethod
    def of(cls, given: Any, salience: Any = None, ids: Any = None) -> Documents:
        """given: a list of arrays [M, D], or an array [N, M, D]; salience: as long lists of numbers."""
        parts = [np.asarray(part) for part in given]
        odd = [i for i, p in enumerate(parts) if p.ndim != 2 or p.shape[1:] != parts[0].shape[1:]]
        if not parts or odd:
            got = "none" if not parts else f"shape {parts[odd[0]].shape} for document {odd[0]}"
            raise BadInput("documents", got, "arrays [M, D], all of one D")
        offsets = np.cumsum([0, *map(len, parts)])
        if salience is not None:
            told = [np.asarray(s, np.float32).reshape(-1) for s in salience]
            if [len(s) for s in told] != [len(p) for p in parts]:
                raise BadInput(
                    "salience", "lists of other lengths", "a number for each vector of each document"
                )
            salience = np.concatenate(told)
        return cls(Vectors.of(np.concatenate(parts)), offsets, salience, ids)

    @classmethod
    def open(cls, url: Any, name: str | None = None) -> Documents:
        """A .npz or .safetensors file with `vectors` and `offsets`, or a .parquet, .arrow or .feather file with a
        column of lists of lists; by path or URL. name: which array, tensor or column has the vectors."""
        from holdall.vectors.documents_files import read

        found = read(str(url), name)
        if found is None:
            raise BadInput(
                "documents", str(url), "a file with vectors and offsets, or a column of lists of lists"
            )
        return found

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    @property
    def elements(self) -> int:
        return self.rows.elements

    def read(self, start: int, stop: int) -> np.ndarray:
        raise self._several()

    def take(self, rows: Any) -> np.ndarray:
        raise self._several()

    def _several(self) -> BadInput:
        got = f"documents of {self.rows.count / self.count:.3g} vectors each"
        return BadInput("vectors", got, "single vectors, or an index of documents (vectors.hpc_colpali)")

    def cut(self, start: int, stop: int) -> Documents:
        """Documents [start, stop), in memory."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        told = None if self.salience is None else self.salience[first:last]
        return Documents(
            Vectors.of(self.rows.read(first, last)), self.offsets[start : stop + 1] - first, told
        )

    def parts(self, bytes: int = _BLOCK) -> Iterator[Documents]:
        """All documents in order, of so many bytes at a time but one at least."""
        most, start = max(1, bytes // (4 * self.dim)), 0
        while start < self.count:
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + most, side="right")) - 1
            stop = min(max(stop, start + 1), self.count)
            yield self.cut(start, stop)
            start = stop

    def ready(self, metric: str) -> np.ndarray:
        """float32 [sum M, D], as `metrics.ready` has them."""
        return ready(self.rows.read(0, self.rows.count), metric)

    @property
    def ids(self) -> Any:
        return self._ids

    def attributes(self) -> Any:
        return self._attributes

    def close(self) -> None:
        self.rows.close()

    def __repr__(self) -> str:
        return (
            f"Documents({self.name!r}, {self.count} of {self.rows.count} vectors x {self.dim} {self.dtype})"
        )


def source(given: Any, name: str | None = None) -> Documents | None:
    """Documents in any of their forms; None for what may be single vectors."""
    if isinstance(given, str):
        from holdall.vectors.documents_files import read

        return read(given, name)
    if isinstance(given, Vectors):
        return None
    listed = isinstance(given, list | tuple) and len(given) > 0 and np.ndim(given[0]) == 2
    return Documents.of(given) if listed or np.ndim(given) == 3 else None


def split(vectors: Vectors, patches: int, start: int, stop: int) -> Documents:
    """Rows [start, stop) of `vectors`, each cut into so many vectors that lie in it one behind the other."""
    if vectors.dim % patches:
        raise BadInput("patches", patches, f"a divisor of the {vectors.dim} numbers of a row")
    rows = vectors.read(start, stop).reshape(-1, vectors.dim // patches)
    return Documents(Vectors.of(rows), np.arange(0, len(rows) + 1, patches))


def streamed(given: Vectors, patches: int) -> Iterator[Documents]:
    """Blocks of documents, of single vectors too."""
    if isinstance(given, Documents):
        if patches != 1:
            raise BadInput("patches", patches, "1 for documents that come as such")
        yield from given.parts()
        return
    step = max(1, _BLOCK // (4 * given.dim))
    for start in range(0, given.count, step):
        yield split(given, patches, start, min(start + step, given.count))


def _offsets(given: Any, rows: int) -> np.ndarray:
    found = np.asarray(given)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) < 2:
        raise BadInput(
            "offsets", f"{found.dtype} {found.shape}", "[N + 1] whole numbers, where documents begin"
        )
    sizes = np.diff(found.astype(np.int64))
    if found[0] != 0 or found[-1] != rows or (sizes < 1).any():
        empty = np.flatnonzero(sizes < 1)
        got = f"{found[0]} to {found[-1]}" + (
            f", {sizes[empty[0]]} vectors in document {empty[0]}" if len(empty) else ""
        )
        raise BadInput("offsets", got, f"rising numbers from 0 to the {rows} vectors that there are")
    return found.astype(np.int64)


def _salience(given: Any, rows: int) -> np.ndarray:
    found = np.asarray(given, np.float32).reshape(-1)
    if len(found) != rows or np.isnan(found).any() or np.isposinf(found).any():
        got = f"{len(found)} numbers" if len(found) != rows else "NaN or infinity"
        raise BadInput("salience", got, f"a number for each of {rows} vectors, -inf for padding")
    return found
