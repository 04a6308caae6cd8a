"""From bytes to events and parameters: header, templates, refinement, and where each parameter lies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdall.logs import matching
from holdall.logs import templates as tp
from holdall.logs import tokens as tk
from holdall.logs.templates import STAR_ID, Lines

_REFINED = 20_000  # distinct lines that are looked at for splitting
_SPLIT_TOKENS = 24  # a parameter of more tokens stays whole


@dataclass
class Parsed:
    """A block as events: line i has event events[i]; its parameters are spans[bounds[i] : bounds[i + 1]]."""

    text: np.ndarray
    events: np.ndarray  # [n]
    spans: np.ndarray  # [P, 2]
    bounds: np.ndarray  # [n + 1]
    literals: list[list[bytes]]  # by event: one more than it has parameters
    columns: list[list[int]]  # by event: the column of each parameter
    headers: int  # columns 0 .. headers - 1 are header fields
    raw_column: int = -1  # of lines that no template matches
    matched: float = 0.0
    sampled: float = 0.0
    column_of: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [P]


def parse(text: np.ndarray, *, templates: bool, sample: float, theta: float, target: float) -> Parsed:
    """Find the header and the templates of a block and cut every line by them."""
    lines = Lines.of(text)
    words = lines.is_word()
    length = tp.header_length(lines, words)
    if tp.clocks_vary(lines, length):
        lines = Lines.of(text, clocks=False)
        words = lines.is_word()
        length = tp.header_length(lines, words)
    headed = tp.has_form(lines, words, length)
    firsts, lasts = lines.bounds[:-1] + length * headed, lines.bounds[1:]
    heads, head_of = _heads(lines, words, headed, length)
    hashes = tk.line_hashes(lines.ids, firsts, lasts)
    _, picked, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    patterns: list[np.ndarray] = []
    chosen, sampled = np.full(picked.size, -1, np.int64), 0
    if templates:
        patterns, chosen, sampled = tp.extract_templates(
            lines.ids,
            firsts[picked],
            lasts[picked],
            counts,
            sample=sample,
            theta=theta,
            target=target,
            rounds=5,
        )
    bare = firsts[picked] == lasts[picked]
    if templates and bare.any():  # lines that are all header
        chosen[bare] = len(patterns)
        patterns = [*patterns, np.empty(0, np.int32)]
    matched = float(counts[chosen >= 0].sum() / max(1, lines.n))
    patterns, chosen = _refine(lines, words, firsts[picked], lasts[picked], counts, patterns, chosen)
    parsed = _cut(lines, heads, head_of, patterns, chosen[inverse])
    parsed.matched, parsed.sampled = matched, sampled / max(1, lines.n)
    return parsed


def _heads(
    lines: Lines, words: np.ndarray, headed: np.ndarray, length: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The header patterns (they differ in runs of separators only) and [n] which one a line has, -1 none."""
    which = np.full(lines.n, -1, np.int64)
    if not headed.any():
        return [], which
    rows = np.flatnonzero(headed)
    masked = np.where(words, tk.NUMBER, lines.ids)
    first = lines.bounds[rows]
    hashes = tk.line_hashes(masked, first, first + length)
    _, picked, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    which[rows] = inverse
    heads = []
    for r in rows[picked]:
        ids = masked[lines.bounds[r] : lines.bounds[r] + length].astype(np.int32)
        ids[ids == tk.NUMBER] = STAR_ID
        heads.append(tp._collapse(ids))
    return heads, which


def _refine(
    lines: Lines, words: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, counts: np.ndarray,
    patterns: list[np.ndarray], chosen: np.ndarray,
) -> tuple[list[np.ndarray], np.ndarray]:  # fmt: skip
    """Split parameters that have inner separators, where enough lines split alike (an address, a date)."""
    if not patterns:
        return patterns, chosen
    least = max(24, int(0.0005 * counts.sum()))
    finer: dict[tuple[int, bytes], list[int]] = {}
    spans = np.empty((max(p.size for p in patterns) + 1, 2), np.int64)
    often = np.argsort(-np.where(chosen >= 0, counts, -1), kind="stable")[:_REFINED]
    for k in often[chosen[often] >= 0]:
        split = _split(lines, words, firsts[k], lasts[k], patterns[chosen[k]], spans)
        if split is not None:
            finer.setdefault((int(chosen[k]), split.tobytes()), []).append(int(k))
    patterns, chosen = list(patterns), chosen.copy()
    for (_, raw), members in finer.items():
        if counts[members].sum() >= least:
            chosen[members] = len(patterns)
            patterns.append(np.frombuffer(raw, np.int32))
    return patterns, chosen


def _split(
    lines: Lines, words: np.ndarray, a: int, b: int, pattern: np.ndarray, spans: np.ndarray
) -> np.ndarray | None:
    out = np.empty(pattern.size + b - a, np.int32)
    size = matching.split_stars(lines.ids, words, a, b, pattern, spans, _SPLIT_TOKENS, tk.NUMBER, out)
    return out[:size] if size else None


