"""Vectors in columns of .parquet and .arrow files: one row group or record batch at a time, the last one is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from holdall.errors import BadInput, CorruptArtefact, HoldallError
from holdall.files import Reader, is_local
from holdall.optional import lazy, need
from holdall.vectors.source_arrow import ArrowFile
from holdall.vectors.source_files import opened
from holdall.vectors.source_rows import ACCEPTED, ReaderFile, Rows, held, put

pa: Any = lazy("pyarrow", extra="vectors")
_ID = "id"
_BUFFER = 1 << 20  # of a local Parquet column, read as it is decoded; a remote one is read at once
_MOST_ROWS = 1 << 62


def open_parquet(url: str, name: str | None = None) -> Rows:
    need("pyarrow.parquet", "vectors")
    return opened(url, lambda reader: Table(reader, _guarded(url, lambda: _Parquet(reader)), name))


def open_arrow(url: str, name: str | None = None) -> Rows:
    need("pyarrow.ipc", "vectors")
    return opened(url, lambda reader: Table(reader, _guarded(url, lambda: ArrowFile(reader)), name))


class _Groups(Protocol):
    """A table in groups of rows; sizes: rows of each."""

    schema: Any
    sizes: list[int]

    def column(self, group: int, name: str) -> Any:
        """A ChunkedArray."""

    def table(self, names: list[str]) -> Any:
        """Those columns of all groups, in the schema's order."""


class _Parquet:
    def __init__(self, reader: Reader):
        file, local = ReaderFile(reader), is_local(reader.name)
        self._file = need("pyarrow.parquet", "vectors").ParquetFile(
            file, buffer_size=_BUFFER if local else 0, page_checksum_verification=True
        )
        told = self._file.metadata
        self.schema = self._file.schema_arrow
        self.sizes = [told.row_group(g).num_rows for g in range(told.num_row_groups)]

    def column(self, group: int, name: str) -> Any:
        return self._file.read_row_group(group, columns=[name], use_threads=False).column(name)

    def table(self, names: list[str]) -> Any:
        return self._file.read(columns=names, use_threads=False)


def _guarded(where: str, work: Callable[[], Any]) -> Any:
    """What pyarrow says of a file that it cannot read becomes CorruptArtefact."""
    try:
        return work()
    except HoldallError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, KeyError) as fault:
        why = " ".join(str(fault).split())[:160]
        if "lists to be of size" in why:  # versions before 26, of null rows in a Parquet file
            raise BadInput("vectors", f"{where} ({why})", "as many numbers in each row") from None
        raise CorruptArtefact(where, f"it cannot be read as a table ({why})") from None


