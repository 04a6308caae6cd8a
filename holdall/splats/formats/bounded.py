"""Unpacking that stops: what a file claims is compared with its size before any of it is believed."""

from __future__ import annotations

import zlib

from holdall.errors import CorruptArtefact, human_bytes
from holdall.optional import lazy

zstandard = lazy("zstandard", extra="splats")

# Scenes pack 3 to 10 times. A made-up one may pack better and still be read, while it is small.
_RATIO, _FREE = 64, 4 << 20
_REST = 1 << 20  # bytes that may follow what is read of a gzip stream: extensions that are not read


def brief(fault: BaseException) -> str:
    """What a library said, in a few words: some quote half of the file."""
    return " ".join(str(fault).split())[:100]


def believed(claimed: int, packed: int, name: str) -> int:
    """`claimed` bytes, if a file of `packed` bytes can honestly hold them."""
    most = max(_FREE, _RATIO * packed)
    if claimed > most:
        raise CorruptArtefact(
            name, f"its {packed:,} bytes claim to hold {human_bytes(claimed)}, over {_RATIO} times as much"
        )
    return claimed


class Gunzip:
    """A gzip stream, read from front to back in pieces of known length."""

    def __init__(self, raw: bytes, name: str):
        self._stream, self._rest, self.name = zlib.decompressobj(wbits=31), raw, name

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        pieces, missing = [], count
        while missing and (piece := self._some(missing)):
            pieces.append(piece)
            missing -= len(piece)
        if missing:
            raise CorruptArtefact(self.name, f"it ends {missing:,} bytes early")
        return b"".join(pieces)

    def finish(self) -> None:
        """What follows is not needed; that the stream ends with the right checksum is."""
        left = _REST
        while not self._stream.eof and (piece := self._some(left)):
            left -= len(piece)
        if not self._stream.eof:
            raise CorruptArtefact(self.name, "its gzip stream has no end")

    def _some(self, most: int) -> bytes:
        if not most or self._stream.eof:
            return b""
        try:
            piece = self._stream.decompress(self._rest, most)
        except zlib.error as fault:
            raise CorruptArtefact(self.name, f"its gzip stream is broken ({brief(fault)})") from fault
        self._rest = self._stream.unconsumed_tail
        return piece


def unzstd(raw: bytes, count: int, name: str) -> bytes:
    """One zstd frame of exactly `count` bytes; nothing larger is ever allocated."""
    try:
        told = zstandard.frame_content_size(
            raw
        )  # the library allocates what the frame tells, whatever the limit
        if told not in (-1, count):
            raise CorruptArtefact(name, f"a stream of {told:,} bytes where {count:,} are needed")
        found: bytes = zstandard.ZstdDecompressor().decompress(raw, max_output_size=count) if count else b""
    except zstandard.ZstdError as fault:
        raise CorruptArtefact(name, f"a zstd stream is broken ({brief(fault)})") from fault
    if len(found) != count:
        raise CorruptArtefact(name, f"a stream of {len(found):,} bytes where {count:,} are needed")
    return found
