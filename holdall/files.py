"""Bytes in and out, on local paths and fsspec URLs: ranged reads that are counted, writes that are atomic."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from holdall.errors import BadInput, CorruptArtefact

_CHUNK = 1 << 20  # 4 MiB buffered writes were measured several times slower than 1 MiB ones on a virtual disk


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    return Path(url.removeprefix("file://")).expanduser()


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # 60 ms: only for URLs

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as fault:
        raise BadInput("url", url, f"a local path or an fsspec URL ({fault})") from fault


class Reader:
    """Ranged reads of one file: `read(start, stop)`, `size`, `name`, and `traffic`, the bytes read so far."""

    def __init__(
        self,
        name: str,
        size: int,
        fetch: Callable[[int, int], bytes],
        close: Callable[[], None],
        fetch_soon: Callable[[int, int], None] | None = None,
    ):
        self.name, self.size = name, size
        self._fetch, self._close, self._soon = fetch, close, fetch_soon
        self._lock = threading.Lock()
        self.traffic = 0

    @classmethod
    def over_bytes(cls, raw: bytes, name: str = "<memory>") -> Reader:
        return cls(name, len(raw), lambda a, b: raw[a:b], lambda: None)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop); fewer in the file is an error."""
        assert 0 <= start <= stop
        if stop > self.size:
            raise CorruptArtefact(self.name, f"{self.size} bytes where at least {stop} are needed")
        raw = self._fetch(start, stop) if stop > start else b""
        with self._lock:
            self.traffic += len(raw)
        if len(raw) != stop - start:
            raise CorruptArtefact(self.name, f"cut short while it was read at byte {start + len(raw)}")
        return raw

    def soon(self, start: int, stop: int) -> None:
        """Let the disk begin with what will be read next, so that several reads are under way at once."""
        if self._soon is not None:
            self._soon(start, stop)

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_reader(url: str, scattered: bool = False) -> Reader:
    """A Reader over a local path (pread, safe from many threads) or an fsspec URL (range requests).

    scattered: reads are few and far between, so that the kernel does not read ahead, which would cost many times them.
    """
    if not is_local(url):
        fs, path = _filesystem(url)
        if not fs.isfile(path):
            raise BadInput("file", url, "a file that exists")
        return Reader(url, fs.size(path), lambda a, b: fs.cat_file(path, start=a, end=b), lambda: None)
    where = local_path(url)
    if not where.is_file():
        raise BadInput("file", url, "a file that exists" if not where.is_dir() else "a file, not a folder")
    fd = os.open(where, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    state = {"open": True}

    def close() -> None:
        if state.pop("open", False):
            os.close(fd)

    soon = None
    if scattered and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

        def soon(a: int, b: int) -> None:
            os.posix_fadvise(fd, a, b - a, os.POSIX_FADV_WILLNEED)

    return Reader(url, os.fstat(fd).st_size, lambda a, b: _pread(fd, a, b), close, soon)


def _pread(fd: int, start: int, stop: int) -> bytes:
    first = os.pread(fd, stop - start, start)
    if len(first) == stop - start:
        return first
    pieces, at = [first], start + len(first)
    while at < stop and pieces[-1]:  # the kernel gives at most 2 GiB a call
        pieces.append(os.pread(fd, stop - at, at))
        at += len(pieces[-1])
    return b"".join(pieces)


@contextlib.contextmanager
def open_stream(url: str) -> Iterator[BinaryIO]:
    """A binary file to read from front to back; "-" is standard input."""
    if url == "-":
        import sys

        yield sys.stdin.buffer
    elif is_local(url):
        if not local_path(url).exists():
            raise BadInput("file", url, "a file that exists")
        with local_path(url).open("rb") as f:
            yield f
    else:
        fs, path = _filesystem(url)
        if not fs.isfile(path):
            raise BadInput("file", url, "a file that exists")
        with fs.open(path, "rb") as f:
            yield f


class atomic_write:
    """A file that appears at `url` whole, at `publish()`, or not at all.

    Local: a temporary name in the same folder, fsync, rename, fsync of the folder; temporaries of writers that
    were killed are removed by the next writer. Remote: a local temporary, then one upload (atomic on S3).

        with atomic_write(url) as f:
            f.write(...)
            f.publish()
    """

    def __init__(self, url: str):
        self.url = url
        if is_local(url):
            self._target = local_path(url)
            folder = self._target.parent
            if not folder.is_dir():
                raise BadInput("output", url, f"a folder that exists ({folder} does not)")
            if self._target.is_dir():
                raise BadInput("output", url, "a file name, not a folder")
            _sweep(folder, self._target.name)
            self._temp = folder / f".{self._target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        else:
            _filesystem(url)  # a bad URL fails before the work, not after it
            self._temp = Path(tempfile.gettempdir()) / f"holdall.{os.getpid()}.{secrets.token_hex(8)}.tmp"
        self._file = self._temp.open("x+b", buffering=_CHUNK)

    @property
    def unfinished(self) -> Path:
        """The temporary file, for libraries that open files by themselves; they close it before `publish`."""
        return self._temp

    def write(self, piece: Any) -> None:
        self._file.write(piece)

    def seek(self, at: int) -> None:
        self._file.seek(at)

    def chunks(self, start: int) -> Iterator[bytes]:
        """What was written so far, from `start` on."""
        self._file.flush()
        self._file.seek(start)
        while piece := self._file.read(_CHUNK):
            yield piece

    def publish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if is_local(self.url):
                self._temp.replace(self._target)
                _sync_folder(self._target.parent)
            else:
                fs, path = _filesystem(self.url)
                fs.put_file(str(self._temp), path)
                self._temp.unlink()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # a full disk fails again while it flushes what is to be dropped
            self._file.close()
        self._temp.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self.discard()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sweep(folder: Path, name: str) -> None:
    """Remove the temporaries that killed writers of this same file left."""
    for old in folder.glob(f".{_escaped(name)}.*.*.tmp"):
        owner = old.name.removeprefix(f".{name}.").split(".")[0]
        if owner.isdigit() and not _alive(int(owner)):
            old.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
