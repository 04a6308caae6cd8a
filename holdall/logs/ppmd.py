"""PPMd streams, fed so that pyppmd loses nothing."""

from __future__ import annotations

from holdall.optional import lazy

pyppmd = lazy("pyppmd", extra="logs")

_PIECE = 4 << 10  # at a time: pyppmd 1.3.1 can lose a byte where the 32 KB for what a call makes have to grow


def _memory(size: int) -> int:
    """Memory of the PPMd model, from the size of the text alone: both sides must agree."""
    return min(256 << 20, max(1 << 20, size * 16))


class Encoder:
    """Packs with the manner of an LZMACompressor. size: of all that will come."""

    def __init__(self, order: int, size: int):
        self._coder = pyppmd.Ppmd8Encoder(order, _memory(size), pyppmd.PPMD8_RESTORE_METHOD_RESTART)

    def compress(self, raw: bytes) -> bytes:
        pieces = (raw[a : a + _PIECE] for a in range(0, len(raw), _PIECE))
        return b"".join(map(self._coder.encode, pieces))

    def flush(self) -> bytes:
        return bytes(self._coder.flush())


def decode(order: int, data: bytes, size: int) -> bytes:
    """The `size` bytes again."""
    coder = pyppmd.Ppmd8Decoder(order, _memory(size), pyppmd.PPMD8_RESTORE_METHOD_RESTART)
    out = bytes(coder.decode(data, size))
    while len(out) < size and not coder.eof:  # it may want a last byte that the encoder did not write
        more = coder.decode(b"\0" if coder.needs_input else b"", size - len(out))
        if not more:
            break
        out += more
    return out
