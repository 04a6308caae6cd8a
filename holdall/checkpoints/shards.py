"""One rank's file of a checkpoint: a `.hold` file, and so a safetensors file, of which all places are known beforehand.

The header takes whole blocks and is written last, since it holds the checksum of each tensor; tensors begin at
multiples of 64 bytes and the file ends at one of 4096, so that a disk can take it past the page cache.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from holdall import header
from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, is_local, local_path, open_reader
from holdall.header import Section
from holdall.optional import lazy
from holdall.parts.ring import BLOCK

torch = lazy("torch", extra="checkpoints")

_ALIGN = 64
_POPULATE_READ = (
    22  # of madvise: map what is in the page cache, without the copies that MAP_POPULATE would make
)
_PIECE = 1 << 19  # bytes of one read, which are still in the processor's cache when they are summed
_TAGS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip


class Plan:
    """Where each leaf will lie. `sections` without checksums, in file order; `base`: bytes of the header; `size`."""

    def __init__(self, leaves: Mapping[str, Any], meta: Mapping[str, Any]):
        self.meta, self.sections = meta, list[Section]()
        self.leaves: list[Any] = []  # beside the sections; None where one only fills up
        at = 0
        for name, leaf in leaves.items():
            at = self._fill(at, _ALIGN)
            tag = _TAGS.get(str(leaf.dtype).removeprefix("torch."), "")
            shape = tuple(leaf.shape) if tag else (leaf.nbytes,)
            self.sections.append(Section(name, tag or "U8", shape, at, at + leaf.nbytes, b"\0" * 16))
            self.leaves.append(leaf)
            at += leaf.nbytes
        self.payload = self._fill(at, BLOCK)
        length = len(header.build(self.sections, meta))
        self.base = -(-length // BLOCK) * BLOCK
        self.size = self.base + self.payload

    def _fill(self, at: int, to: int) -> int:
        gap = -at % to
        if gap:
            self.sections.append(Section(f"~{at}", "U8", (gap,), at, at + gap, b"\0" * 16))
            self.leaves.append(None)
        return at + gap

    def head(self, sums: Sequence[bytes]) -> bytes:
        """The header with the checksums; exactly `base` bytes."""
        told = [replace(s, xxh3=x) for s, x in zip(self.sections, sums, strict=True)]
        return header.build(told, self.meta, self.base - 8)


def pieces(leaf: Any, most: int) -> Iterator[Any]:
    """The bytes of a tensor in the order of its shape, as uint8 tensors: views where it is contiguous (of any size),
    copies of at most `most` bytes where it is not."""
    if leaf.is_contiguous():
        if leaf.numel():
            yield leaf.reshape(-1).view(torch.uint8)
    elif leaf.nbytes <= most or leaf.numel() == 1:
        yield leaf.contiguous().reshape(-1).view(torch.uint8)
    else:
        rows = max(1, most * leaf.shape[0] // leaf.nbytes)
        for i in range(0, leaf.shape[0], rows):
            part = leaf.narrow(0, i, min(rows, leaf.shape[0] - i))
            yield from pieces(part[0] if rows == 1 and part.dim() > 1 else part, most)


class Shard:
    """A file to read from. Every tensor is compared with its checksum; CorruptArtefact where one differs."""

    def __init__(self, url: str):
        self.url = url
        try:
            self.reader: Reader = open_reader(url)
        except (BadInput, FileNotFoundError):
            raise CorruptArtefact(url, "a file of the checkpoint is missing") from None
        try:
            self.meta, sections, self.base = header.read(self.reader)
        except BaseException:
            self.reader.close()
            raise
        self.sections = {s.name: s for s in sections}
        self.size = self.reader.size
        self.read_bytes = self.base

    @property
    def digest(self) -> str:
        """Of the header, which holds the checksums of all the rest: one number for the whole file."""
        return xxhash.xxh3_128_hexdigest(self.reader.read(0, self.base))

    def _compare(self, section: Section, digest: bytes) -> None:
        if digest != section.xxh3:
            raise CorruptArtefact(self.url, f"{section.name!r} does not match its checksum")

    def mapped(self, threads: int) -> Callable[[str], Any]:
        """Leaves as uint8 tensors over a private mapping of the file: what is changed in them is copied page by page.
        Remote files are read into memory instead."""
        held: dict[str, Any] = {}
        if is_local(self.url):
            with local_path(self.url).open("rb") as f:
                view = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            with contextlib.suppress(OSError):  # older kernels do not know it, and fault pages in one by one
                view.madvise(_POPULATE_READ)
            if len(view) != self.size:
                raise CorruptArtefact(self.url, "it changed while it was read")
            held = {n: _view(view, self.base + s.start, s.stop - s.start) for n, s in self.sections.items()}
            self._together(lambda s: self._compare(s, _digest(held[s.name])), threads)
            self.read_bytes += self.size - self.base
        else:
            for n, s in self.sections.items():
                held[n] = torch.empty(s.stop - s.start, dtype=torch.uint8)
            self.read_into([(n, 0, t.numpy()) for n, t in held.items()], threads)
        return held.__getitem__

    def _together(self, act: Callable[[Section], None], threads: int) -> None:
        sections = sorted(self.sections.values(), key=lambda s: s.start - s.stop)  # the largest first
        if threads == 1:
            for section in sections:
                act(section)
            return
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(act, s) for s in sections]:
                done.result()

    def read_into(self, targets: Sequence[tuple[str, int, np.ndarray]], threads: int) -> None:
        """Fill memory (uint8) with bytes of leaves, from an offset on, and compare every leaf of the file. Bytes go
        straight to where they are wanted; those that nobody wants are read and summed, too."""
        wanted: dict[str, list[tuple[int, np.ndarray]]] = {}
        for name, at, memory in targets:
            wanted.setdefault(name, []).append((at, memory))
        if not wanted.keys() <= self.sections.keys():
            raise CorruptArtefact(self.url, f"no tensor {sorted(wanted.keys() - self.sections.keys())[0]!r}")
        fd = os.open(local_path(self.url), os.O_RDONLY | os.O_CLOEXEC) if is_local(self.url) else None
        try:
            self._together(lambda s: self._fill(fd, s, wanted.get(s.name, [])), threads)
        finally:
            if fd is not None:
                os.close(fd)
        self.read_bytes += self.size - self.base

    def _fill(self, fd: int | None, section: Section, takers: list[tuple[int, np.ndarray]]) -> None:
        nbytes, total = section.stop - section.start, xxhash.xxh3_128()
        first = next((m for at, m in takers if at == 0 and len(m) == nbytes), None)
        scratch = None if first is not None else np.empty(min(nbytes, _PIECE), np.uint8)
        for start in range(0, nbytes, _PIECE):
            n = min(_PIECE, nbytes - start)
            piece = first[start : start + n] if first is not None else scratch[:n]  # type: ignore[index]
            self._read(fd, self.base + section.start + start, piece)
            total.update(piece.data)
            for at, memory in takers:
                low, high = max(at, start), min(at + len(memory), start + n)
                if memory is not first and low < high:
                    memory[low - at : high - at] = piece[low - start : high - start]
        self._compare(section, total.digest())

    def _read(self, fd: int | None, at: int, piece: np.ndarray) -> None:
        if fd is None:
            piece[:] = np.frombuffer(self.reader.read(at, at + len(piece)), np.uint8)
            return
        done = 0
        while done < len(piece):
            n = os.preadv(fd, [piece[done:]], at + done)  # type: ignore[list-item]
            if not n:
                raise CorruptArtefact(self.url, f"cut short at byte {at + done}")
            done += n

    def close(self) -> None:
        self.reader.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _view(mapping: mmap.mmap, at: int, n: int) -> Any:
    """A part of a mapping as a tensor with a storage of its own: to copy or save it takes no others along."""
    return (
        torch.frombuffer(mapping, dtype=torch.uint8, count=n, offset=at)
        if n
        else torch.empty(0, dtype=torch.uint8)
    )


def _digest(raw: Any) -> bytes:
    """Of a uint8 tensor, without a copy."""
    return xxhash.xxh3_128_digest(raw.numpy()) if raw.numel() else xxhash.xxh3_128_digest(b"")
