"""Finding lines in a packed log: only the blocks and segments that can hold the term are unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from holdall.logs.base import needle, section
from holdall.logs.blocks import decode_segments, decode_structured
from holdall.logs.bytestreams import Cursor
from holdall.logs.groups import DICT, INT, Group
from holdall.logs.index import PLAIN_BLOCK, Index, read_index
from holdall.logs.plain import decode_plain
from holdall.packed import Packed

_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")


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
    before, rest, k = 0, b"", 0
    while f"{k}" in packed.arrays:
        for lines, text in _candidates(packed, k, fixed, ignore_case):
            if text is None:
                before += lines
                continue
            whole, cut = rest + text, not text.endswith(b"\n") and f"{k + 1}" in packed.arrays
            rest = b""
            if cut:  # a line goes on in the next block
                at = whole.rfind(b"\n") + 1
                whole, rest = whole[:at], whole[at:]
            yield from _in_text(whole, wanted, before)
            before += whole.count(b"\n")
        k += 1
    if rest:
        yield from _in_text(rest, wanted, before)


def _in_text(text: bytes, wanted: re.Pattern[bytes], before: int) -> Iterator[tuple[int, bytes]]:
    """Matches are looked for in the whole text at once where that cannot join two lines."""
    for number, line in enumerate(text.removesuffix(b"\n").split(b"\n") if text else [], before + 1):
        if wanted.search(line):
            yield number, line


def _candidates(
    packed: Packed, k: int, fixed: bytes | None, fold: bool
) -> Iterator[tuple[int, bytes | None]]:
    """(lines, text) of each segment of a block; the text is None where the term cannot be."""
    raw = section(packed, f"{k}")
    if raw[:1] == bytes([PLAIN_BLOCK]):
        yield 0, decode_plain(raw, "artefact")
        return
    index_raw, data = _opened(raw, packed, k)
    index = read_index(index_raw, "artefact")
    which = list(range(len(index.lines))) if fixed is None else possible(index, fixed, fold)
    if index.open_end and len(index.lines) - 1 not in which:
        which = [*which, len(index.lines) - 1]  # its last line may go on in the next block
    texts = dict(decode_segments(index, _columns(packed, k, data), which, "artefact")) if which else {}
    for j, lines in enumerate(index.lines):
        yield lines, texts.get(j)


def possible(index: Index, term: bytes, fold: bool) -> list[int]:
    """Segments that may hold the term: for each word in it, those where a template or a value holds that word."""
    every = set(range(len(index.lines)))
    low = (lambda b: b.lower()) if fold else (lambda b: b)
    literals, words = low(index.literals.tobytes()), low(index.words.tobytes())
    for word in sorted(_WORD.findall(low(term)), key=len, reverse=True):
        every &= _holding(index, word, literals, words)
        if not every:
            break
    return sorted(every)


def _holding(index: Index, word: bytes, literals: bytes, words: bytes) -> set[int]:
    """Segments in which some template, entry or number may hold `word`: it never reaches over a parameter's edge."""
    everywhere = set(range(len(index.lines)))
    if any(g.kind != DICT and _may_spell(g, word) for g in index.groups):
        return everywhere
    entries, groups = _entries(words, index.words, word), np.cumsum(index.counts)
    owners = np.searchsorted(groups, entries, side="right")
    big = index.big
    found: set[int] = set()
    for g in np.unique(owners).tolist():
        if len(index.lines) == 1 or g not in big:
            return everywhere
        ids = entries[owners == g] - (groups[g] - index.counts[g])
        starts = np.array([f[g] for f in index.fresh])
        found |= set((np.searchsorted(starts, ids, side="right") - 1).tolist())  # where they came first
        found |= _told([x[big.index(g)] for x in index.seen], ids)
    events = np.unique(np.searchsorted(np.cumsum(index.tables.widths + 1), _entries(literals, index.literals, word),
                                       side="right"))  # fmt: skip
    if events.size:
        found |= everywhere if len(index.lines) == 1 else _told(index.present, events)
    return found


def _told(steps: list[np.ndarray], ids: np.ndarray) -> set[int]:
    """Segments whose list (told as steps) has one of `ids`."""
    sizes = np.array([s.size for s in steps])
    listed = np.concatenate([[0], np.cumsum(np.concatenate(steps))])
    before = listed[np.cumsum(sizes) - sizes]  # each list begins anew
    owner = np.repeat(np.arange(len(steps)), sizes)
    listed = listed[1:] - before[owner] - 1
    return set(owner[np.isin(listed, ids)].tolist())


def _may_spell(group: Group, word: bytes) -> bool:
    """Whether a number of this group could be written with `word` in it."""
    if group.kind == INT:
        return word.isdigit() and len(word) <= len(str(max(abs(group.base), abs(group.top))))
    assert group.form is not None
    mask = group.form.mask.lower()  # a form may have letters too: d0 for d1, d2, ...
    for at in range(len(mask) - len(word) + 1):
        if all(48 <= w <= 57 if m == 48 else m == w for m, w in zip(mask[at:], word.lower(), strict=False)):
            return True
    return False


def _entries(text: bytes, raw: np.ndarray, word: bytes) -> np.ndarray:
    """Numbers of the newline-ended entries that hold `word`."""
    at, hits = text.find(word), []
    while at >= 0:
        hits.append(at)
        at = text.find(word, at + 1)
    if not hits:
        return np.empty(0, np.int64)
    ends = np.flatnonzero(raw == 10)
    return np.unique(np.searchsorted(ends, np.array(hits)))
