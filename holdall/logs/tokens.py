"""Byte loops over a block of lines (numba): lines, tokens, template matching, interning, and putting lines back.

A token is a run of letters and digits (bytes above 127 count as letters; a number keeps its dots, and a time its
colons), or a run of one other byte. Its id is exact: 0 to 255 for a single other byte, `NUMBER` for any run that
holds a digit, `WORDS` and above for the rest, interned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

NUMBER = 256
WORDS = 257
_WORD = np.array([chr(b).isalnum() or b > 127 if b < 128 else True for b in range(256)])
_DIGIT = np.array([48 <= b <= 57 for b in range(256)])


@njit(cache=True, nogil=True)
def split_lines(text: Any) -> Any:
    """[n + 1] where each line starts; the last entry is one past the text, a newline imagined at its end."""
    n = 0
    for b in text:
        n += b == 10
    open_end = text.size > 0 and text[text.size - 1] != 10
    starts = np.empty(n + 1 + open_end, np.int64)
    starts[0], k = 0, 1
    for i in range(text.size):
        if text[i] == 10:
            starts[k] = i + 1
            k += 1
    if open_end:
        starts[k] = text.size + 1
    return starts


@njit(cache=True, nogil=True)
def _hash(text: Any, a: Any, b: Any) -> Any:
    h = np.uint64(0xCBF29CE484222325)
    for i in range(a, b):
        h = (h ^ np.uint64(text[i])) * np.uint64(0x100000001B3)
    return h ^ (h >> np.uint64(29))


@njit(cache=True, nogil=True)
def _same(text: Any, a: Any, b: Any, c: Any) -> Any:
    for i in range(b - a):  # noqa: SIM110 (numba compiles this, and no generator)
        if text[a + i] != text[c + i]:
            return False
    return True


@njit(cache=True, nogil=True)
def number_alike(text: Any, starts: Any, stops: Any, ids: Any, wanted: Any, base: Any) -> Any:
    """Number equal spans alike, by first use, from `base` on, in place of the `wanted` among `ids`.

    Returns for each number the index of the span that came first.
    """
    size, found = 1 << 12, 0
    table = np.full(size, -1, np.int64)
    firsts, marks = np.empty(size, np.int64), np.empty(size, np.uint64)
    for i in range(starts.size):
        if ids[i] != wanted:
            continue
        a, b = starts[i], stops[i]
        h = _hash(text, a, b)
        at = np.int64(h & np.uint64(size - 1))
        while True:
            k = table[at]
            if k < 0:
                table[at] = found
                firsts[found], marks[found] = i, h
                ids[i] = base + found
                found += 1
                break
            f = firsts[k]
            if marks[k] == h and stops[f] - starts[f] == b - a and _same(text, a, b, starts[f]):
                ids[i] = base + k
                break
            at = (at + 1) & (size - 1)
        if found * 2 > size:
            size *= 4
            table = np.full(size, -1, np.int64)
            more_firsts, more_marks = np.empty(size, np.int64), np.empty(size, np.uint64)
            more_firsts[:found], more_marks[:found] = firsts[:found], marks[:found]
            firsts, marks = more_firsts, more_marks
            for k in range(found):
                at = np.int64(marks[k] & np.uint64(size - 1))
                while table[at] >= 0:
                    at = (at + 1) & (size - 1)
                table[at] = k
    return firsts[:found].copy()


def intern(text: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[spans] a number for each, equal ones alike, by first use; and for each number the span that came first."""
    ids = np.full(starts.size, -1, np.int64)
    return ids, number_alike(text, starts, stops, ids, -1, 0)


@njit(cache=True, nogil=True)
def _joins(text: Any, i: Any, start: Any, stop: Any, clocks: Any) -> Any:
    """Whether the separator at i stands inside a number: 10.251.43.21, 2005-06-03, 20:35:18,250."""
    if i == start or not _DIGIT[text[i - 1]]:
        return False
    after = i + 1
    while after < stop and after < i + 5 and _DIGIT[text[after]]:
        after += 1
    digits, mark = after - i - 1, text[i]
    if mark == 46:
        return digits > 0
    if not clocks:
        return False
    if mark == 44:
        return digits == 3
    if digits != 2 or (after < stop and _WORD[text[after]] and text[after] != 84):  # 84: the T of ISO 8601
        return False
    return mark == 58 or mark == 45 or mark == 47


@njit(cache=True, nogil=True)
def _runs(text: Any, lines: Any, starts: Any, stops: Any, kinds: Any, bounds: Any, clocks: Any) -> Any:
    """Write the tokens of all lines; how many. clocks: whether times and dates are one token."""
    n = 0
    for line in range(lines.size - 1):
        i, stop = lines[line], lines[line + 1] - 1
        bounds[line] = n
        while i < stop:
            a, digit = i, False
            if _WORD[text[i]]:
                while i < stop and (_WORD[text[i]] or _joins(text, i, a, stop, clocks)):
                    digit = digit or _DIGIT[text[i]]
                    i += 1
                kind = np.int64(NUMBER if digit else WORDS)
            else:
                i += 1
                while i < stop and text[i] == text[a]:
                    i += 1
                kind = np.int64(text[a] if i - a == 1 else WORDS)
            starts[n], stops[n], kinds[n] = a, i, kind
            n += 1
    bounds[lines.size - 1] = n
    return n


def tokenize(
    text: np.ndarray, lines: np.ndarray, clocks: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Starts, stops and ids of all tokens, [T], and where each line's tokens begin, [n + 1]."""
    room = text.size + 1  # a token has a byte at least; pages that are not written to cost nothing
    starts, stops, ids = (np.empty(room, np.int32) for _ in range(3))
    bounds = np.empty(lines.size, np.int64)
    n = _runs(text, lines, starts, stops, ids, bounds, clocks)
    starts, stops, ids = starts[:n].copy(), stops[:n].copy(), ids[:n].copy()  # and the room is free again
    number_alike(text, starts, stops, ids, WORDS, WORDS)
    return starts, stops, ids, bounds


@njit(cache=True, nogil=True)
def line_hashes(ids: Any, firsts: Any, lasts: Any) -> Any:
    """A 64-bit hash of each line's token ids in [firsts, lasts): equal lines but for their numbers hash alike."""
    out = np.empty(firsts.size, np.uint64)
    for line in range(firsts.size):
        h = np.uint64(0x9E3779B97F4A7C15)
        for t in range(firsts[line], lasts[line]):
            h = (h ^ np.uint64(ids[t])) * np.uint64(0xD6E8FEB86659FD93)
            h ^= h >> np.uint64(32)
        out[line] = h
    return out
