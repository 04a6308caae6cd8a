"""The longest common subsequence of two token patterns, as a pattern (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from holdall.logs.matching import STAR, match

_WORDS = 257
APART, UNSURE, INSIDE = 0, 1, 2  # what can be said of a line and a template without aligning them


@njit(cache=True, nogil=True)
def foretell(template: Any, line: Any, theta: Any, counts: Any, spans: Any) -> Any:
    """INSIDE: the line joins the template and leaves it as it is. APART: it has too few of its words. Else UNSURE.

    counts: zeros for each token id; they are zeros again afterwards.
    """
    words, mine, common = (template >= _WORDS).sum(), (line >= _WORDS).sum(), 0
    if words == 0 and mine == 0:
        return UNSURE
    for t in template:
        if t >= _WORDS:
            counts[t] += 1
    for t in line:
        if t >= _WORDS and counts[t] > 0:
            counts[t] -= 1
            common += 1
    for t in template:
        if t >= _WORDS:
            counts[t] = 0
    least = theta * max(words, mine)
    if common <= least:
        return APART
    return INSIDE if words > least and match(line, 0, line.size, template, spans) else UNSURE


@njit(cache=True, nogil=True)
def common_pattern(a: Any, b: Any) -> Any:
    """The common pattern of `a` and `b` with stars at its gaps; words in common; words in the longer of them.

    Words weigh more than separators, so that the alignment holds on to what the program's author wrote.
    """
    lead, tail = _same_ends(a, b)
    out = np.empty(a.size + b.size + 1, np.int32)
    out[:lead] = a[:lead]
    words_a, words_b = (a >= _WORDS).sum(), (b >= _WORDS).sum()
    alike = (a[:lead] >= _WORDS).sum() + (a[a.size - tail :] >= _WORDS).sum()
    k, more = _between(a[lead : a.size - tail], b[lead : b.size - tail], out, lead)
    alike += more
    out[k : k + tail] = a[a.size - tail :]
    k += tail
    if words_a == 0 and words_b == 0:  # no words at all: alike when the separators are
        return out[:k].copy(), (out[:k] != STAR).sum(), max((a != STAR).sum(), (b != STAR).sum())
    return out[:k].copy(), alike, max(words_a, words_b)


@njit(cache=True, nogil=True)
def _same_ends(a: Any, b: Any) -> Any:
    """How many tokens are the same at both beginnings, and then at both ends: those need no search."""
    least, lead, tail = min(a.size, b.size), 0, 0
    while lead < least and a[lead] == b[lead] and a[lead] != STAR:
        lead += 1
    while (
        tail < least - lead and a[a.size - 1 - tail] == b[b.size - 1 - tail] and a[a.size - 1 - tail] != STAR
    ):
        tail += 1
    return lead, tail


@njit(cache=True, nogil=True)
def _between(a: Any, b: Any, out: Any, k: Any) -> Any:
    """Write the common pattern of `a` and `b` to `out` from `k` on; where it ends, and words in common."""
    n, m = a.size, b.size
    best = np.zeros((n + 1, m + 1), np.int32)
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            here = max(best[i + 1, j], best[i, j + 1])
            if a[i] == b[j] and a[i] != STAR:
                here = max(here, best[i + 1, j + 1] + (4 if a[i] >= _WORDS else 1))
            best[i, j] = here
    i, j, alike, gap = 0, 0, 0, False
    while i < n and j < m:
        weight = 4 if a[i] >= _WORDS else 1
        if a[i] == b[j] and a[i] != STAR and best[i, j] == best[i + 1, j + 1] + weight:
            if gap:
                out[k] = STAR
                k += 1
                gap = False
            out[k] = a[i]
            k += 1
            alike += a[i] >= _WORDS
            i += 1
            j += 1
        else:
            gap = True
            if best[i + 1, j] >= best[i, j + 1]:
                i += 1
            else:
                j += 1
    if gap or i < n or j < m:
        out[k] = STAR
        k += 1
    return k, alike
