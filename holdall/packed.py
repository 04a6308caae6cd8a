"""Packed: named arrays and a JSON header in one `.hold` file, which is a valid safetensors file.

    8 bytes   little-endian length N of the header
    N bytes   JSON: {"__metadata__": {...}, "section": {"dtype", "shape", "data_offsets"}, ...}, padded with spaces
    the rest  the sections, in the order in which they were added, without holes

`__metadata__` holds four strings: `holdall` (JSON: room, method and its knobs, source digest, report and what
the method itself keeps), `holdall.format`, `holdall.sums` (xxh3-128 of each section, base64, in file order) and
`holdall.xxh3` (xxh3-128 of the length and the header with these 32 digits as zeros). So every bit of the file
is under a checksum, and a section can be checked when it alone is read. Sections whose name starts with `~`
only align the next one, since safetensors forbids holes.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, atomic_write, open_reader

FORMAT = 1
_MAX_HEADER = 100_000_000  # what the safetensors library accepts
_SPILL = 8 << 20  # a writer keeps this much in memory before it needs a file
_ROOM = 64 << 10  # header room of a file that was begun before its sections were known
_ZEROS = "0" * 32
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_TAGS = {np.dtype(v): k for k, v in _DTYPES.items()}


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
        return np.frombuffer(raw, dtype=_DTYPES[self.tag]).reshape(self.shape)


class Packed:
    """What a codec returns: `arrays` (name -> numpy array) and `meta` (JSON-ready).

    `nbytes` is the exact size of the file that `save` writes. Opened lazily, an array is read (and its
    checksum compared) when it is asked for, and `traffic` counts the bytes that were read.

    >>> p = Packed({"x": np.arange(3)}, {"room": "logs", "method": {}})
    >>> len(p.to_bytes()) == p.nbytes
    True
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]):
        self.arrays: Mapping[str, np.ndarray] = arrays
        self.meta: dict[str, Any] = dict(meta)
        self._size: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on disk: sections, code books, scales, header and all."""
        if self._size is not None:
            return self._size
        with Writer(None) as writer:
            for name, array in self.arrays.items():
                writer.add(name, array)
            return writer.size(self.meta)

    @property
    def traffic(self) -> int:
        """Bytes read from the file so far; 0 if it never was in a file."""
        return self.arrays.reader.traffic if isinstance(self.arrays, LazyArrays) else 0

    def to_bytes(self) -> bytes:
        with Writer(None) as writer:
            for name, array in self.arrays.items():
                writer.add(name, array)
            return writer.to_bytes(self.meta)

    def save(self, url: str) -> None:
        """Write to a path or fsspec URL: whole or not at all."""
        with Writer(url) as writer:
            for name, array in self.arrays.items():
                writer.add(name, array)
            writer.finish(self.meta)

    @classmethod
    def open(cls, url: str, lazy: bool = True) -> Packed:
        """Open a path or fsspec URL; raises `CorruptArtefact` if it is not an undamaged `.hold` file.

        lazy: read sections (and check each) when they are asked for; otherwise all of them now.
        """
        reader = open_reader(url)
        try:
            return cls._from_reader(reader, lazy)
        except BaseException:
            reader.close()
            raise

    @classmethod
    def from_bytes(cls, raw: bytes, name: str = "<memory>") -> Packed:
        return cls._from_reader(Reader.over_bytes(raw, name), lazy=False)

    @classmethod
    def _from_reader(cls, reader: Reader, lazy: bool) -> Packed:
        meta, sections, base = _read_header(reader)
        arrays = LazyArrays(reader, sections, base)
        packed = cls(arrays, meta)
        packed._size = reader.size
        if not lazy:
            packed.arrays = arrays.read([s.name for s in sections])
            _check_sums(reader, [s for s in sections if s.name.startswith("~")], base)
            reader.close()
        return packed

    def check(self) -> int:
        """Read every section and compare its checksum; returns the bytes read."""
        if not isinstance(self.arrays, LazyArrays):
            return 0
        before = self.traffic
        _check_sums(self.arrays.reader, self.arrays.sections, self.arrays.base)
        return self.traffic - before

    def close(self) -> None:
        if isinstance(self.arrays, LazyArrays):
            self.arrays.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Packed({self.meta.get('room')}, {len(self.arrays)} arrays, {self.nbytes:,} bytes)"


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays that are read from the file, and checked, when asked for; nothing is kept."""

    def __init__(self, reader: Reader, sections: list[Section], base: int):
        self.reader, self.sections, self.base = reader, sections, base
        self._by_name = {s.name: s for s in sections if not s.name.startswith("~")}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def section(self, name: str) -> Section:
        return self._by_name[name]

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Several arrays at once; neighbours in the file come in one read."""
        wanted = [self._by_name[n] for n in names if not n.startswith("~")]
        found: dict[str, np.ndarray] = {}
        for run in _runs(sorted(wanted, key=lambda s: (s.start, s.stop))):
            raw = memoryview(self.reader.read(self.base + run[0].start, self.base + run[-1].stop))
            for s in run:
                piece = raw[s.start - run[0].start : s.stop - run[0].start]
                _compare(self.reader.name, s, piece)
                found[s.name] = s.array(piece)
        return {s.name: found[s.name] for s in wanted}


class Writer:
    """Writes a `.hold` file section by section, in one pass, in bounded memory.

    What is added stays in memory up to 8 MiB and then goes to a temporary file beside the target, after a
    reserved header. `finish` writes the header, syncs and renames; leaving the `with` block otherwise drops all.
    """

    def __init__(self, url: str | None):
        self._url = url
        self._entries: list[tuple[str, str, tuple[int, ...], int, int]] = []
        self._names: set[str] = set()
        self._sums: list[bytes] = []
        self._kept: list[Any] = []
        self._offset = 0
        self._file: atomic_write | None = None

    def add(self, name: str, data: np.ndarray | bytes | Iterable[bytes]) -> None:
        """Add an array, or bytes (or an iterator of bytes, of any total size) as a U8 vector."""
        if not name or name.startswith("~") or name == "__metadata__" or name in self._names:
            raise BadInput("section name", repr(name), "a new name that does not start with ~")
        if isinstance(data, np.ndarray):
            little = np.ascontiguousarray(data).reshape(data.shape)
            if data.dtype.newbyteorder("<") not in _TAGS:
                raise BadInput(f"array {name}", str(data.dtype), f"one of {', '.join(_DTYPES)}")
            little = little.astype(data.dtype.newbyteorder("<"), copy=False)
            self._align(little.dtype.itemsize)
            self._write(name, _TAGS[little.dtype], little.shape, [memoryview(little.reshape(-1).view(np.uint8))])
        else:
            self._write(name, "U8", None, [data] if isinstance(data, bytes | bytearray | memoryview) else data)

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
        self._entries.append((name, tag, shape or (self._offset - start,), start, self._offset))
        if shape is not None:
            self._entries[-1] = (name, tag, tuple(shape), start, self._offset)
        self._names.add(name)
        self._sums.append(total.digest())

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
        told = {
            "holdall": json.dumps(meta, separators=(",", ":"), ensure_ascii=False, allow_nan=False),
            "holdall.format": str(FORMAT),
            "holdall.sums": base64.b64encode(b"".join(self._sums)).decode(),
            "holdall.xxh3": _ZEROS,
        }
        head: dict[str, Any] = {"__metadata__": told}
        for name, tag, shape, start, stop in self._entries:
            head[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [start, stop]}
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(room or len(text) + -len(text) % 8)
        if len(text) > _MAX_HEADER:
            raise BadInput("sections", f"a header of {len(text)} bytes", f"at most {_MAX_HEADER}: pack fewer, larger")
        raw = len(text).to_bytes(8, "little") + text
        return raw.replace(_mark(_ZEROS), _mark(xxhash.xxh3_128_hexdigest(raw)), 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None


def _mark(digits: str) -> bytes:
    return f'"holdall.xxh3":"{digits}"'.encode()


def _runs(sections: list[Section]) -> Iterator[list[Section]]:
    run: list[Section] = []
    for s in sections:
        if run and s.start != run[-1].stop:
            yield run
            run = []
        run.append(s)
    if run:
        yield run


def _compare(path: str, s: Section, raw: bytes | memoryview) -> None:
    if len(raw) != s.stop - s.start or xxhash.xxh3_128_digest(raw) != s.xxh3:
        raise CorruptArtefact(path, f"section {s.name!r} does not match its checksum")


def _check_sums(reader: Reader, sections: list[Section], base: int, step: int = 8 << 20) -> None:
    for s in sections:
        total = xxhash.xxh3_128()
        for start in range(s.start, s.stop, step):
            total.update(reader.read(base + start, base + min(start + step, s.stop)))
        if total.digest() != s.xxh3:
            raise CorruptArtefact(reader.name, f"section {s.name!r} does not match its checksum")


def _read_header(reader: Reader) -> tuple[dict[str, Any], list[Section], int]:
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
        raise CorruptArtefact(path, f"format {version!r} is not known to this Holdall (format {FORMAT}): upgrade it")
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
        if start != end or stop - start != math.prod(shape) * np.dtype(_DTYPES[tag]).itemsize:
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
