"""Text and other bytes through the library kernel that measures smallest, and whole numbers as varints."""

from __future__ import annotations

import lzma
from collections.abc import Callable

from holdall.errors import CorruptArtefact
from holdall.optional import lazy

brotli = lazy("brotli", extra="logs")
pyppmd = lazy("pyppmd", extra="logs")
zstandard = lazy("zstandard", extra="logs")

_SAMPLE = 48 << 10
STORED, ZSTD, LZMA, BROTLI, PPMD = 0, 1, 2, 3, 16  # PPMd of order n is 16 + n
_ORDERS = (2, 3, 5, 8, 16)


def _memory(size: int) -> int:
    """Memory of the PPMd model, from the size of the text alone: both sides must agree."""
    return min(256 << 20, max(1 << 20, size * 16))


def _filters(size: int) -> list[dict[str, int]]:
    """xz -9e without its container."""
    width = min(64 << 20, max(4096, 1 << max(1, size - 1).bit_length()))
    return [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": width}]


def _press(kernel: int, raw: bytes) -> bytes:
    if kernel == STORED:
        return raw
    if kernel == ZSTD:
        return zstandard.ZstdCompressor(level=19, write_content_size=False).compress(raw)
    if kernel == LZMA:
        return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_filters(len(raw)))
    if kernel == BROTLI:
        return brotli.compress(raw, quality=11, lgwin=24)
    coder = pyppmd.Ppmd7Encoder(kernel - PPMD, _memory(len(raw)))
    return coder.encode(raw) + coder.flush()


def pack(raw: bytes, kernels: tuple[int, ...] | None = None) -> tuple[int, bytes]:
    """The kernel that packs `raw` (or its beginning) smallest, and what it made."""
    if not raw:
        return STORED, b""
    sample = raw[:_SAMPLE]
    tried = kernels or tuple(PPMD + n for n in _ORDERS) + ((BROTLI,) if len(raw) < 6000 else ())
    made = {k: _press(k, sample) for k in tried}
    best = min(made, key=lambda k: len(made[k]))
    out = made[best] if len(sample) == len(raw) else _press(best, raw)
    return (best, out) if len(out) < len(raw) else (STORED, raw)


def unpack(kernel: int, data: bytes, size: int, path: str) -> bytes:
    """The bytes again, exactly `size` of them."""
    how: dict[int, Callable[[], bytes]] = {
        STORED: lambda: data,
        ZSTD: lambda: zstandard.ZstdDecompressor().decompress(data, max_output_size=size),
        LZMA: lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(size)).decompress(data, size),
        BROTLI: lambda: _brotli(data, size),
    }
    try:
        if kernel in how:
            raw = how[kernel]()
        elif PPMD + 2 <= kernel <= PPMD + 64:
            raw = _ppmd(kernel - PPMD, data, size)
        else:
            raise ValueError(f"kernel {kernel}")
    except (ValueError, lzma.LZMAError, brotli.error, zstandard.ZstdError, SystemError, MemoryError) as fault:
        raise CorruptArtefact(path, f"a stream does not decode ({fault})") from fault
    if len(raw) != size:
        raise CorruptArtefact(path, f"a stream gave {len(raw)} bytes where {size} were packed")
    return raw


def _brotli(data: bytes, size: int) -> bytes:
    """Bounded: a hostile stream of a few bytes can unfold into gigabytes."""
    coder, out = brotli.Decompressor(), b""
    step = 1 << 16
    out += coder.process(data, output_buffer_limit=step)
    while len(out) <= size and not coder.is_finished():
        more = coder.process(b"", output_buffer_limit=step)
        if not more:
            break
        out += more
    return out


def _ppmd(order: int, data: bytes, size: int) -> bytes:
    coder = pyppmd.Ppmd7Decoder(order, _memory(size))
    out = coder.decode(data, size)
    while len(out) < size:  # it may want a last byte that the encoder did not write
        more = coder.decode(b"\0", size - len(out))
        if not more:
            break
        out += more
    return bytes(out)


def varints(numbers: list[int]) -> bytes:
    """LEB128 of whole numbers of at least 0."""
    out = bytearray()
    for n in numbers:
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        out.append(n)
    return bytes(out)


class Cursor:
    """Reads what `varints` and its neighbours wrote; every number is checked against what it may be."""

    def __init__(self, raw: bytes, path: str):
        self.raw, self.at, self.path = raw, 0, path

    def number(self, most: int) -> int:
        value = shift = 0
        while True:
            if self.at >= len(self.raw) or shift > 63:
                raise CorruptArtefact(self.path, "a number is cut short")
            byte = self.raw[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if value > most:
            raise CorruptArtefact(self.path, f"a count of {value} where at most {most} can be")
        return value

    def take(self, size: int) -> bytes:
        if size > len(self.raw) - self.at:
            raise CorruptArtefact(self.path, "a part is cut short")
        self.at += size
        return self.raw[self.at - size : self.at]
