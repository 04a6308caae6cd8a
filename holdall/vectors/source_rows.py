"""Rows of numbers wherever they lie: the contract, rows in memory, and rows of equal length in a file."""

from __future__ import annotations

import io
import sys
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, is_local

ACCEPTED = "float32, float16, float64, bfloat16, uint8 or int8"
_HELD = {"f4": "f4", "f2": "f2", "f8": "f4", "u1": "u1", "i1": "i1"}
_NEAR = 64 << 10  # reading over a gap of this many bytes costs less than a second read
_NEAR_REMOTE = 1 << 20
_PIECE = 1 << 20  # of a read: what lies beside the block that it becomes
_PIECE_REMOTE = 8 << 20


def held(stored: np.dtype, where: str) -> np.dtype:
    """In which type numbers of that type are held; BadInput for those that are no vectors."""
    if stored.hasobject:
        raise BadInput(
            "vectors", f"objects in {where}", f"{ACCEPTED} (objects are pickled, which is never opened)"
        )
    if stored.str[1:] not in _HELD:
        raise BadInput("vectors", f"{stored} in {where}", ACCEPTED)
    return np.dtype(_HELD[stored.str[1:]])


def kind_of(url: str) -> str:
    """The file's ending, in small letters, of a path or of a URL that may be chained."""
    last = url.split("::")[0].rstrip("/").rsplit("/", 1)[-1]
    return f".{last.rsplit('.', 1)[-1].lower()}" if "." in last else ""


class Rows(ABC):
    """What a file or an array holds: `read` is not checked for NaN, `Vectors` does that.

    wide: whether the numbers may be too large for dtype. near: how many rows between two are read rather than
    left out. most: rows in one read of `take`.
    """

    wide = False

    def __init__(self, count: int, dim: int, dtype: np.dtype, remote: bool = False):
        for n, of in ((count, "rows"), (dim, "columns")):
            if n < 1:
                raise BadInput("vectors", f"{n} {of}", "at least one row and one column")
        self.count, self.dim, self.dtype = count, dim, dtype
        width = dim * dtype.itemsize
        self.near = (_NEAR_REMOTE if remote else _NEAR) // width
        self.most = max(1, (_PIECE_REMOTE if remote else _PIECE) // width)

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop - start, D] of dtype, in memory of its own."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Any rows, in that order; rows that lie near each other are read at once."""
        out = np.empty((len(rows), self.dim), self.dtype)
        if not len(rows):
            return out
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        fresh = np.diff(sorted_rows, prepend=sorted_rows[0]) > self.near + 1
        run = np.cumsum(fresh)
        firsts = sorted_rows[np.r_[0, np.flatnonzero(fresh)]]
        part = (sorted_rows - firsts[run]) // self.most
        cuts = np.flatnonzero((np.diff(run) != 0) | (np.diff(part) != 0)) + 1
        for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            first = int(sorted_rows[a])
            block = self.read(first, int(sorted_rows[b - 1]) + 1)
            out[order[a:b]] = block[sorted_rows[a:b] - first]
        return out

    def ids(self) -> np.ndarray | None:
        """int64 or strings [N], read now."""
        return None

    def attributes(self) -> Any:
        """A pyarrow Table [N], or None."""
        return None

    @abstractmethod
    def close(self) -> None: ...


class ReaderFile(io.RawIOBase):
    """A Reader as a file to seek in, for libraries that want one."""

    def __init__(self, reader: Reader):
        self._reader, self._at = reader, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, at: int, whence: int = 0) -> int:
        at += (0, self._at, self._reader.size)[whence]
        if at < 0:
            raise ValueError("a place before the file")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        start = min(self._at, self._reader.size)
        left = self._reader.size - start
        stop = start + (left if size is None or size < 0 else min(size, left))
        self._at = max(self._at, stop)
        return self._reader.read(start, stop)


def put(out: np.ndarray, stored: np.ndarray, brain: bool) -> None:
    """Stored numbers as they are held. brain: `stored` is the upper half of each float32."""
    if brain:
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # what became infinite is found by the check
            out[...] = stored


class InMemory(Rows):
    """An array [N, D] of the user's, never changed."""

    def __init__(self, given: Any):
        array, self._brain = _as_array(given)
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2:
            raise BadInput("vectors", f"shape {array.shape}", "[N, D], or [D] for one vector")
        self._array = array
        self.wide = array.dtype.itemsize == 8
        count, dim = array.shape
        super().__init__(count, dim, np.dtype("f4") if self._brain else held(array.dtype, "the array"))

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.dim), self.dtype)
        put(out, self._array[start:stop], self._brain)
        return out

    def take(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.dim), self.dtype)
        put(out, self._array[rows], self._brain)
        return out

    def close(self) -> None:
        self._array = self._array[:0]


def _as_array(given: Any) -> tuple[np.ndarray, bool]:
    """As a numpy array without a copy where that can be, and whether it is the bits of bfloat16."""
    if isinstance(given, np.ma.MaskedArray):
        raise BadInput("vectors", "a masked array", "an array without holes")
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    brain = False
    try:
        if torch is not None and isinstance(given, torch.Tensor):
            given = given.detach().cpu()
            if brain := given.dtype == torch.bfloat16:
                given = given.view(torch.uint16)
        return np.asarray(given), brain
    except (TypeError, ValueError) as fault:
        raise BadInput(
            "vectors", f"{type(given).__name__} ({fault})", "an array of numbers [N, D]"
        ) from fault


class Flat(Rows):
    """Rows of equal length, one behind the other in a file.

    stored: the numbers' type there. at: where the first row begins. prefix: whether each row begins with its dimension
    (int32). brain: the numbers are bfloat16, and stored is uint16.
    """

    def __init__(
        self,
        reader: Reader,
        shape: tuple[int, int],
        stored: np.dtype,
        at: int,
        *,
        prefix: bool = False,
        brain: bool = False,
        whole: bool = False,
    ):
        self._reader, self._stored, self._at, self._brain = reader, stored, at, brain
        self._skip = 4 if prefix else 0
        self.wide = stored.itemsize == 8
        dtype = np.dtype("f4") if brain or whole else held(stored, reader.name)
        remote = not is_local(reader.name)
        super().__init__(*shape, dtype, remote)
        self._stride = self._skip + self.dim * stored.itemsize
        if at + self.count * self._stride > reader.size:
            told = f"{self.count} vectors of {self.dim} numbers"
            raise CorruptArtefact(reader.name, f"cut short: {told} do not fit into {reader.size} bytes")
        self._piece = max(1, (_PIECE_REMOTE if remote else _PIECE) // self._stride)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.dim), self.dtype)
        for a in range(start, stop, self._piece):
            b = min(a + self._piece, stop)
            raw = self._reader.read(self._at + a * self._stride, self._at + b * self._stride)
            lines = np.frombuffer(raw, np.uint8).reshape(b - a, self._stride)
            if self._skip:
                self._same(lines[:, : self._skip].view("<i4").reshape(-1), a)
            put(out[a - start : b - start], lines[:, self._skip :].view(self._stored), self._brain)
        return out

    def _same(self, told: np.ndarray, first: int) -> None:
        odd = np.flatnonzero(told != self.dim)
        if len(odd):
            why = f"row {first + odd[0]} has {told[odd[0]]} numbers where row 0 has {self.dim}"
            raise CorruptArtefact(self._reader.name, why)

    def close(self) -> None:
        self._reader.close()
