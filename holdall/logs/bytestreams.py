"""Text and other bytes through the library kernel that measures smallest, and whole numbers as varints."""

from __future__ import annotations

import lzma
from collections.abc import Callable

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import digits, ppmd
from holdall.optional import lazy

brotli = lazy("brotli", extra="logs")
zstandard = lazy("zstandard", extra="logs")

_SAMPLE = 16 << 10
_LARGE = 256 << 10  # bytes from which zstd -9 is asked before zstd -19, which takes ten times as long
_BELOW_9 = 0.85  # of what zstd -9 makes, what zstd -19 makes at least: seen .91
STORED, ZSTD, LZMA, BROTLI, NUMBERS, PPMD = 0, 1, 2, 3, 4, 16  # PPMd of order n is 16 + n
_ORDERS = (2, 4, 16)


def filters(size: int) -> list[dict[str, int]]:
    """xz -9e without its container."""
    width = min(64 << 20, max(4096, 1 << max(1, size - 1).bit_length()))
    return [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": width}]


def press(kernel: int, raw: bytes) -> bytes:
    """`raw` under one kernel; whether PPMd can read it again is not known yet."""
    if kernel == STORED:
        return raw
    if kernel == ZSTD:
        return zstandard.ZstdCompressor(level=19, write_content_size=False).compress(raw)
    if kernel == LZMA:
        return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=filters(len(raw)))
    if kernel == BROTLI:
        return brotli.compress(raw, quality=11, lgwin=24)
    coder = ppmd.Encoder(kernel - PPMD, len(raw))
    return coder.compress(raw) + coder.flush()


def smallest(raw: bytes, made: dict[int, bytes]) -> tuple[int, bytes]:
    """The smallest of what kernels made of `raw` that can be read again, else `raw` itself."""
    for kernel in sorted(made, key=lambda k: len(made[k])):
        if len(made[kernel]) >= len(raw):
            break
        if reads_back(kernel, made[kernel], raw):
            return kernel, made[kernel]
    return STORED, raw


def reads_back(kernel: int, packed: bytes, raw: bytes) -> bool:
    """pyppmd 1.3.1 was seen to write streams that it cannot read, so those kept are tried."""
    if kernel < PPMD:
        return True
    try:
        return ppmd.decode(kernel - PPMD, packed, len(raw)) == raw
    except (ValueError, SystemError, MemoryError):
        return False


def pack(raw: bytes, kernels: tuple[int, ...] | None = None, spare: int = 0) -> tuple[int, bytes]:
    """The kernel that packs `raw` (or its beginning) smallest, and what it made.

    zstd, which unpacks ten times as fast, may take `spare` bytes more.
    """
    if not raw:
        return STORED, b""
    if len(raw) > 4096 and kernels is None and (planes := _planes(raw)) is not None:
        sample = raw[: raw.find(b"\n", min(_SAMPLE, len(raw) - 1)) + 1]
        least = min(len(press(k, sample)) for k in (PPMD + 2, PPMD + 5)) / len(sample)
        if len(planes) < 1.02 * least * len(raw):  # they also unpack a hundred times as fast
            return NUMBERS, planes
    sample = raw[:_SAMPLE]
    tried = kernels or tuple(PPMD + n for n in _ORDERS) + ((BROTLI,) if len(raw) < 6000 else ())
    made = {k: press(k, sample) for k in tried}
    order = sorted(made, key=lambda k: len(made[k]))
    if len(sample) < len(raw):
        made = {order[0]: press(order[0], raw)}
    least = min(map(len, made.values()))
    if spare and (quick := _quick(raw, min(least + spare, len(raw) - 1))) is not None:
        return ZSTD, quick
    kernel, data = smallest(raw, made)
    if kernel == STORED and len(sample) < len(raw) and least < len(raw):  # the best one does not read back
        return smallest(raw, {k: press(k, raw) for k in {*order[1:], ZSTD}})
    return kernel, data


def _quick(raw: bytes, most: int) -> bytes | None:
    """What zstd makes of `raw` if that is `most` bytes or fewer; -19 is asked only where it can matter."""
    if len(raw) > _LARGE:
        nine = len(zstandard.ZstdCompressor(level=9).compress(raw))
        if _BELOW_9 * nine > most:
            return None
    made = press(ZSTD, raw)
    return made if len(made) <= most else None


def _planes(raw: bytes) -> bytes | None:
    """Lines that are all whole numbers, as the bytes of their values; None if they are not."""
    lines = raw[:-1].split(b"\n")
    if raw[-1:] != b"\n" or max(map(len, lines)) > 20:
        return None
    try:
        values = np.array(lines).astype(np.int64)
    except (ValueError, OverflowError):
        return None
    if not _same_text(values, raw):
        return None
    shifted = values.astype(np.uint64) - np.uint64(int(values.min()) & 0xFFFFFFFFFFFFFFFF)
    width = max(1, (int(shifted.max()).bit_length() + 7) // 8)
    planes = shifted.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].T.tobytes()
    kernel, data = min(((k, press(k, planes)) for k in (STORED, ZSTD)), key=lambda x: len(x[1]))
    return bytes([kernel, width]) + int(values.min()).to_bytes(8, "little", signed=True) + data


def _same_text(values: np.ndarray, raw: bytes) -> bool:
    return digits.write_lines(values).tobytes() == raw


def _numbers(data: bytes, size: int) -> bytes:
    """The text of `_planes`; a number takes at least two bytes of text, which bounds how many there are."""
    if len(data) < 11 or not 1 <= data[1] <= 8 or data[0] not in (STORED, ZSTD):
        raise ValueError("numbers of no known kind")
    most = data[1] * (size // 2 + 1)
    planes = (
        data[10:]
        if data[0] == STORED
        else zstandard.ZstdDecompressor().decompress(data[10:], max_output_size=most)
    )
    if len(planes) % data[1] or len(planes) > most:
        raise ValueError("numbers of no whole count")
    wide = np.zeros((len(planes) // data[1], 8), np.uint8)
    wide[:, : data[1]] = np.frombuffer(planes, np.uint8).reshape(data[1], -1).T
    base = int.from_bytes(data[2:10], "little", signed=True)
    values = (wide.view("<u8")[:, 0] + np.uint64(base & 0xFFFFFFFFFFFFFFFF)).astype(np.int64)
    return digits.write_lines(values).tobytes()


def unpack(kernel: int, data: bytes, size: int, path: str) -> bytes:
    """The bytes again, exactly `size` of them."""
    how: dict[int, Callable[[], bytes]] = {
        STORED: lambda: data,
        ZSTD: lambda: zstandard.ZstdDecompressor().decompress(data, max_output_size=size),
        LZMA: lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters(size)).decompress(data, size),
        BROTLI: lambda: _brotli(data, size),
        NUMBERS: lambda: _numbers(data, size),
    }
    try:
        if kernel in how:
            raw = how[kernel]()
        elif PPMD + 2 <= kernel <= PPMD + 64:
            raw = ppmd.decode(kernel - PPMD, data, size)
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


class Numbers(Cursor):
    """A cursor over bytes that are all varints, read at once."""

    def __init__(self, raw: bytes, path: str):
        super().__init__(raw, path)
        values, good = digits.read_varints(np.frombuffer(bytearray(raw), np.uint8))
        if not good:
            raise CorruptArtefact(path, "a number is cut short")
        self._values = iter(values.tolist())

    def number(self, most: int) -> int:
        value: int = next(self._values, -1)
        if not 0 <= value <= most:
            raise CorruptArtefact(self.path, f"a count of {value} where at most {most} can be")
        return value
