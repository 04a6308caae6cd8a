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

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import xxhash

from holdall import header
from holdall.errors import CorruptArtefact
from holdall.files import Reader, open_reader
from holdall.header import Section
from holdall.writer import Writer

__all__ = ["LazyArrays", "Packed", "Section", "Writer"]


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
        self.notes: dict[str, Any] = {}  # from whoever made it to whoever asked; not in the file
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

    def kept(self, to: str | None) -> Packed:
        """Itself; or, with a path or URL, saved there and opened lazily: what `Codec.encode` ends with."""
        if to is None:
            return self
        self.save(to)
        return Packed.open(to)

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
        meta, sections, base = header.read(reader)
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

    def __contains__(self, name: object) -> bool:
        return name in self._by_name  # Mapping's own would read the array to find out

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
