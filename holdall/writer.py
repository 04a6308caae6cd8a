"""Writer: a `.hold` file, section by section, in one pass and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from holdall import header
from holdall.errors import BadInput
from holdall.files import atomic_write

_SPILL = 8 << 20  # this much stays in memory before a file is needed
_ROOM = 64 << 10  # header room of a file that was begun before its sections were known


class Writer:
    """Writes a `.hold` file section by section, in one pass, in bounded memory.

    What is added stays in memory up to 8 MiB and then goes to a temporary file beside the target, after a
    reserved header. `finish` writes the header, syncs and renames; leaving the `with` block otherwise drops all.
    """

    def __init__(self, url: str | None):
        self._url = url
        self._sections: list[header.Section] = []
        self._names: set[str] = set()
        self._kept: list[Any] = []
        self._offset = 0
        self._file: atomic_write | None = None

    def add(self, name: str, data: np.ndarray | bytes | Iterable[bytes]) -> None:
        """Add an array, or bytes (or an iterator of bytes, of any total size) as a U8 vector."""
        if not name or name.startswith("~") or name == "__metadata__" or name in self._names:
            raise BadInput("section name", repr(name), "a new name that does not start with ~")
        if isinstance(data, np.ndarray):
            little = np.ascontiguousarray(data).reshape(data.shape)
            if data.dtype.newbyteorder("<") not in header.TAGS:
                raise BadInput(f"array {name}", str(data.dtype), f"one of {', '.join(header.TAGS.values())}")
            little = little.astype(data.dtype.newbyteorder("<"), copy=False)
            self._align(little.dtype.itemsize)
            self._write(
                name, header.TAGS[little.dtype], little.shape, [little.reshape(-1).view(np.uint8).data]
            )
        else:
            self._write(
                name, "U8", None, [data] if isinstance(data, bytes | bytearray | memoryview) else data
            )

    def _align(self, size: int) -> None:
        gap = -self._offset % size
        if gap:
            self._write(f"~{self._offset}", "U8", (gap,), [b"\0" * gap])

    def _write(self, name: str, tag: str, shape: tuple[int, ...] | None, chunks: Iterable[Any]) -> None:
        start, total = self._offset, xxhash.xxh3_128()
        for chunk in chunks:
            total.update(chunk)
            self._offset += len(chunk)
            if self._file is None and self._url is not None and self._offset > _SPILL:
                self._file = atomic_write(self._url)
                self._file.write(b"\0" * (8 + _ROOM))
                for kept in self._kept:
                    self._file.write(kept)
                self._kept = []
            if self._file is not None:
                self._file.write(chunk)
            else:
                self._kept.append(chunk)
        told = (self._offset - start,) if shape is None else shape
        self._sections.append(header.Section(name, tag, told, start, self._offset, total.digest()))
        self._names.add(name)

    def size(self, meta: Mapping[str, Any]) -> int:
        """The exact size that the file would have if it were finished now with this `meta`."""
        return len(self._header(meta)) + self._offset

    def to_bytes(self, meta: Mapping[str, Any]) -> bytes:
        return b"".join([self._header(meta), *self._kept])

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Write the header and publish the file."""
        if self._url is None:
            raise BadInput("Writer", "no url", "a path or URL to finish a file at")
        if self._file is not None and len(self._header(meta)) > 8 + _ROOM:
            self._move_data_behind(self._header(meta))
        elif self._file is not None:
            self._file.seek(0)
            self._file.write(self._header(meta, room=_ROOM))
        else:
            self._file = atomic_write(self._url)
            for piece in [self._header(meta), *self._kept]:
                self._file.write(piece)
        self._file.publish()
        self._file = None

    def _move_data_behind(self, header: bytes) -> None:
        """More sections than the reserved room can name: one more copy, with the right room."""
        assert self._file is not None and self._url is not None
        with self._file as old:
            self._file = atomic_write(self._url)
            self._file.write(header)
            for chunk in old.chunks(8 + _ROOM):
                self._file.write(chunk)

    def _header(self, meta: Mapping[str, Any], room: int = 0) -> bytes:
        return header.build(self._sections, meta, room)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None
