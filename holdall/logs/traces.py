"""Where the words of a search term can stand in a packed block: which segments, and in those which lines."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from holdall.logs.groups import DICT, INT, Group
from holdall.logs.index import Index
from holdall.logs.opened import Opened

# What always lies inside one token, and so never reaches over a parameter's edge: a dot between digits joins them.
_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+(?:(?<=[0-9])\.(?=[0-9])[0-9A-Za-z\x80-\xff]+)*")


@dataclass
class Trace:
    """Where one word can stand: in these templates, and where one of these dictionary entries is the value."""

    events: np.ndarray
    entries: dict[int, np.ndarray]  # by group

    def segments(self, index: Index) -> np.ndarray:
        """[segments] whether the word can be in each."""
        found = np.zeros(len(index.lines), bool)
        if not self.events.size and not self.entries:
            return found
        if len(index.lines) == 1 or any(g not in index.big for g in self.entries):
            return ~found
        if self.events.size:
            found |= index.listed(0, self.events)
        for g, ids in self.entries.items():
            starts = np.array([f[g] for f in index.fresh])
            found[np.searchsorted(starts, ids, side="right") - 1] = True  # where they came first
            found |= index.listed(1 + index.big.index(g), ids)
        return found

    def streams(self, index: Index) -> set[int]:
        """The streams that have to be decoded to know the lines, but for those that these lean on."""
        return {int(index.tables.stream_of[g]) for g in self.entries}

    def lines(self, opened: Opened) -> np.ndarray:
        """Lines of a segment where the word can be, ascending."""
        segment = opened.segment
        found = np.isin(segment.events, self.events)
        for g, ids in self.entries.items():
            rows = segment.rows[g]
            found[segment.line_of[rows[np.isin(opened.values[rows], ids)]]] = True
        return np.flatnonzero(found)


def possible(index: Index, term: bytes, fold: bool) -> tuple[list[int], Trace | None]:
    """Segments that may hold the term, and of its words the longest whose places are known."""
    low = (lambda b: b.lower()) if fold else (lambda b: b)
    literals, words = low(index.literals.tobytes()), low(index.words.tobytes())
    found, best = np.ones(len(index.lines), bool), None
    for word in sorted(set(_WORD.findall(low(term))), key=lambda w: (-len(w), w)):
        trace = _trace(index, word, literals, words)
        if trace is None:
            continue
        found &= trace.segments(index)
        best = best or trace
        if not found.any():
            break
    return np.flatnonzero(found).tolist(), best


def _trace(index: Index, word: bytes, literals: bytes, words: bytes) -> Trace | None:
    """None where some number may be spelled so."""
    if any(g.kind != DICT and _may_spell(g, word) for g in index.groups):
        return None
    entries, ends = _entries(words, index.word_cuts, word), np.cumsum(index.counts)
    owners = np.searchsorted(ends, entries, side="right")
    mine = {g: entries[owners == g] - (ends[g] - index.counts[g]) for g in np.unique(owners).tolist()}
    texts = _entries(literals, index.literal_cuts, word)
    events = np.searchsorted(np.cumsum(index.tables.widths + 1), texts, side="right")
    return Trace(np.unique(events), mine)


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


def _entries(text: bytes, cuts: np.ndarray, word: bytes) -> np.ndarray:
    """Numbers of the newline-ended entries that hold `word`."""
    at, hits = text.find(word), []
    while at >= 0:
        hits.append(at)
        at = text.find(word, at + 1)
    return np.unique(np.searchsorted(cuts, np.array(hits, np.int64), side="right") - 1)
