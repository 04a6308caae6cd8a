"""`holdall.logs.open`: packed logs as files, as gzip.open does it."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Self, overload

from holdall.errors import BadInput
from holdall.logs.base import LogCodec
from holdall.packed import Packed


class LogReader(io.BufferedIOBase):
    """The text of a packed log: read, readline, iteration, seek and tell. One block is in memory."""

    def __init__(self, packed: Packed, codec: LogCodec):
        self._packed, self._codec = packed, codec
        self._rewind()

    def _rewind(self) -> None:
        self._pieces: Iterator[bytes] = self._codec.pieces(self._packed)
        self._piece, self._at, self._before = b"", 0, 0  # _before: text in front of this piece

    def _fill(self) -> bool:
        """Another piece once this one is used up; False at the end."""
        while self._at >= len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._before += len(self._piece)
            self._piece, self._at = piece, 0
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        self._checked()
        left = -1 if size is None else size
        out = []
        while left and self._fill():
            piece = self._piece[self._at :] if left < 0 else self._piece[self._at : self._at + left]
            self._at += len(piece)
            left -= len(piece) if left > 0 else 0
            out.append(piece)
        return b"".join(out)

    def read1(self, size: int = -1) -> bytes:
        self._checked()
        if not size or not self._fill():
            return b""
        stop = len(self._piece) if size < 0 else self._at + size
        piece = self._piece[self._at : stop]
        self._at += len(piece)
        return piece

    def readline(self, size: int | None = -1) -> bytes:
        self._checked()
        most = -1 if size is None else size
        out: list[bytes] = []
        while most and self._fill():
            end = self._piece.find(b"\n", self._at) + 1
            stop = end or len(self._piece)
            if most > 0:
                stop = min(stop, self._at + most)
            out.append(self._piece[self._at : stop])
            self._at, most = stop, most - len(out[-1]) if most > 0 else most
            if out[-1].endswith(b"\n"):
                break
        return b"".join(out)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Anywhere; backwards beyond the block begins again at the front."""
        self._checked()
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            while self._fill():
                self._at = len(self._piece)
            offset += self.tell()
        if offset < 0:
            raise BadInput("seek", offset, "a place at or after the beginning")
        if offset < self._before:
            self._rewind()
        while offset > self._before + len(self._piece):
            self._at = len(self._piece)
            if not self._fill():
                return self.tell()
        self._at = offset - self._before
        return offset

    def tell(self) -> int:
        return self._before + self._at

    def _checked(self) -> None:
        if self.closed:
            raise ValueError("read from a closed log")

    def close(self) -> None:
        if not self.closed:
            self._packed.close()
            super().close()


class LogWriter(io.BufferedIOBase):
    """Collects what is written on disk, and packs it when it is closed; the file then appears whole.

    An exception inside its `with` block leaves nothing behind, and an older file of that name as it was.
    """

    def __init__(self, url: str, codec: LogCodec):
        self._url, self._codec = url, codec
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to a closed log")
        self._spool.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._spool.tell()

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._spool.seek(0)
            self._codec.encode(self._spool, to=self._url).close()
        finally:
            self.drop()

    def drop(self) -> None:
        """Close without writing the file."""
        self._spool.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        if kind is not None:
            self.drop()
        else:
            self.close()

    def __del__(self) -> None:
        if not self.closed:  # forgotten, not closed: what was meant is not known, so nothing appears
            self.drop()


@overload
def open(url: str, mode: Literal["rb", "r"] = "rb") -> LogReader: ...
@overload
def open(url: str, mode: Literal["wb", "w"], method: LogCodec | None = None) -> LogWriter: ...
def open(url: str, mode: str = "rb", method: LogCodec | None = None) -> LogReader | LogWriter:
    """A packed log at a path or fsspec URL, as a binary file.

    mode: "rb" to read, "wb" to write. method: for writing, `Logzip()` unless given.

    >>> import tempfile; from pathlib import Path
    >>> path = str(Path(tempfile.mkdtemp()) / "day.hold")
    >>> with open(path, "wb") as f:
    ...     _ = f.write(b"first\\nsecond\\n")
    >>> with open(path) as f:
    ...     list(f)
    [b'first\\n', b'second\\n']
    """
    from holdall.logs.logzip import Logzip
    from holdall.verbs import method_of

    if mode in ("wb", "w"):
        return LogWriter(url, method or Logzip())
    if mode not in ("rb", "r"):
        raise BadInput("mode", mode, '"rb" or "wb"')
    packed = Packed.open(url)
    codec = method_of(packed, url)
    if not isinstance(codec, LogCodec):
        packed.close()
        raise BadInput("file", url, "a packed log")
    return LogReader(packed, codec)
