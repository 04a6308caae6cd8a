"""Blocks that are no lines, or that a general kernel packs smaller."""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import bytestreams as bs
from holdall.logs import ppmd
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
_STEP = 256 << 10  # between two looks at whether a kernel can still win
_WARM = 1 << 20  # bytes before the first look
_AHEAD = 0.04  # as _LATE, behind a beginning, by two yards: told at most .996 of the true size on six inputs
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
    return len(_far(len(raw), level).compress(raw))


def _far(size: int, level: int) -> Any:
    """A zstd that sees as far back as xz does."""
    told = zstandard.ZstdCompressionParameters.from_level(level, window_log=26, enable_ldm=size > 4 << 20)
    return zstandard.ZstdCompressor(compression_params=told)


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


def trail(raw: bytes, coder: Any) -> list[int]:
    """Bytes that a coder has made after each step, and in the end; a step's last block shows at the next one."""
    made = [0]
    for a in range(0, len(raw), _STEP):
        made.append(made[-1] + len(coder.compress(raw[a : a + _STEP])))
    return [*made[1:], made[-1] + len(coder.flush())]


def is_hopeless(read: int, made: int, size: int, yard: list[int], least: int) -> bool:
    """Whether a kernel that made `made` bytes of the first `read` will need `least` or more for all `size`.

    Of what another one (yard: its `trail`) makes of the rest it needs the share it needed so far, less its gains.
    """
    if read < _WARM or read * 2 > size:  # beyond the half little is saved
        return False
    seen = max(1, yard[read // _STEP])
    doublings = math.log2(max(size / read, yard[-1] / seen))
    share = min(1.0, made / seen) * max(0.0, 1 - _AHEAD * doublings)
    return made + (yard[-1] - seen) * share >= least


@dataclass
class Yards:
    """What foretells how many bytes a kernel needs for a block: how fast ones do, of which zstd -9 has been asked."""

    raw: bytes
    nine: list[int]

    @cached_property
    def quick(self) -> list[int]:
        """lzma in a few hundredths of the time. It is asked too because zstd tells new text and old apart otherwise:
        where all is new first and comes again later, it alone was seen to say 1.2 of what xz needs."""
        kind = {**bs.filters(len(self.raw))[0], "preset": 1}
        return trail(self.raw, lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[kind]))

    def goes_on(self, kernel: int, least: int, read: int, made: int) -> bool:
        """Whether the kernel, which made `made` bytes of the first `read`, may still need fewer than `least`."""
        told = read, made, len(self.raw)
        return not (
            is_hopeless(*told, self.nine, least) and (kernel != LZMA or is_hopeless(*told, self.quick, least))
        )


def press_while(kernel: int, raw: bytes, step: int, goes_on: Callable[[int, int], bool]) -> bytes | None:
    """What `press` gives under PPMd or lzma; None once `goes_on`(bytes read, bytes made), asked each step, says no."""
    coder: ppmd.Encoder | lzma.LZMACompressor = (
        lzma.LZMACompressor(lzma.FORMAT_RAW, filters=bs.filters(len(raw)))
        if kernel == LZMA
        else ppmd.Encoder(kernel - PPMD, len(raw))
    )
    out = bytearray()
    for a in range(0, len(raw), step):
        out += coder.compress(raw[a : a + step])
        if a + step < len(raw) and not goes_on(a + step, len(out)):
            return None
    return bytes(out + coder.flush())


def contest(raw: bytes, structured: int | None) -> bytes | None:
    """The block under the best general kernel, or None if `structured` bytes are fewer.

    A kernel that cannot win is not tried: zstd -9 costs little, and on a sample tells how far others go beyond it.
    One that is tried is left as soon as what it made says that it loses.
    """
    if structured is not None and structured < _SURE * _LEAST * _fast(raw, 3):
        return None
    yards = Yards(raw, trail(raw, _far(len(raw), 9).compressobj(size=len(raw))))
    fast = yards.nine[-1]
    least, best = len(raw) if structured is None else structured, (STORED, raw)
    for kernel in (PPMD + 16, LZMA):
        if least < _SURE * fast or not _may_win(kernel, raw, least / fast):
            continue
        made = press_while(kernel, raw, _STEP, partial(yards.goes_on, kernel, least))
        if made is not None and len(made) < least and bs.reads_back(kernel, made, raw):
            least, best = len(made), (kernel, made)
    if structured is not None and best[0] == STORED:
        return None
    block = varints([PLAIN_BLOCK, best[0], len(raw)]) + best[1]
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
