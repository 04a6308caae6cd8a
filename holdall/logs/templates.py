"""Iterative structure extraction: the templates of a log, found from a small sample, without rules from the user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdall.logs import matching
from holdall.logs import tokens as tk
from holdall.logs.alignment import APART, INSIDE, common_pattern, foretell
from holdall.logs.matching import STAR as STAR_ID

_LONGEST = 4000  # tokens: longer lines are not aligned with others
_CLUSTERS = 40  # templates that one coarse cluster may open before lines go to the next round
_WORK = 60_000_000  # cells of alignment a round, about 0.2 s
_FLOOR = 1000  # lines a round at least: 1 % of a small log says nothing


@dataclass
class Lines:
    """A tokenised block: for line i the tokens [bounds[i], bounds[i + 1])."""

    text: np.ndarray  # [bytes] u8
    edges: np.ndarray  # [n + 1] where lines start
    starts: np.ndarray  # [T]
    stops: np.ndarray  # [T]
    ids: np.ndarray  # [T]
    bounds: np.ndarray  # [n + 1]

    @classmethod
    def of(cls, text: np.ndarray, clocks: bool = True) -> Lines:
        edges = tk.split_lines(text)
        return cls(text, edges, *tk.tokenize(text, edges, clocks))

    @property
    def n(self) -> int:
        return self.edges.size - 1

    def token(self, t: int) -> bytes:
        return self.text[self.starts[t] : self.stops[t]].tobytes()

    def is_word(self) -> np.ndarray:
        return tk._WORD[self.text[self.starts]] if self.starts.size else np.zeros(0, bool)


def header_length(lines: Lines, words: np.ndarray, share: float = 0.9) -> int:
    """How many first tokens have one form (word or which separator) in at least `share` of the lines."""
    picked = np.unique(np.linspace(0, lines.n - 1, min(lines.n, 1000)).astype(np.int64))
    first, room = lines.bounds[picked], np.diff(lines.bounds)[picked]
    alive, length, forms = np.ones(picked.size, bool), 0, []
    while length < 64:
        alive &= room > length
        if alive.sum() < share * picked.size:
            break
        at = first[alive] + length
        form = np.where(words[at], 256, lines.text[lines.starts[at]])
        common = np.bincount(form).argmax()
        still = form == common
        if still.sum() < share * picked.size:
            break
        alive[alive] = still
        forms.append(int(common))
        length += 1
    rows = first[alive] if alive.any() else first[room > 0][:1]
    while length and (forms[length - 1] == 256 or _is_prose(lines, rows, forms, length)):
        length -= 1
    numbers = [i for i in range(length) if (lines.ids[rows + i] == tk.NUMBER).mean() > 0.5]
    return length if numbers else 0


def _is_prose(lines: Lines, rows: np.ndarray, forms: list[int], length: int) -> bool:
    """Whether the last word of the header is a word of the message: alphabetic, and many different ones."""
    if length < 2 or forms[length - 2] != 256:
        return False
    ids = lines.ids[rows + length - 2]
    return bool((ids == tk.NUMBER).mean() < 0.5 and np.unique(ids).size > 12)


def clocks_vary(lines: Lines, length: int) -> bool:
    """Whether the header has times without leading zeros: those are better read number by number."""
    picked = np.unique(np.linspace(0, lines.n - 1, min(lines.n, 1000)).astype(np.int64))
    rows = lines.bounds[picked[np.diff(lines.bounds)[picked] >= length]]
    for k in range(length if rows.size else 0):
        width = lines.stops[rows + k] - lines.starts[rows + k]
        common = np.bincount(width).argmax()
        if b":" in lines.token(rows[0] + k)[1:] and (width == common).mean() < 0.99:
            return True
    return False


def has_form(lines: Lines, words: np.ndarray, length: int) -> np.ndarray:
    """[n] whether a line starts with the header's commonest form of that length."""
    fits = np.diff(lines.bounds) >= length
    if not length or not fits.any():
        return np.zeros(lines.n, bool)
    rows = np.flatnonzero(fits)
    form = np.where(words, 0, lines.text[lines.starts].astype(np.int32)).astype(np.int32)
    hashes = tk.line_hashes(form, lines.bounds[rows], lines.bounds[rows] + length)
    kinds, counts = np.unique(hashes, return_counts=True)
    fits[rows] = hashes == kinds[counts.argmax()]
    return fits


