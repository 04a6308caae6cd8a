"""A table of rows in a file, found without reading any: .npy, .safetensors, a numpy memmap, or an open .npy file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy

torch = lazy("torch", extra="training")
_TAGS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_WANTED = 'a .npy or .safetensors file ("file.safetensors:name"), a numpy memmap or an open .npy file'


@dataclass(frozen=True)
class Table:
    """rows x shape numbers of a torch dtype, one after the other from byte `start` of a file on."""

    path: str
    start: int
    rows: int
    shape: tuple[int, ...]
    dtype: Any
    fd: int | None = None  # of a file that is open, and may have no name any more

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return prod(self.shape) * int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        return self.rows * self.width

    def opened(self) -> int:
        """A descriptor of one's own; raises where the file is shorter than its table."""
        if self.fd is None and not Path(self.path).is_file():
            raise BadInput("table", self.path, "a file that exists")
        fd = os.dup(self.fd) if self.fd is not None else os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        if size < self.start + self.nbytes:
            os.close(fd)
            raise CorruptArtefact(
                self.path, f"{size} bytes where at least {self.start + self.nbytes} are needed"
            )
        if hasattr(
            os, "posix_fadvise"
        ):  # read-ahead took the whole of a 2 GB file for 8,000 rows of 512 bytes
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd


def table_of(x: Any) -> Table:
    """The table in a path, "file.safetensors:name", a memmap or an open file."""
    if isinstance(x, Table):
        return x
    if isinstance(x, np.memmap):
        return _mapped(x)
    if hasattr(x, "fileno"):
        x.seek(0)
        return _npy(x, str(getattr(x, "name", "open file")), x.fileno())
    if not isinstance(x, str | Path):
        raise BadInput("table", type(x).__name__, _WANTED)
    path, _, name = str(x).partition(".safetensors:")
    path = path + ".safetensors" if name else path
    if not Path(path).is_file():
        raise BadInput("table", path, f"a local file that exists: {_WANTED}")
    with Path(path).open("rb") as f:
        return _safetensors(f, path, name) if path.endswith(".safetensors") else _npy(f, path, None)


def _mapped(x: np.memmap[Any, Any]) -> Table:
    if not x.flags.c_contiguous or x.filename is None or not hasattr(x.base, "madvise"):
        raise BadInput("memmap", str(x.shape), "a whole memmap of a file, not a part of one")
    return _table(str(x.filename), x.offset, x.shape, x.dtype)


def _npy(f: Any, path: str, fd: int | None) -> Table:
    form = np.lib.format
    try:
        version = form.read_magic(f)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, by_columns, dtype = read(f)
    except ValueError as fault:
        raise CorruptArtefact(path, f"no .npy header ({str(fault).splitlines()[0]})") from fault
    if by_columns and len(shape) > 1:
        raise BadInput("table", path, "rows one after the other (numpy.ascontiguousarray before it is saved)")
    return _table(path, f.tell(), shape, dtype, fd)


def _table(path: str, start: int, shape: Any, dtype: Any, fd: int | None = None) -> Table:
    if dtype.hasobject or dtype.newbyteorder("<") != dtype or not shape:
        raise BadInput("table", f"{dtype} {tuple(shape)} in {path}", "rows of plain little-endian numbers")
    try:
        kind = torch.from_numpy(np.zeros(1, dtype)).dtype
    except TypeError as fault:
        raise BadInput("table", f"{dtype} in {path}", "numbers of a type that torch has") from fault
    return Table(path, start, int(shape[0]), tuple(map(int, shape[1:])), kind, fd)


def _safetensors(f: Any, path: str, name: str) -> Table:
    try:
        size = int.from_bytes(f.read(8), "little")
        told = json.loads(f.read(min(size, 100 << 20)))
        names = [n for n in told if n != "__metadata__"]
        name = name or (names[0] if len(names) == 1 else "")
        if name not in names:
            raise BadInput("table", name or "no name", f"{path}:NAME with one of {', '.join(names)[:200]}")
        found = told[name]
        shape, start, stop = tuple(map(int, found["shape"])), *map(int, found["data_offsets"])
        kind = getattr(torch, _TAGS[found["dtype"]])
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        if isinstance(fault, BadInput):
            raise
        raise CorruptArtefact(path, "no safetensors header") from fault
    if not shape or stop - start != prod(shape) * kind.itemsize:
        raise CorruptArtefact(path, f"{name} has {stop - start} bytes for the shape {list(shape)}")
    return Table(path, 8 + size + start, shape[0], shape[1:], kind)