class Table(Rows):
    """A column of lists of numbers, each list of the same length."""

    def __init__(self, reader: Reader, groups: _Groups, name: str | None):
        self._reader, self._groups, url = reader, groups, reader.name
        _guarded(url, lambda: groups.schema.names)  # those that are no text fail here
        if any(n < 0 for n in groups.sizes) or sum(groups.sizes) > _MOST_ROWS:
            raise CorruptArtefact(url, "it tells an impossible number of rows")
        self._starts = np.cumsum([0, *groups.sizes], dtype=np.int64)
        self._name = self._chosen(name)
        self._lock, self._kept = threading.Lock(), -1
        self._pieces: list[np.ndarray] = []  # of the group that is kept, each [n, D]
        count = int(self._starts[-1])
        kind = groups.schema.field(self._name).type
        stored = _stored(kind)
        self._dim = getattr(kind, "list_size", -1)
        if count and self._dim < 0:
            self._load(int(np.flatnonzero(groups.sizes)[0]))
        self.wide = stored.itemsize == 8
        super().__init__(count, max(self._dim, 0) if count else 1, held(stored, url), not is_local(url))

    def _chosen(self, name: str | None) -> str:
        schema = self._groups.schema
        fit = [f.name for f in schema if _stored(f.type) is not None]
        if name is None and len(fit) == 1:
            name = fit[0]
        where = schema.get_field_index(name) if name is not None else -1
        if where < 0 or name not in fit:
            kinds = [" ".join(f"{f.name[:80]} ({str(f.type)[:80]})".split()) for f in schema][:20]
            got = f"{name or 'no name'} for {self._reader.name}"
            raise BadInput(
                "column", got, f"one of lists of {ACCEPTED}; there are: {', '.join(kinds) or 'none'}"
            )
        return str(name)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.dim), self.dtype)
        if start == stop:
            return out
        ends = np.searchsorted(self._starts, (start, stop - 1), side="right") - 1
        with self._lock:
            for first, piece in self._through(range(ends[0], ends[1] + 1)):
                a, b = max(start, first), min(stop, first + len(piece))
                if a < b:
                    put(out[a - start : b - start], piece[a - first : b - first], False)
        return out

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Any rows; each group that has one of them is loaded once, and no other."""
        out = np.empty((len(rows), self.dim), self.dtype)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        groups = np.unique(np.searchsorted(self._starts, ordered, side="right") - 1)
        with self._lock, np.errstate(over="ignore", invalid="ignore"):
            for first, piece in self._through(groups.tolist()):
                a, b = np.searchsorted(ordered, (first, first + len(piece)))
                out[order[a:b]] = piece[ordered[a:b] - first]
        return out

    def _through(self, groups: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, [n, D]) of all in these groups, of which the last is kept."""
        for group in groups:
            if self._kept != group and self._groups.sizes[group]:
                self._load(group)
            if self._kept == group:
                first = int(self._starts[group])
                for piece in self._pieces:
                    yield first, piece
                    first += len(piece)

    def _load(self, group: int) -> None:
        """Keep that group instead of the other."""
        self._kept, self._pieces = -1, []
        column = _guarded(self._reader.name, lambda: self._groups.column(group, self._name))
        if len(column) != self._groups.sizes[group]:
            why = f"group {group} has {len(column)} rows, not {self._groups.sizes[group]}"
            raise CorruptArtefact(self._reader.name, why)
        first, pieces = int(self._starts[group]), []
        for chunk in column.chunks:
            if len(chunk):
                pieces.append(self._numbers(chunk, first))
            first += len(chunk)
        self._pieces, self._kept = pieces, group

    def _numbers(self, chunk: Any, first: int) -> np.ndarray:
        """[n, D], where the chunk lies."""
        if chunk.null_count:
            self._refuse(first + _first(chunk.is_null()), "is null")
        if hasattr(chunk, "value_lengths") and not hasattr(chunk.type, "list_size"):
            lengths = chunk.value_lengths().to_numpy()
            self._dim = int(lengths[0]) if self._dim < 0 else self._dim
            for odd in np.flatnonzero(lengths != self._dim)[:1]:
                self._refuse(first + int(odd), f"has {lengths[odd]} numbers where row 0 has {self._dim}")
        flat = chunk.flatten()
        if flat.null_count:
            self._refuse(first + _first(flat.is_null()) // self._dim, "has a null")
        return flat.to_numpy(zero_copy_only=True).reshape(len(chunk), self._dim)

    def _refuse(self, row: int, has: str) -> None:
        raise BadInput("vectors", f"row {row} {has}", f"as many numbers in each row of {self._name}")

    def ids(self) -> np.ndarray | None:
        if _ID not in self._groups.schema.names or self._name == _ID:
            return None
        column = self._whole([_ID]).column(0)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        text = any(
            ask(kind) for ask in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        )
        if not text and not pa.types.is_integer(kind):
            raise BadInput("ids", f"column {_ID} of {column.type}", "int64 or strings")
        if column.null_count:
            raise BadInput("ids", f"a null in row {_first(column.is_null())}", "an id in each row")
        if text:
            return np.array(column.to_pylist(), dtype=np.str_)
        try:
            return np.array(column.cast(pa.int64()).to_numpy())
        except pa.ArrowInvalid as fault:
            raise BadInput("ids", str(fault), "whole numbers below 2**63") from None

    def attributes(self) -> Any:
        names = [
            f.name
            for f in self._groups.schema
            if not pa.types.is_nested(f.type) and f.name not in (_ID, self._name)
        ]
        return self._whole(names) if names else None

    def _whole(self, names: list[str]) -> Any:
        def read() -> Any:
            whole = self._groups.table(names)
            whole.validate(full=True)  # offsets and letters
            return whole

        found = _guarded(self._reader.name, read)
        if len(found) != self.count:
            raise CorruptArtefact(self._reader.name, f"{len(found)} rows of {names[0]}, not {self.count}")
        return found

    def close(self) -> None:
        self._pieces, self._kept = [], -1
        self._reader.close()


def _first(true: Any) -> int:
    return int(np.flatnonzero(true.to_numpy(zero_copy_only=False))[0])


def _stored(kind: Any) -> Any:
    """The numpy type of the numbers in a column of lists that can be vectors, or None."""
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    if not any(ask(kind) for ask in lists):
        return None
    types = {pa.float32(): "f4", pa.float16(): "f2", pa.float64(): "f8", pa.uint8(): "u1", pa.int8(): "i1"}
    found = types.get(kind.value_type)
    return found and np.dtype(found)
