"""Small whole numbers as few bytes: range asymmetric numeral systems with one stored histogram, or fixed width.

A stream says in its first byte which of the two it is, the smaller one. Coded streams are cut into chunks that decode
by themselves (on several threads), each with four interleaved states of 32 bits. constriction, which codes to the same
size, is the truth in the tests; through numpy it takes 35 ns a symbol to decode where this takes about 3.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.errors import CorruptArtefact

PRECISION = 14  # bits of a probability
CHUNK = 1 << 16  # symbols
_WAYS = 4
_TOTAL = 1 << PRECISION
_FIXED, _CODED, _SPARSE = 0, 1, 2  # sparse: coded, and most of the alphabet does not occur
_WORTH = 1 << 19  # symbols that are worth another thread


def shannon(codes: np.ndarray, bits: int) -> float:
    """Bits a symbol that no coder with one histogram can go below."""
    share = np.bincount(codes.reshape(-1), minlength=1 << bits) / max(1, codes.size)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def pack_codes(codes: np.ndarray, bits: int, *, coded: bool = True) -> np.ndarray:
    """Codes below 2**bits (uint8, any shape, up to 8 bits) as a stream of bytes. coded: entropy code where it wins."""
    flat = np.ascontiguousarray(codes, np.uint8).reshape(-1)
    fixed = 1 + -(-flat.size * bits // 8)
    if coded and flat.size and flat.size * shannon(flat, bits) / 8 + 20 < fixed:
        stream = _coded(flat, bits)
        if stream.size < fixed:
            return stream
    return np.concatenate([np.array([_FIXED], np.uint8), pack_fixed(flat, bits)])


def unpack_codes(stream: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The inverse of `pack_codes`: uint8 [count]; CorruptArtefact for what it cannot have written."""
    if stream.dtype != np.uint8 or stream.ndim != 1 or not stream.size or stream[0] > _SPARSE:
        raise CorruptArtefact("a stream of codes", "it does not say how it is coded")
    if stream[0] != _FIXED:
        return _decoded(stream, count, bits)
    if stream.size != 1 + -(-count * bits // 8):
        raise CorruptArtefact("a stream of codes", f"{stream.size} bytes for {count} codes of {bits} bits")
    return unpack_fixed(stream[1:], count, bits)


def pack_fixed(flat: np.ndarray, bits: int) -> np.ndarray:
    """A stream of `bits` bits a code, lowest bit first."""
    if bits == 8:
        return flat
    out = np.zeros(-(-flat.size * bits // 8) + 1, np.uint8)
    _put_fixed(flat, bits, out)
    return out[:-1]


def unpack_fixed(stream: np.ndarray, count: int, bits: int) -> np.ndarray:
    if bits == 8:
        return stream.copy()
    out = np.zeros(count, np.uint8)
    _get_fixed(np.append(stream, np.uint8(0)), bits, out)
    return out


@njit(nogil=True, cache=True)
def _put_fixed(flat, bits, out):  # type: ignore[no-untyped-def]
    for i in range(flat.size):
        at = i * bits
        value = np.uint32(flat[i]) << np.uint32(at & 7)
        out[at >> 3] |= np.uint8(value & 255)
        out[(at >> 3) + 1] |= np.uint8(value >> 8)


@njit(nogil=True, cache=True)
def _get_fixed(stream, bits, out):  # type: ignore[no-untyped-def]
    mask = (1 << bits) - 1
    for i in range(out.size):
        at = i * bits
        pair = np.uint32(stream[at >> 3]) | (np.uint32(stream[(at >> 3) + 1]) << np.uint32(8))
        out[i] = (pair >> np.uint32(at & 7)) & mask


def frequencies(flat: np.ndarray, bits: int) -> np.ndarray:
    """Counts as shares of 2**14, whole numbers; what occurs at all has at least one."""
    counts = np.bincount(flat, minlength=1 << bits).astype(np.int64)
    shares = np.where(counts > 0, np.maximum(1, counts * _TOTAL // max(1, flat.size)), 0)
    while (spare := int(_TOTAL - shares.sum())) != 0:  # where one more, or less, matters least
        room = counts > 0 if spare > 0 else shares > 1
        loss = np.where(room, counts / np.maximum(shares, 1), -np.inf if spare > 0 else np.inf)
        at = int(np.argmax(loss) if spare > 0 else np.argmin(loss))
        shares[at] += min(spare, max(1, spare // 8)) if spare > 0 else -1
    return shares.astype(np.uint32)


def _coded(flat: np.ndarray, bits: int) -> np.ndarray:
    """The kind, a histogram, how many words each chunk has (uint32), and the chunks' words (uint16)."""
    shares = frequencies(flat, bits)
    starts = (np.cumsum(shares) - shares).astype(np.uint32)
    parts, lengths = [], []
    room = np.zeros(CHUNK + 2 * _WAYS, np.uint16)
    for first in range(0, flat.size, CHUNK):
        used = _encode(flat[first : first + CHUNK], shares, starts, room)
        parts.append(room[room.size - used :].copy())
        lengths.append(used)
    pieces = (
        _histogram(shares),
        np.array(lengths, "<u4").view(np.uint8),
        np.concatenate(parts).astype("<u2").view(np.uint8),
    )
    return np.concatenate(pieces)


def _histogram(shares: np.ndarray) -> np.ndarray:
    """The kind, then all shares (uint16); or how many occur less one, which, and theirs."""
    used = np.flatnonzero(shares)
    if 3 * used.size + 1 >= 2 * shares.size:
        return np.concatenate([np.array([_CODED], np.uint8), shares.astype("<u2").view(np.uint8)])
    told = [np.array([_SPARSE, used.size - 1]), used, shares[used].astype("<u2").view(np.uint8)]
    return np.concatenate([part.astype(np.uint8) for part in told])


def _shares(stream: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """What `_histogram` wrote, and its bytes."""
    size = 1 << bits
    if stream[0] == _CODED:
        return stream[1 : 1 + 2 * size].copy().view("<u2").astype(np.uint32), 1 + 2 * size
    count = int(stream[1]) + 1
    used, shares = stream[2 : 2 + count].astype(np.int64), np.zeros(size, np.uint32)
    if used.max() >= size:
        raise CorruptArtefact("a stream of codes", "its histogram names codes that there are not")
    shares[used] = stream[2 + count : 2 + 3 * count].copy().view("<u2")
    return shares, 2 + 3 * count


def _decoded(stream: np.ndarray, count: int, bits: int) -> np.ndarray:
    chunks = -(-count // CHUNK)
    if stream.size < 2 + (2 << bits if stream[0] == _CODED else 3 * (int(stream[1:2].sum()) + 1)):
        raise CorruptArtefact("a stream of codes", "it is cut short")
    shares, head = _shares(stream, bits)
    if stream.size < head + 4 * chunks or (stream.size - head) % 2:
        raise CorruptArtefact("a stream of codes", "it is cut short")
    lengths = stream[head : head + 4 * chunks].copy().view("<u4").astype(np.int64)
    words = stream[head + 4 * chunks :].copy().view("<u2")
    if int(shares.sum()) != _TOTAL:
        raise CorruptArtefact("a stream of codes", "its histogram does not add up")
    if int(lengths.sum()) != words.size or (chunks and int(lengths.min()) < 2 * _WAYS):
        raise CorruptArtefact("a stream of codes", "its chunks do not add up")
    ends = np.cumsum(lengths)
    starts = (np.cumsum(shares) - shares).astype(np.uint32)
    symbols = np.repeat(np.arange(1 << bits, dtype=np.uint8), shares)
    out, bad = np.zeros(count, np.uint8), np.zeros(max(1, chunks), np.uint8)
    from holdall.parts.rows import by_rows

    by_rows(_decode, chunks, count / _WORTH, words, ends - lengths, ends, symbols, shares, starts, out, bad)
    if bad.any():
        raise CorruptArtefact("a stream of codes", "a chunk does not end where it should")
    return out


@njit(nogil=True, cache=True)
def _encode(flat, shares, starts, room):  # type: ignore[no-untyped-def]
    """Words are written from the end of `room` backwards, as the decoder reads them; how many."""
    state = np.full(_WAYS, 1 << 16, np.uint64)
    at = room.size
    for i in range(flat.size - 1, -1, -1):
        way = i % _WAYS
        share, x = np.uint64(shares[flat[i]]), state[way]
        if x >= share << np.uint64(32 - PRECISION):
            at -= 1
            room[at] = np.uint16(x & np.uint64(0xFFFF))
            x >>= np.uint64(16)
        state[way] = ((x // share) << np.uint64(PRECISION)) + x % share + np.uint64(starts[flat[i]])
    for way in range(_WAYS - 1, -1, -1):
        at -= 2
        room[at] = np.uint16(state[way] & np.uint64(0xFFFF))
        room[at + 1] = np.uint16(state[way] >> np.uint64(16))
    return room.size - at


@njit(nogil=True, cache=True)
def _step(x, words, at, symbols, shares, starts):  # type: ignore[no-untyped-def]
    slot = x & np.uint32(_TOTAL - 1)
    symbol = symbols[slot]
    x = shares[symbol] * (x >> np.uint32(PRECISION)) + slot - starts[symbol]
    low = x < np.uint32(1 << 16)
    x = np.uint32((x << np.uint32(16)) | np.uint32(words[at])) if low else np.uint32(x)
    return x, at + low, symbol


@njit(nogil=True, cache=True)
def _state(words, at):  # type: ignore[no-untyped-def]
    return np.uint32(words[at]) | (np.uint32(words[at + 1]) << np.uint32(16))


@njit(nogil=True, cache=True)
def _decode(words, begins, ends, symbols, shares, starts, out, bad, first, last):  # type: ignore[no-untyped-def]
    for chunk in range(first, last):
        at, end = begins[chunk], ends[chunk]
        a, b, c, d = _state(words, at), _state(words, at + 2), _state(words, at + 4), _state(words, at + 6)
        at += 2 * _WAYS
        i, stop = chunk * CHUNK, min(out.size, (chunk + 1) * CHUNK)
        while i + 4 <= stop and at + 4 <= end:
            a, at, out[i] = _step(a, words, at, symbols, shares, starts)
            b, at, out[i + 1] = _step(b, words, at, symbols, shares, starts)
            c, at, out[i + 2] = _step(c, words, at, symbols, shares, starts)
            d, at, out[i + 3] = _step(d, words, at, symbols, shares, starts)
            i += 4
        states = np.array([a, b, c, d], np.uint32)
        few = np.zeros(1, words.dtype)
        while i < stop:  # near the end words may run out
            source, place = (words, at) if at < end else (few, 0)
            x, after, out[i] = _step(states[i % _WAYS], source, place, symbols, shares, starts)
            if after > place:
                at += 1
                if at > end:
                    break
            states[i % _WAYS] = x
            i += 1
        bad[chunk] = i < stop or at != end or (states != np.uint32(1 << 16)).any()
