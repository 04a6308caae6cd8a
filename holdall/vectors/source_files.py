"""Vectors in .npy, .fvecs, .bvecs, .ivecs and .safetensors files. Nothing is unpickled, no number is trusted."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from holdall.dropins.safetensors import _header as safetensors_header
from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, open_reader
from holdall.vectors.source_rows import ACCEPTED, Flat, held, kind_of

_LISTED = 20
HEADER = 16 << 10  # numpy refuses longer headers
_HEADER_FAULTS = (
    ValueError, SyntaxError, TypeError, KeyError, tokenize.TokenError, RecursionError, MemoryError, OverflowError,
)  # fmt: skip
_TENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_VECS = {"f": "<f4", "b": "u1", "i": "<i4"}


def opened(url: str, build: Callable[[Reader], Any]) -> Any:
    """What `build` makes of the file's reader, which is closed if it fails."""
    reader = open_reader(url)
    try:
        return build(reader)
    except BaseException:
        reader.close()
        raise


def only(found: Mapping[str, tuple[int, ...]], name: str | None, what: str, url: str) -> str:
    """The one that is meant; found: shapes by name."""
    if name is not None:
        if name not in found:
            raise BadInput(what, name, f"one of those in {url}: {_listed(found)}")
        return name
    flat = [n for n, shape in found.items() if len(shape) == 2]
    if len(flat) != 1:
        raise BadInput(what, f"no name for {url}", f"the name of one of: {_listed(found)}")
    return flat[0]


def _listed(found: Mapping[str, tuple[int, ...]]) -> str:
    told = [f"{' '.join(n.split())[:80]} {list(shape)}" for n, shape in found.items()]
    more = [f"{len(told) - _LISTED} more"] if len(told) > _LISTED else []
    return ", ".join(told[:_LISTED] + more) or "none"


def _rows(shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """[N, D], or [D] for one vector."""
    if len(shape) not in (1, 2):
        raise BadInput("vectors", f"shape {shape} in {where}", "[N, D], or [D] for one vector")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def open_npy(url: str, name: str | None = None) -> Flat:
    if name is not None:
        raise BadInput("name", name, "none: an .npy file has one array")
    return opened(url, lambda reader: npy_rows(reader, 0, reader.size))


def npy_rows(reader: Reader, start: int, stop: int) -> Flat:
    """The array in [start, stop) of the file."""
    shape, stored, length = npy_header(reader.read(start, min(stop, start + HEADER)), reader.name)
    rows = _rows(shape, reader.name)
    held(stored, reader.name)
    if start + length + math.prod(rows) * stored.itemsize > stop:
        raise CorruptArtefact(
            reader.name, f"cut short: an array {list(shape)} of {stored} does not fit into it"
        )
    return Flat(reader, rows, stored, start + length)


def npy_header(raw: bytes, where: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type, and where the numbers begin."""
    file = io.BytesIO(raw)
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, stored = parse(file)
    except _HEADER_FAULTS as fault:
        why = " ".join(str(fault).split())[:100]
        raise CorruptArtefact(where, f"its numpy header cannot be read ({why})") from None
    if any(type(n) is not int or n < 0 for n in shape):
        raise CorruptArtefact(where, f"its numpy header tells a shape {shape}")
    if fortran and len(shape) > 1:
        raise BadInput(
            "vectors",
            f"an array in Fortran order in {where}",
            "C order: numpy.ascontiguousarray, saved again",
        )
    return shape, stored, file.tell()


def open_vecs(url: str, name: str | None = None) -> Flat:
    """Each row: its dimension as int32, then that many float32 (.fvecs), bytes (.bvecs) or int32 (.ivecs)."""
    if name is not None:
        raise BadInput("name", name, "none: such a file has one array")
    stored = np.dtype(_VECS[kind_of(url)[1]])

    def build(reader: Reader) -> Flat:
        if not reader.size:
            raise BadInput("vectors", f"{url}, which is empty", "at least one row")
        dim = int.from_bytes(reader.read(0, 4), "little", signed=True)
        if dim < 0:
            raise CorruptArtefact(url, f"its first row has {dim} numbers")
        width = 4 + dim * stored.itemsize
        if reader.size % width:
            why = f"{reader.size} bytes are no whole number of rows like the first, of {dim} numbers"
            raise CorruptArtefact(url, f"{why}: cut short, or rows differ in length")
        shape = (reader.size // width, dim)
        return Flat(reader, shape, stored, 0, prefix=True, whole=stored.kind == "i")

    return opened(url, build)


def open_safetensors(url: str, name: str | None = None) -> Flat:
    def build(reader: Reader) -> Flat:
        head, base = safetensors_header(reader)
        head.pop("__metadata__", None)
        shapes = {n: _entry(reader, n, e, base)[0] for n, e in head.items()}
        chosen = only(shapes, name, "tensor", url)
        shape, tag, at = _entry(reader, chosen, head[chosen], base)
        rows = _rows(shape, f"tensor {chosen!r}")
        if tag not in _TENSORS:
            raise BadInput("vectors", f"{tag} in {url}", ACCEPTED)
        return Flat(reader, rows, np.dtype(_TENSORS[tag]), at, brain=tag == "BF16")

    return opened(url, build)


def _entry(reader: Reader, name: str, entry: Any, base: int) -> tuple[tuple[int, ...], str, int]:
    """Shape, type and place of a tensor."""
    try:
        tag, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(tag, str) or any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
            raise ValueError("numbers that are none")
        wanted = math.prod(shape) * np.dtype(_TENSORS[tag]).itemsize if tag in _TENSORS else stop - start
        if stop - start != wanted or base + stop > reader.size:
            raise ValueError("its size contradicts its shape, or the file is cut short")
    except (KeyError, TypeError, ValueError) as fault:
        raise CorruptArtefact(reader.name, f"tensor {name[:80]!r}: {type(fault).__name__} {fault}") from None
    return shape, tag, base + start
