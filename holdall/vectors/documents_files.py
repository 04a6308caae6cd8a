"""Documents in files: arrays or tensors `vectors` and `offsets`, or a table with a column of lists of lists."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from holdall.dropins.safetensors import _header as safetensors_header
from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.vectors.documents import Documents
from holdall.vectors.source import Vectors
from holdall.vectors.source_arrow import ArrowFile
from holdall.vectors.source_files import _TENSORS, _entry, opened
from holdall.vectors.source_npz import flat, unzipped
from holdall.vectors.source_rows import ReaderFile, kind_of
from holdall.vectors.source_tables import Table, _guarded, _Parquet

pa: Any = lazy("pyarrow", extra="vectors")
_VECTORS, _OFFSETS, _SALIENCE, _IDS = "vectors", "offsets", "salience", "ids"


def read(url: str, name: str | None = None) -> Documents | None:
    """None for a file of single vectors. name: of the array, tensor or column of vectors."""
    kind = kind_of(url)
    if kind == ".npz":
        beside = opened(url, lambda reader: _in_archive(reader, url))
    elif kind == ".safetensors":
        beside = opened(url, _in_tensors)
    elif kind in (".parquet", ".arrow", ".feather"):
        return opened(url, lambda reader: _in_table(reader, kind, name))
    else:
        return None
    if _OFFSETS not in beside:
        return None
    rows = Vectors.open(url, name or _VECTORS)
    try:
        return Documents(rows, beside[_OFFSETS], beside.get(_SALIENCE), beside.get(_IDS))
    except BaseException:
        rows.close()
        raise


def _in_archive(reader: Any, url: str) -> dict[str, np.ndarray]:
    archive = unzipped(url, lambda: zipfile.ZipFile(ReaderFile(reader)))
    there = {m.removesuffix(".npy") for m in archive.namelist()}
    wanted = there & {_OFFSETS, _SALIENCE, _IDS} if _OFFSETS in there else set()
    found = {n: flat(archive, n, f"{n} of {url}") for n in wanted}
    reader.close()
    return found


def _in_tensors(reader: Any) -> dict[str, np.ndarray]:
    head, base = safetensors_header(reader)
    found = {}
    for name in (_OFFSETS, _SALIENCE, _IDS) if _OFFSETS in head else ():
        if name in head:
            shape, tag, at = _entry(reader, name, head[name], base)
            if len(shape) != 1 or tag not in _TENSORS or tag == "BF16":
                raise BadInput(name, f"{tag} {list(shape)} in {reader.name}", "a list of numbers")
            stored = np.dtype(_TENSORS[tag])
            found[name] = np.frombuffer(reader.read(at, at + shape[0] * stored.itemsize), stored)
    reader.close()
    return found


def _in_table(reader: Any, kind: str, name: str | None) -> Documents | None:
    """The whole table is read; ids and attributes are as in tables of single vectors."""
    url = reader.name
    groups: Any = _guarded(url, lambda: _Parquet(reader) if kind == ".parquet" else ArrowFile(reader))
    fit = [f.name for f in groups.schema if _lists_of_lists(f.type)]
    if (name is None and len(fit) != 1) or (name is not None and name not in fit):
        reader.close()
        return None
    chosen = name or fit[0]

    def whole() -> Any:
        column = groups.table([chosen]).column(0).combine_chunks()
        column.validate(full=True)
        return column

    column = _guarded(url, whole)
    inner = column.flatten()
    values = inner.flatten()
    if column.null_count or inner.null_count or values.null_count:
        raise BadInput("vectors", f"a null in column {chosen} of {url}", "numbers in each document")
    if not len(inner):
        raise BadInput("vectors", f"no vectors in column {chosen} of {url}", "documents with vectors")
    sizes = inner.value_lengths().to_numpy()
    if (sizes != sizes[0]).any() or not sizes[0]:
        raise BadInput(
            "vectors", f"lists of other lengths in column {chosen} of {url}", "vectors of one dimension"
        )
    rows = Vectors.of(values.to_numpy(zero_copy_only=False).reshape(len(inner), int(sizes[0])))
    offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())])
    beside = Beside(reader, groups, chosen, len(offsets) - 1)
    found = Documents(rows, offsets, None, beside.ids(), beside.attributes())
    reader.close()
    return found


class Beside(Table):
    """The other columns of a table of documents."""

    def __init__(self, reader: Any, groups: Any, name: str, count: int):
        self._reader, self._groups, self._name, self.count = reader, groups, name, count


def _lists_of_lists(kind: Any) -> bool:
    def listed(t: Any) -> bool:
        return bool(pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))

    return listed(kind) and listed(kind.value_type) and not pa.types.is_nested(kind.value_type.value_type)
