"""The header of a `.hold` file: what `packed.py` describes, written and read. Reading distrusts everything."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader

FORMAT = 1
_MAX_HEADER = 100_000_000  # what the safetensors library accepts
_ZEROS = "0" * 32
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
TAGS = {np.dtype(v): k for k, v in _DTYPES.items()}
_READ = {  # types that numpy does not have come as the whole numbers of their bits
    **_DTYPES, "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "C64": "<c8",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """Where one array lies: `start` and `stop` count from the first byte after the header."""

    name: str
    tag: str
    shape: tuple[int, ...]
    start: int
    stop: int
    xxh3: bytes

    def array(self, raw: bytes | memoryview) -> np.ndarray:
        return np.frombuffer(raw, dtype=_READ[self.tag]).reshape(self.shape)


def build(sections: Iterable[Section], meta: Mapping[str, Any], room: int = 0) -> bytes:
    """The length and the header; padded to `room` bytes of header if it is given."""
    sections = list(sections)
    told = {
        "holdall": json.dumps(meta, separators=(",", ":"), ensure_ascii=False, allow_nan=False),
        "holdall.format": str(FORMAT),
        "holdall.sums": base64.b64encode(b"".join(s.xxh3 for s in sections)).decode(),
        "holdall.xxh3": _ZEROS,
    }
    head: dict[str, Any] = {"__metadata__": told}
    for s in sections:
        head[s.name] = {"dtype": s.tag, "shape": list(s.shape), "data_offsets": [s.start, s.stop]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(room or len(text) + -len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise BadInput(
            "sections", f"a header of {len(text)} bytes", f"at most {_MAX_HEADER}: pack fewer, larger"
        )
    raw = len(text).to_bytes(8, "little") + text
    return raw.replace(_mark(_ZEROS), _mark(xxhash.xxh3_128_hexdigest(raw)), 1)


def _mark(digits: str) -> bytes:
    return f'"holdall.xxh3":"{digits}"'.encode()


def read(reader: Reader) -> tuple[dict[str, Any], list[Section], int]:
    """Meta, sections in file order, and where the data begins; distrusts everything."""
    path = reader.name
    if reader.size < 10:
        raise CorruptArtefact(path, f"{reader.size} bytes are too few for a .hold file")
    length = int.from_bytes(reader.read(0, 8), "little")
    if not 2 <= length <= min(_MAX_HEADER, reader.size - 8):
        raise CorruptArtefact(path, "not a .hold file, or cut short (its header is longer than the file)")
    raw = reader.read(8, 8 + length)
    try:
        head = json.loads(raw.decode(), object_pairs_hook=_no_duplicates)
        told = head.pop("__metadata__")
        declared, version = told["holdall.xxh3"], told["holdall.format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise CorruptArtefact(path, f"not a .hold file, or its header is altered ({fault})") from None
    whole = length.to_bytes(8, "little") + raw.replace(_mark(str(declared)), _mark(_ZEROS), 1)
    if xxhash.xxh3_128_hexdigest(whole) != declared:
        raise CorruptArtefact(path, "the header does not match its checksum")
    if version != str(FORMAT):
        raise CorruptArtefact(
            path, f"format {version!r} is not known to this Holdall (format {FORMAT}): upgrade it"
        )
    try:
        meta = json.loads(told["holdall"], object_pairs_hook=_no_duplicates)
        if not isinstance(meta, dict):
            raise ValueError("meta is not a mapping")
        sums = base64.b64decode(told["holdall.sums"], validate=True)
        return meta, _sections(head, sums, reader.size - 8 - length), 8 + length
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as fault:
        raise CorruptArtefact(path, f"its header contradicts itself ({fault})") from None


def _sections(head: dict[str, Any], sums: bytes, data_size: int) -> list[Section]:
    if len(sums) != 16 * len(head):
        raise ValueError("one checksum a section is wanted")
    sections, end = [], 0
    for i, (name, entry) in enumerate(head.items()):
        (start, stop), shape, tag = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
        if any(type(n) is not int or n < 0 for n in (start, stop, *shape)) or len(shape) > 32:
            raise ValueError(f"section {name!r} has no sane shape")
        if start != end or stop - start != math.prod(shape) * np.dtype(_READ[tag]).itemsize:
            raise ValueError(f"section {name!r} does not lie where it should")
        sections.append(Section(name, tag, shape, start, stop, sums[16 * i : 16 * i + 16]))
        end = stop
    if end != data_size:
        raise ValueError(f"{data_size} bytes of data where {end} were written")
    return sections


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found