def _cut(lines: Lines, heads: list[np.ndarray], head_of: np.ndarray, patterns: list[np.ndarray],
         chosen: np.ndarray) -> Parsed:  # fmt: skip
    """Give each pair of header and template an event number, and find every line's parameters."""
    star = np.array([STAR_ID], np.int32)
    bodies = [*patterns, star]
    chosen = np.where(chosen < 0, len(patterns), chosen)
    pairs = (head_of + 1) * len(bodies) + chosen
    raw = len(patterns)  # no header, one star: matches anything
    kinds, events, counts = np.unique(np.append(pairs, raw), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    kinds, events = kinds[order], rank[events[:-1]]
    whole = [np.concatenate([heads[k // len(bodies) - 1] if k >= len(bodies) else star[:0], bodies[k % len(bodies)]])
             for k in kinds]  # fmt: skip
    fallback = int(np.flatnonzero(kinds == raw)[0])
    bounds, spans, bad = _extract(lines, whole, events)
    if bad.any():  # two different lines with one 64-bit hash, or a header star that ran on
        events[bad] = fallback
        bounds, spans, bad = _extract(lines, whole, events)
    assert not bad.any()
    head_stars = max((int((h == STAR_ID).sum()) for h in heads), default=0)
    columns = _columns(kinds, len(bodies), heads, bodies, head_stars)
    show = _texts(lines)
    literals = [_literals(lines, p, show) for p in whole]
    table, offsets = _ragged(columns)
    width = np.diff(bounds)
    slot = np.arange(spans.shape[0]) - np.repeat(bounds[:-1], width)
    column_of = table[np.repeat(offsets[events], width) + slot] if spans.shape[0] else np.empty(0, np.int64)
    return Parsed(lines.text, events, spans, bounds, literals, columns, head_stars,
                  head_stars + sum(int((p == STAR_ID).sum()) for p in patterns), column_of=column_of)  # fmt: skip


def _extract(
    lines: Lines, whole: list[np.ndarray], events: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat, offsets, most = tp.flat(whole)
    stars = np.array([(p == STAR_ID).sum() for p in whole], np.int64)
    bounds = np.concatenate([[0], np.cumsum(stars[events])])
    spans = np.zeros((int(bounds[-1]), 2), np.int64)
    bad = matching.extract(lines.ids, lines.starts, lines.stops, lines.bounds[:-1], lines.bounds[1:],
                     lines.edges[1:] - 1, events, flat, offsets, bounds, most, spans)  # fmt: skip
    return bounds, spans, bad


def _columns(kinds: np.ndarray, bodies: int, heads: list[np.ndarray], patterns: list[np.ndarray],
             head_stars: int) -> list[list[int]]:  # fmt: skip
    """Column numbers by event: header fields share theirs over all events, the rest is the template's own."""
    base = np.cumsum([head_stars, *((p == STAR_ID).sum() for p in patterns)])
    out = []
    for k in kinds:
        body = int(k % bodies)
        head = int((heads[k // bodies - 1] == STAR_ID).sum()) if k >= bodies else 0
        out.append([*range(head), *range(int(base[body]), int(base[body + 1]))])
    return out


def _ragged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, rows)])[:-1]
    return np.array([x for row in rows for x in row] or [0], np.int64), offsets.astype(np.int64)


def _texts(lines: Lines) -> np.ndarray:
    """[ids] one token that shows the text of each id."""
    show = np.zeros(int(lines.ids.max(initial=0)) + 1, np.int64)
    show[lines.ids[::-1]] = np.arange(lines.ids.size)[::-1]
    return show


def _literals(lines: Lines, pattern: np.ndarray, show: np.ndarray) -> list[bytes]:
    pieces, here = [], bytearray()
    for i in pattern:
        if i == STAR_ID:
            pieces.append(bytes(here))
            here = bytearray()
        else:
            here += lines.token(int(show[i]))
    return [*pieces, bytes(here)]


def without_parameters(parsed: Parsed) -> Parsed:
    """The lossy form: header fields and templates, with <*> where a parameter stood."""
    kept = (parsed.column_of < parsed.headers) | (parsed.column_of == parsed.raw_column)
    literals, columns = [], []
    for texts, row in zip(parsed.literals, parsed.columns, strict=True):
        left, pieces = [], [texts[0]]
        for text, c in zip(texts[1:], row, strict=True):
            if c < parsed.headers or c == parsed.raw_column:
                left.append(c)
                pieces.append(text)
            else:
                pieces[-1] += b"<*>" + text
        literals.append(pieces)
        columns.append(left)
    before = np.concatenate([[0], np.cumsum(kept)])
    return Parsed(
        parsed.text, parsed.events, parsed.spans[kept], before[parsed.bounds], literals, columns,
        parsed.headers, parsed.raw_column, parsed.matched, parsed.sampled, parsed.column_of[kept],
    )  # fmt: skip
