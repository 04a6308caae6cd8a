"""Vectors in .npz archives: stored members are read in place, compressed ones are unpacked to a temporary file."""

from __future__ import annotations

import lzma
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, is_local, open_reader
from holdall.vectors.source_files import HEADER, npy_header, npy_rows, only, opened
from holdall.vectors.source_rows import Flat, ReaderFile, Rows

_PIECE = 1 << 20
_FAULTS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    struct.error, ValueError, OverflowError, IndexError, KeyError, TypeError, MemoryError,
)  # fmt: skip


def open_npz(url: str, name: str | None = None) -> Npz:
    def build(reader: Reader) -> Npz:
        archive = unzipped(url, lambda: zipfile.ZipFile(ReaderFile(reader)))
        inside = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
        if name is None or name not in inside:
            shapes = {n: npy_header(_head(archive, n, url), url)[0] for n in inside}
        else:
            shapes = {name: ()}  # the others may be what they like
        chosen = only(shapes, name, "array", url)
        npy_header(_head(archive, chosen, url), url)  # what cannot be used is refused before it is unpacked
        return Npz(_member(reader, archive, chosen), reader, archive)

    return opened(url, build)


class Npz(Rows):
    """One array of an archive, with the array "ids" beside it."""

    def __init__(self, rows: Flat, reader: Reader, archive: zipfile.ZipFile):
        super().__init__(rows.count, rows.dim, rows.dtype, not is_local(reader.name))
        self._rows, self._reader, self._archive = rows, reader, archive
        self.wide = rows.wide

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._rows.read(start, stop)

    def ids(self) -> np.ndarray | None:
        if "ids.npy" not in self._archive.namelist():
            return None
        where = f"ids of {self._reader.name}"
        found = flat(self._archive, "ids", where)
        if found.shape != (self.count,) or found.dtype.kind not in "iuU":
            raise BadInput(
                "ids", f"{found.dtype} {list(found.shape)}", f"whole numbers or strings [{self.count}]"
            )
        return found

    def close(self) -> None:
        self._rows.close()
        self._reader.close()


def flat(archive: zipfile.ZipFile, name: str, where: str) -> np.ndarray:
    """The array of that name, a list of numbers or strings; whole numbers as int64."""
    shape, stored, length = npy_header(_head(archive, name, where), where)
    if len(shape) != 1 or stored.kind not in "iufU":
        raise BadInput(name, f"{stored} {list(shape)}", "a list of numbers or strings")
    size = archive.getinfo(f"{name}.npy").file_size
    if size != length + shape[0] * stored.itemsize:  # before memory is taken for what a header says
        raise CorruptArtefact(where, "its size contradicts its header")
    raw = unzipped(where, lambda: archive.read(f"{name}.npy"))
    if len(raw) != size:
        raise CorruptArtefact(where, "cut short")
    found = np.frombuffer(raw, stored, offset=length)
    if stored.kind == "U":
        return _text(found, where)
    return found if stored.kind == "f" else _whole(found)


def _whole(found: np.ndarray) -> np.ndarray:
    """int64 [N]."""
    if found.dtype.kind == "u" and found.size and int(found.max()) > np.iinfo(np.int64).max:
        raise BadInput("ids", str(found.max()), "whole numbers below 2**63")
    return found.astype(np.int64)


def _text(found: np.ndarray, where: str) -> np.ndarray:
    """Strings [N], whose letters exist."""
    letters = found.view(found.dtype.str[0] + "u4") if found.dtype.itemsize else np.zeros(0, "u4")
    if (letters > 0x10FFFF).any() or ((letters >> 11) == 0x1B).any():
        raise CorruptArtefact(where, "text that is not Unicode")
    return found.astype(found.dtype.newbyteorder("="))


def unzipped(where: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (BadInput, CorruptArtefact):
        raise
    except _FAULTS as fault:
        why = " ".join(f"{type(fault).__name__} {fault}".split())[:100]
        raise CorruptArtefact(where, f"its zip archive cannot be read ({why})") from None


def _head(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    def first() -> bytes:
        with archive.open(f"{name}.npy") as f:
            return f.read(HEADER)

    return unzipped(where, first)


def _member(reader: Reader, archive: zipfile.ZipFile, name: str) -> Flat:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        unpacked = _unpacked(archive, info, reader.name)
        try:
            return npy_rows(unpacked, 0, unpacked.size)
        except BaseException:
            unpacked.close()
            raise
    start = info.header_offset
    local = reader.read(start, start + 30)
    start += 30 + sum(struct.unpack("<HH", local[26:]))
    if info.compress_size != info.file_size or start + info.file_size > reader.size:
        raise CorruptArtefact(reader.name, f"cut short: array {name[:80]!r} does not fit into it")
    return npy_rows(reader, start, start + info.file_size)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, url: str) -> Reader:
    """The member in a file that has no name any more and goes when it is closed."""
    with tempfile.NamedTemporaryFile(prefix="holdall.", suffix=".tmp", delete=False) as f:
        try:

            def work() -> None:
                with archive.open(info) as member:
                    shutil.copyfileobj(member, f, _PIECE)
                f.flush()

            unzipped(url, work)
            reader = open_reader(f.name)
        finally:
            Path(f.name).unlink()
    reader.name = url
    return reader
