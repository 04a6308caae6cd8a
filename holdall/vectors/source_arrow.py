"""Tables in Arrow IPC files (.arrow, .feather), one record batch at a time."""

from __future__ import annotations

import struct
from typing import Any

from holdall.errors import CorruptArtefact
from holdall.files import Reader
from holdall.optional import lazy
from holdall.vectors.source_rows import ReaderFile

pa: Any = lazy("pyarrow", extra="vectors")
_MARK = b"ARROW1"


class ArrowFile:
    """An Arrow IPC file, also known as Feather. pyarrow trusts what is in it, so all that is read is validated."""

    def __init__(self, reader: Reader):
        if (
            reader.size < 16
            or reader.read(0, 6) != _MARK
            or reader.read(reader.size - 6, reader.size) != _MARK
        ):
            why = "not an Arrow IPC file with its footer: a stream, Feather 1, or cut short"
            raise CorruptArtefact(reader.name, why)
        self._reader = reader
        self._last: tuple[str, Any] = ("", None)
        self.sizes = _batch_sizes(reader)
        self.schema = self._open(None).schema

    def _open(self, names: list[str] | None) -> Any:
        fields = None if names is None else sorted(self.schema.get_field_index(n) for n in names)
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return pa.ipc.open_file(pa.PythonFile(ReaderFile(self._reader), mode="r"), options=options)

    def column(self, group: int, name: str) -> Any:
        if self._last[0] != name:
            self._last = (name, self._open([name]))
        found = pa.Table.from_batches([self._last[1].get_batch(group)]).column(0)
        found.validate(full=True)
        return found

    def table(self, names: list[str]) -> Any:
        return self._open(names).read_all()


def _batch_sizes(reader: Reader) -> list[int]:
    """Rows of each record batch, from the footer and each batch's header; pyarrow would read the batches for that."""
    end = reader.size - 10
    length = int.from_bytes(reader.read(end, end + 4), "little", signed=True)
    if not 0 < length <= end:
        raise CorruptArtefact(reader.name, "its footer is longer than the file")
    footer, sizes = reader.read(end - length, end), []
    try:
        at = _slot(footer, _deref(footer, 0), 3)
        vector = _deref(footer, at) if at else 0
        for k in range(struct.unpack_from("<I", footer, vector)[0] if at else 0):
            start, head = struct.unpack_from("<qi", footer, vector + 4 + 24 * k)
            if start < 0 or head < 8 or start + head > end:
                raise CorruptArtefact(reader.name, f"record batch {k} does not lie in it")
            raw = reader.read(start, start + head)
            raw = raw[8:] if raw[:4] == b"\xff\xff\xff\xff" else raw[4:]
            batch = _deref(raw, _slot(raw, _deref(raw, 0), 2))
            rows = _slot(raw, batch, 0)
            sizes.append(struct.unpack_from("<q", raw, rows)[0] if rows else 0)
    except struct.error as fault:
        raise CorruptArtefact(reader.name, f"its footer leads nowhere ({fault})") from None
    return sizes


def _deref(raw: bytes, at: int) -> int:
    """Where a Flatbuffers reference leads."""
    return int(at + struct.unpack_from("<I", raw, at)[0])


def _slot(raw: bytes, table: int, field: int) -> int:
    """Where that field of a Flatbuffers table is; 0 for one that is left out."""
    slots = table - struct.unpack_from("<i", raw, table)[0]
    if 4 + 2 * field >= struct.unpack_from("<H", raw, slots)[0]:
        return 0
    at = struct.unpack_from("<H", raw, slots + 4 + 2 * field)[0]
    return int(table + at) if at else 0
