"""Blocks that are no lines, or that a general kernel packs smaller."""

from __future__ import annotations

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import bytestreams as bs
from holdall.logs.bytestreams import LZMA, PPMD, STORED, Cursor, varints
from holdall.logs.index import MOST_BYTES, PLAIN_BLOCK
from holdall.optional import lazy

zstandard = lazy("zstandard", extra="logs")

_SAMPLE = 256 << 10
_SURE = 0.45  # of what zstd -9 needs: below it no general kernel was ever seen
_LZMA = 0.58  # of zstd -9: lzma was never seen to need less
_LONG_LINE = 8192


def has_structure(raw: bytes) -> bool:
    """Whether a block looks like lines of text, so that templates are worth a try."""
    head = np.frombuffer(raw[:_SAMPLE], np.uint8)
    odd = int(((head < 9) | ((head > 13) & (head < 32) & (head != 27))).sum())
    lines = int((head == 10).sum()) + 1
    return len(raw) >= 64 and odd * 50 <= head.size and head.size <= _LONG_LINE * lines


def _lzma_may_win(raw: bytes, least: int, fast: int) -> bool:
    """Whether lzma, going as far beyond zstd -9 on all of the block as on a sample of it, would be smaller."""
    if len(raw) <= 2 * _SAMPLE:
        return True
    sample = raw[len(raw) // 2 :][:_SAMPLE]
    gain = len(bs.press(LZMA, sample)) / max(1, len(zstandard.ZstdCompressor(level=9).compress(sample)))
    return least > 0.97 * gain * fast


def contest(raw: bytes, structured: int | None) -> bytes | None:
    """The block under the best general kernel, or None if `structured` bytes are fewer.

    What is certain is not tried: zstd -9 costs little, and on a sample tells how far lzma goes beyond it.
    """
    fast = len(zstandard.ZstdCompressor(level=9).compress(raw))
    if structured is not None and structured < _SURE * fast:
        return None
    best, kernel = bs.press(PPMD + 16, raw), PPMD + 16
    least = min(len(best), structured if structured is not None else len(raw))
    if least > _LZMA * fast and _lzma_may_win(raw, least, fast):
        exact = bs.press(LZMA, raw)
        if len(exact) < len(best):
            best, kernel = exact, LZMA
    if len(best) >= len(raw):
        best, kernel = raw, STORED
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
