"""Blocks that are no lines, or that a general kernel packs smaller."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import bytestreams as bs
from holdall.logs.bytestreams import LZMA, PPMD, STORED, Cursor, varints
from holdall.logs.index import MOST_BYTES, PLAIN_BLOCK
from holdall.optional import lazy

zstandard = lazy("zstandard", extra="logs")

_SAMPLE = 256 << 10
_TASTES = 32 << 10, 256 << 10  # bytes on which a kernel shows how it compares with zstd
_SURE = 0.5  # of what zstd -9 needs: lzma needs at least this; seen on 82 inputs: .587
_LEAST = 0.68  # of zstd -3: what zstd -9 needs at least; seen: .74
_PPMD = (
    0.8  # the most that PPMd gains on zstd from a small sample to all; only size depends on it, no promise
)
_EARLY, _LATE = (
    0.065,
    0.037,
)  # what lzma gains on zstd with each doubling, up to and beyond the larger sample, at most
_LONG_LINE = 8192
_TRIAL = 128 << 10  # bytes on which templates and PPMd are compared before templates are tried on all
_CLEAR = (
    0.8  # of the sample's structured size: PPMd needed .75 of it on an access log, and won; else .91 and more
)
_MIDDLING = range(
    1 << 20, 8 << 20
)  # smaller blocks are soon packed; larger ones have more lines alike than a sample


def has_structure(raw: bytes) -> bool:
    """Whether a block looks like lines of text, so that templates are worth a try."""
    head = np.frombuffer(raw[:_SAMPLE], np.uint8)
    odd = int(((head < 9) | ((head > 13) & (head < 32) & (head != 27))).sum())
    lines = int((head == 10).sum()) + 1
    return len(raw) >= 64 and odd * 50 <= head.size and head.size <= _LONG_LINE * lines


def is_lost(raw: bytes, structured: Callable[[bytes], int]) -> bool:
    """Whether templates lose to PPMd on a sample so clearly that they need not be tried on all of the block.

    structured: bytes that a text takes with templates.
    """
    if len(raw) not in _MIDDLING:
        return False
    start = raw.find(b"\n", len(raw) // 2) + 1
    sample = raw[start : raw.rfind(b"\n", start, start + _TRIAL) + 1]
    if len(sample) < _TRIAL // 2:
        return False
    return len(bs.press(PPMD + 16, sample)) < _CLEAR * structured(sample)


def _fast(raw: bytes, level: int = 9) -> int:
    """Bytes of a zstd that sees as far back as xz does."""
    told = zstandard.ZstdCompressionParameters.from_level(level, window_log=26, enable_ldm=len(raw) > 4 << 20)
    return len(zstandard.ZstdCompressor(compression_params=told).compress(raw))


def gain(sample: int, size: int) -> float:
    """How far lzma's share of zstd's bytes can fall from a sample to all of a block.

    It sees further back the longer the text is: on 82 inputs it never gained more than nine tenths of this.
    """
    early = math.log2(max(1, min(size, _TASTES[1]) / sample))
    late = math.log2(max(1, size / max(sample, _TASTES[1])))
    return max(0.0, 1 - _EARLY * early - _LATE * late)


def _share(kernel: int, raw: bytes, taste: int) -> float:
    """Of the bytes that zstd -9 needs for a sample, the share that the kernel needs."""
    sample = raw[len(raw) // 2 :][:taste]
    return len(bs.press(kernel, sample)) / _fast(sample)


def _may_win(kernel: int, raw: bytes, share: float) -> bool:
    """Whether the kernel, if it gains on zstd on all of the block what it can, needs less than `share` of zstd."""
    if len(raw) <= 2 * _TASTES[0]:
        return True
    if kernel != LZMA:
        return _PPMD * _share(kernel, raw, _TASTES[0]) < share
    tastes = _TASTES if len(raw) > 4 * _TASTES[1] else _TASTES[:1]
    return all(gain(x, len(raw)) * _share(kernel, raw, x) < share for x in tastes)


def contest(raw: bytes, structured: int | None) -> bytes | None:
    """The block under the best general kernel, or None if `structured` bytes are fewer.

    A kernel that cannot win is not tried: zstd -9 costs little, and on a sample tells how far others go beyond it.
    """
    if structured is not None and structured < _SURE * _LEAST * _fast(raw, 3):
        return None
    fast = _fast(raw)
    if structured is not None and structured < _SURE * fast:
        return None
    made: dict[int, bytes] = {}
    for kernel in (PPMD + 16, LZMA):
        least = min([structured or len(raw), *map(len, made.values())])
        if least >= _SURE * fast and _may_win(kernel, raw, least / fast):
            made[kernel] = bs.press(kernel, raw)
    if structured is not None and all(len(x) >= structured for x in made.values()):
        return None
    kernel, best = bs.smallest(raw, made)
    block = varints([PLAIN_BLOCK, kernel, len(raw)]) + best
    return block if structured is None or len(block) < structured else None


def decode_plain(block: bytes, path: str) -> bytes:
    """The text of a plain block."""
    c = Cursor(block, path)
    if c.number(1) != PLAIN_BLOCK:
        raise CorruptArtefact(path, "a structured block where a plain one is wanted")
    kernel, size = c.number(255), c.number(MOST_BYTES)
    if kernel == STORED and size != len(block) - c.at:
        raise CorruptArtefact(path, "a stored block of another length than it says")
    return bs.unpack(kernel, block[c.at :], size, path)
