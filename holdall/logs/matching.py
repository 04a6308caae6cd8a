"""Token sequences against templates (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

STAR = -1


@njit(cache=True, nogil=True)
def match(ids: Any, a: Any, b: Any, pattern: Any, spans: Any) -> Any:
    """Match tokens [a, b) with a template; spans[s] = the tokens of star s. Each star takes as few as it can.

    Going back to the last star only is enough for patterns of this kind, so the time is bounded by the product
    of the two lengths.
    """
    t, p, star, held, s = a, 0, -1, a, -1
    m = pattern.size
    while t < b or p < m:
        if p < m and pattern[p] == STAR:
            s += 1
            spans[s, 0] = spans[s, 1] = t
            star, held = p, t
            p += 1
        elif p < m and t < b and pattern[p] == ids[t]:
            p += 1
            t += 1
        elif star >= 0 and held < b:
            held += 1
            t, p = held, star + 1
            spans[s, 1] = held
        else:
            return False
    return True


@njit(cache=True, nogil=True)
def split_stars(
    ids: Any, words: Any, a: Any, b: Any, pattern: Any, spans: Any, most: Any, number: Any, out: Any
) -> Any:
    """The template with each star that holds several tokens, mostly numbers, cut into its words and separators.

    Returns its size in `out`; 0 where nothing is cut or tokens [a, b) do not match. Neighbouring stars are one.
    """
    if not match(ids, a, b, pattern, spans):
        return 0
    s, k, changed = 0, 0, False
    for p in range(pattern.size):
        x, y = a, a
        if pattern[p] == STAR:
            x, y = spans[s, 0], spans[s, 1]
            s += 1
        numbers, named = 0, 0
        for t in range(x, y):
            numbers += ids[t] == number
            named += words[t]
        if 1 < y - x <= most and numbers * 2 > named:
            changed = True
            for t in range(x, y):
                k = _put(out, k, STAR if words[t] else ids[t])
        else:
            k = _put(out, k, pattern[p])
    return k if changed else 0


@njit(cache=True, nogil=True, inline="always")
def _put(out: Any, k: Any, token: Any) -> Any:
    if token == STAR and k > 0 and out[k - 1] == STAR:
        return k
    out[k] = token
    return k + 1


@njit(cache=True, nogil=True)
def match_all(
    ids: Any, firsts: Any, lasts: Any, todo: Any, patterns: Any, offsets: Any, chosen: Any, most: Any
) -> Any:
    """chosen[line] = the first template (in their order) that matches, for lines in `todo`."""
    spans = np.empty((most + 1, 2), np.int64)
    for k in range(todo.size):
        line = todo[k]
        a, b = firsts[line], lasts[line]
        for p in range(offsets.size - 1):
            pattern = patterns[offsets[p] : offsets[p + 1]]
            if pattern.size and b > a:
                if pattern[0] != STAR and pattern[0] != ids[a]:
                    continue
                if pattern[-1] != STAR and pattern[-1] != ids[b - 1]:
                    continue
            if match(ids, a, b, pattern, spans):
                chosen[line] = p
                break
    return chosen


@njit(cache=True, nogil=True)
def extract(
    ids: Any,
    starts: Any,
    stops: Any,
    firsts: Any,
    lasts: Any,
    ends: Any,
    chosen: Any,
    patterns: Any,
    offsets: Any,
    bounds: Any,
    most: Any,
    out: Any,
) -> Any:
    """out[bounds[line] + s] = byte span of star s of each line. A line that does not match is marked in `bad`."""
    spans = np.empty((most + 1, 2), np.int64)
    bad = np.zeros(chosen.size, np.bool_)
    for line in range(chosen.size):
        pattern = patterns[offsets[chosen[line]] : offsets[chosen[line] + 1]]
        a, b = firsts[line], lasts[line]
        if not match(ids, a, b, pattern, spans):
            bad[line] = True
            continue
        for s in range(bounds[line + 1] - bounds[line]):
            x, y = spans[s, 0], spans[s, 1]
            o = bounds[line] + s
            if x == y:
                out[o, 0] = out[o, 1] = starts[x] if x < b else ends[line]
            else:
                out[o, 0], out[o, 1] = starts[x], stops[y - 1]
    return bad