def _cluster(sample: list[tuple[np.ndarray, int]], theta: float) -> list[np.ndarray]:
    """Divisive by frequent words, then streaming by longest common subsequence."""
    named = [np.unique(ids[ids >= tk.WORDS]) for ids, _ in sample]
    often = np.zeros(1 + max((int(x[-1]) for x in named if x.size), default=0), np.int64)
    for x, (_, count) in zip(named, sample, strict=True):
        often[x] += count
    coarse: dict[tuple[int, ...], list[np.ndarray]] = {}
    work, longest = _WORK, max((ids.size for ids, _ in sample), default=0)
    counts, spans = np.zeros(often.size, np.int32), np.empty((2 * longest + 2, 2), np.int64)
    for x, (ids, _) in zip(named, sample, strict=True):
        masked = np.where(ids == tk.NUMBER, STAR_ID, ids).astype(np.int32)
        found = coarse.setdefault(tuple(x[np.argsort(-often[x], kind="stable")[:3]].tolist()), [])
        for k, template in enumerate(found):
            verdict = foretell(template, masked, theta, counts, spans)
            if verdict == INSIDE:
                break
            if verdict == APART:
                continue
            work -= template.size * masked.size
            if work < 0:  # the rest of the sample waits for the next round
                break
            merged, alike, total = common_pattern(template, masked)
            if alike > theta * total:
                found[k] = merged
                break
        else:
            if len(found) < _CLUSTERS and work > 0:
                found.append(masked)
    return [_collapse(t) for members in coarse.values() for t in members]


def _collapse(pattern: np.ndarray) -> np.ndarray:
    """Neighbouring stars are one."""
    star = pattern == STAR_ID
    keep = np.ones(pattern.size, bool)
    keep[1:] = ~(star[1:] & star[:-1])
    return pattern[keep]


def extract_templates(
    ids: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, counts: np.ndarray, *,
    sample: float, theta: float, target: float, rounds: int,
) -> tuple[list[np.ndarray], np.ndarray, int]:  # fmt: skip
    """Templates, the template of each distinct line (-1: none), and how many lines were sampled.

    The lines come as distinct ones with `counts`: two lines that differ in numbers alone are the same here.
    """
    rng = np.random.default_rng(0)
    chosen = np.where(firsts == lasts, 0, -1)  # nothing is left to explain
    kept: list[np.ndarray] = []
    lines, sampled = int(counts.sum()), 0
    allowed = max(0.05 * lines, rounds * _FLOOR)
    for _ in range(rounds):
        todo = np.flatnonzero(chosen < 0)
        left = int(counts[todo].sum())
        if left <= (1 - target) * lines or sampled >= allowed:
            break
        want = int(min(max(sample * left, _FLOOR), allowed - sampled, left))
        hits = rng.multivariate_hypergeometric(counts[todo], want, method="marginals")
        sampled += want
        picked = [(ids[firsts[k] : lasts[k]], int(c)) for k, c in zip(todo[hits > 0], hits[hits > 0], strict=True)
                  if lasts[k] - firsts[k] <= _LONGEST]  # fmt: skip
        fresh = _cluster(picked, theta)
        if not fresh:
            break
        kept = _ordered([*kept, *fresh])
        chosen[todo] = assign(ids, firsts[todo], lasts[todo], _ordered(fresh))
    chosen = assign(ids, firsts, lasts, kept)
    chosen[firsts == lasts] = -1
    used = np.unique(chosen[chosen >= 0])
    names = np.full(len(kept) + 1, -1, np.int64)
    names[used] = np.arange(used.size)
    return [kept[k] for k in used], names[chosen], sampled


def _ordered(patterns: list[np.ndarray]) -> list[np.ndarray]:
    """Without doubles; the longest first, then those with the fewest stars."""
    distinct = {p.tobytes(): p for p in patterns if (p != STAR_ID).any()}
    return sorted(distinct.values(), key=lambda p: (-int((p != STAR_ID).sum()), int((p == STAR_ID).sum())))


def flat(patterns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """One array, where each begins, and the most stars."""
    offsets = np.cumsum([0, *(p.size for p in patterns)]).astype(np.int64)
    whole = np.concatenate([*patterns, np.empty(0, np.int32)]).astype(np.int32)
    return whole, offsets, max((int((p == STAR_ID).sum()) for p in patterns), default=0)


def assign(ids: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, patterns: list[np.ndarray]) -> np.ndarray:
    """[lines] the first pattern that matches each, or -1."""
    whole, offsets, most = flat(patterns)
    chosen = np.full(firsts.size, -1, np.int64)
    return matching.match_all(ids, firsts, lasts, np.arange(firsts.size), whole, offsets, chosen, most)
