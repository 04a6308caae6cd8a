"""Reading and writing safetensors files, from a path or URL, distrusting every number in their header."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, atomic_write, open_reader
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_EMBEDDED = "holdall.file."  # metadata keys under which a lone safetensors file carries FILES
_MOST_HEADER = 100_000_000
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def read(url: str) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Tensors, each read once, and the small files that `write` put into the header."""
    with open_reader(url) as reader:
        head, base = _header(reader)
        told = head.pop("__metadata__", {})
        return {name: _tensor(reader, name, entry, base) for name, entry in head.items()}, _carried(told)


def outline(url: str) -> tuple[int, set[torch.dtype], dict[str, bytes]]:
    """How many numbers there are, their types, and the small files: from the header alone."""
    count, kinds = 0, set()
    with open_reader(url) as reader:
        head, _ = _header(reader)
        told = head.pop("__metadata__", {})
        for name, entry in head.items():
            dtype, shape, _ = _described(reader, name, entry)
            count += math.prod(shape)
            kinds.add(dtype)
    return count, kinds, _carried(told)


def _carried(told: Mapping[str, str]) -> dict[str, bytes]:
    return {k.removeprefix(_EMBEDDED): v.encode() for k, v in told.items() if k.startswith(_EMBEDDED)}


def _header(reader: Reader) -> tuple[dict[str, Any], int]:
    if reader.size < 10:
        raise CorruptArtefact(reader.name, f"{reader.size} bytes are too few for a safetensors file")
    length = int.from_bytes(reader.read(0, 8), "little")
    if not 2 <= length <= min(_MOST_HEADER, reader.size - 8):
        raise CorruptArtefact(reader.name, "not a safetensors file, or cut short")
    try:
        head = json.loads(reader.read(8, 8 + length))
    except (ValueError, RecursionError) as fault:
        raise CorruptArtefact(reader.name, f"its header is not JSON ({type(fault).__name__})") from None
    told = head.get("__metadata__", {}) if isinstance(head, dict) else None
    if not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()):
        raise CorruptArtefact(reader.name, "its header is not a table of tensors")
    return head, 8 + length


def _described(reader: Reader, name: str, entry: Any) -> tuple[torch.dtype, list[int], tuple[int, int]]:
    """Type, shape and place of one tensor, checked."""
    try:
        dtype = getattr(torch, _DTYPES[entry["dtype"]])
        shape, (start, stop) = [int(n) for n in entry["shape"]], entry["data_offsets"]
        sane = 0 <= start <= stop and all(n >= 0 for n in shape)
        if not sane or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError("its size contradicts its shape")
        return dtype, shape, (start, stop)
    except (KeyError, TypeError, ValueError) as fault:
        raise CorruptArtefact(reader.name, f"tensor {name[:80]!r}: {type(fault).__name__} {fault}") from None


def _tensor(reader: Reader, name: str, entry: Any, base: int) -> torch.Tensor:
    dtype, shape, (start, stop) = _described(reader, name, entry)
    if stop == start:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(reader.read(base + start, base + stop)), dtype=dtype).reshape(shape)


def write(state: Mapping[str, torch.Tensor], url: str, files: Mapping[str, bytes] | None = None) -> None:
    """One safetensors file, whole or not at all; `files` ride in its metadata, unseen by other readers."""
    told = {"format": "pt", **{_EMBEDDED + k: v.decode() for k, v in (files or {}).items()}}
    head: dict[str, Any] = {"__metadata__": told}
    at, names = 0, {getattr(torch, v): k for k, v in _DTYPES.items()}
    for name, tensor in state.items():
        stop = at + tensor.numel() * tensor.element_size()
        head[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST_HEADER:
        raise BadInput("output", url, "a folder: its configuration is too large for a safetensors header")
    with atomic_write(url) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            f.write(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data))
        f.publish()
