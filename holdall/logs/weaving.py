"""Lines put together again from templates and values (numba)."""

from __future__ import annotations

from typing import Any

from numba import njit


@njit(cache=True, nogil=True)
def _digits(out: Any, at: Any, value: Any, width: Any) -> Any:
    """Write `value` with leading zeros; False if it needs more than `width`."""
    for k in range(width - 1, -1, -1):
        out[at + k] = 48 + value % 10
        value //= 10
    return value == 0


@njit(cache=True, nogil=True)
def _integer(out: Any, at: Any, value: Any) -> Any:
    start = at
    if value < 0:
        out[at] = 45
        at += 1
        value = -value
    width, rest = 1, value // 10
    while rest > 0:
        width += 1
        rest //= 10
    _digits(out, at, value, width)
    return at + width - start


@njit(cache=True, nogil=True)
def weave(
    out: Any, events: Any, bounds: Any, group_of: Any, values: Any, text: Any, cuts: Any, firsts: Any, kinds: Any,
    bases: Any, words: Any, ends: Any, masks: Any, mask_cuts: Any, widths: Any, radices: Any, form_cuts: Any,
    last_newline: Any, which: Any,
) -> Any:  # fmt: skip
    """Fill `out` with the lines `which`; returns how many bytes, or -1 if they do not fit or a value is impossible.

    text[cuts[firsts[e] + s] : cuts[firsts[e] + s + 1] - 1]: literal s of event e. words[ends[d] : ends[d + 1]]: entry d
    of all dictionaries; bases[g]: the first entry of group g's. masks, widths, radices: the forms, by group.
    """
    at = 0
    for i in which:
        f = firsts[events[i]]
        n = bounds[i + 1] - bounds[i]
        for s in range(n + 1):
            a, b = cuts[f + s], cuts[f + s + 1] - 1
            if at + (b - a) + 64 > out.size:
                return -1
            for k in range(a, b):
                out[at] = text[k]
                at += 1
            if s == n:
                break
            r = bounds[i] + s
            g, v = group_of[r], values[r]
            if kinds[g] == 0:
                if v < 0 or bases[g] + v >= bases[g + 1]:
                    return -1
                a, b = ends[bases[g] + v], ends[bases[g] + v + 1] - 1
                if at + (b - a) + 64 > out.size:
                    return -1
                for k in range(a, b):
                    out[at] = words[k]
                    at += 1
            elif kinds[g] == 1:
                at += _integer(out, at, v)
            else:
                m = mask_cuts[g]
                size = mask_cuts[g + 1] - m
                for k in range(size):
                    out[at + k] = masks[m + k]
                if not _form(out, at, v, masks, m, size, widths, radices, form_cuts[g], form_cuts[g + 1]):
                    return -1
                at += size
        if i + 1 < events.size or last_newline:
            out[at] = 10
            at += 1
    return at


@njit(cache=True, nogil=True)
def _form(
    out: Any,
    at: Any,
    value: Any,
    masks: Any,
    m: Any,
    size: Any,
    widths: Any,
    radices: Any,
    low: Any,
    high: Any,
) -> Any:
    """Write the numbers of a form into its digits, from the right."""
    if value < 0:
        return False
    k = size - 1
    for f in range(high - 1, low - 1, -1):
        if f > low:
            part, value = value % radices[f], value // radices[f]
        else:
            part, value = value, 0
        for _ in range(widths[f]):
            while masks[m + k] != 48:
                k -= 1
            out[at + k] = 48 + part % 10
            part //= 10
            k -= 1
        if part:
            return False
    return True
