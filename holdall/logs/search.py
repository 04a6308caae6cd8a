"""Finding lines in a packed log: only the blocks and segments that can hold the term are unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from holdall.logs.base import section
from holdall.logs.blocks import decode_structured, search_segments
from holdall.logs.bytestreams import Cursor
from holdall.logs.index import PLAIN_BLOCK, read_index
from holdall.logs.lines import needle
from holdall.logs.plain import decode_plain
from holdall.logs.traces import possible
from holdall.packed import Packed


def block_parts(packed: Packed, k: int) -> tuple[bytes, Packed, int]:
    """The first section of a block, and where its columns are."""
    return section(packed, f"{k}"), packed, k


def _opened(raw: bytes, packed: Packed, k: int) -> tuple[bytes, bytes | None]:
    """The index, and the columns if they came with it."""
    if raw[:1] != b"\x02":
        return raw, None
    c = Cursor(raw, "artefact")
    c.number(2)
    index = c.take(c.number(len(raw)))
    return index, raw[c.at :]


def _columns(packed: Packed, k: int, data: bytes | None) -> bytes:
    return section(packed, f"{k}c") if data is None else data


def block_text(raw: bytes, packed: Packed, k: int) -> bytes:
    """All of a block."""
    if raw[:1] == bytes([PLAIN_BLOCK]):
        return decode_plain(raw, "artefact")
    index, data = _opened(raw, packed, k)
    return decode_structured(index, _columns(packed, k, data), "artefact")


def find_lines(
    packed: Packed, pattern: str | bytes, regex: bool, ignore_case: bool
) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each line that holds the pattern, exactly those that a search of the whole text finds."""
    wanted = needle(pattern, regex, ignore_case)
    fixed = None if regex else (pattern.encode() if isinstance(pattern, str) else bytes(pattern))
    if fixed is not None and b"\n" in fixed:
        return
    plain = fixed if fixed and not ignore_case else None
    before, rest, k = 0, b"", 0
    while f"{k}" in packed.arrays:
        for lines, text, which in _candidates(packed, k, fixed, ignore_case, bool(rest)):
            if which is not None:
                yield from _of_some(text, which, wanted, before)
            if which is not None or not text:
                before += lines
                continue
            whole, cut = rest + text, not text.endswith(b"\n") and f"{k + 1}" in packed.arrays
            rest = b""
            if cut:  # a line goes on in the next block
                at = whole.rfind(b"\n") + 1
                whole, rest = whole[:at], whole[at:]
            yield from _of_all(whole, wanted, plain, before)
            before += whole.count(b"\n")
        k += 1
    if rest:
        yield from _of_all(rest, wanted, plain, before)


def _of_some(
    text: bytes, which: np.ndarray, wanted: re.Pattern[bytes], before: int
) -> Iterator[tuple[int, bytes]]:
    """Hits among lines of which the numbers are told."""
    for number, line in zip(which.tolist(), text.split(b"\n"), strict=False):
        if wanted.search(line):
            yield before + number + 1, line


def _of_all(
    text: bytes, wanted: re.Pattern[bytes], plain: bytes | None, before: int
) -> Iterator[tuple[int, bytes]]:
    """Hits among consecutive lines. plain: the term itself, which is then looked for in all of the text at once."""
    if plain is None:
        for number, line in enumerate(text.removesuffix(b"\n").split(b"\n") if text else [], before + 1):
            if wanted.search(line):
                yield number, line
        return
    number, counted, at = before + 1, 0, text.find(plain)
    while at >= 0:
        start, stop = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        stop = stop if stop >= 0 else len(text)
        number += text.count(b"\n", counted, start)
        yield number, text[start:stop]
        counted, at = start, text.find(plain, stop)


def _candidates(
    packed: Packed, k: int, fixed: bytes | None, fold: bool, goes_on: bool
) -> Iterator[tuple[int, bytes, np.ndarray | None]]:
    """(lines, text, numbers) of each segment of a block. numbers: of the lines in the text; None: all, or no text.

    goes_on: whether the block begins inside a line, which is then wanted whatever it holds.
    """
    raw = section(packed, f"{k}")
    if raw[:1] == bytes([PLAIN_BLOCK]):
        yield 0, decode_plain(raw, "artefact"), None
        return
    index_raw, data = _opened(raw, packed, k)
    index = read_index(index_raw, "artefact")
    every = range(len(index.lines))
    which, trace = (list(every), None) if fixed is None else possible(index, fixed, fold)
    whole = {0} if goes_on else set()
    if index.open_end:
        whole.add(every[-1])  # its last line may go on in the next block
    if not which and not whole:
        yield sum(index.lines), b"", None
        return
    found = search_segments(
        index, _columns(packed, k, data), sorted({*which, *whole}), whole, trace, "artefact"
    )
    texts = {j: (text, numbers) for j, text, numbers in found}
    for j in every:
        yield index.lines[j], *texts.get(j, (b"", None))
