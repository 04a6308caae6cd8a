"""Columns into groups, and for each group the layout that measures smallest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from holdall.logs import mixing, sequences
from holdall.logs.numerals import Form, find_form, integers
from holdall.logs.pricing import hits, price
from holdall.logs.structure import Parsed
from holdall.logs.tokens import intern

if TYPE_CHECKING:
    from holdall.logs.segments import Segment

DICT, INT, FORM = 0, 1, 2  # what the values of a group are
SPARSE = 6  # a column that hardly changes: only its changes
DELTA, BY_KEY = (
    4,
    5,
)  # layouts of numbers besides PLAIN: step from the last value; from the last of the same event
SAMPLE = 4096  # rows on which layouts are compared
_FEW = 24  # a column with fewer rows joins the common group
NO_PARENT, LEFT = 0, 1  # then 2 + j: header field j


@dataclass
class Group:
    """Some columns that share a dictionary or a number layout, in line order."""

    kind: int
    rows: np.ndarray  # [m] parameter numbers, ascending
    values: np.ndarray  # [m] dictionary ids, or numbers
    layout: int = mixing.IDS
    base: int = 0
    top: int = 0  # the largest number, so that a search can pass over it
    form: Form | None = None
    parent: int = NO_PARENT
    guess: int = 0  # of mixing.BY_A, mixing.BY_B
    spans: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # [distinct, 2] of a DICT


def gather(parsed: Parsed, mapping: bool) -> tuple[list[Group], np.ndarray]:
    """The groups of a block, header fields first, and [columns] the group of each column.

    mapping: whether equal values share an entry and numbers are kept as numbers (level 3).
    """
    text, spans, of = parsed.text, parsed.spans, parsed.column_of
    ids, _ = intern(text, spans[:, 0], spans[:, 1])
    total = max((c for row in parsed.columns for c in row), default=-1) + 1
    order = np.argsort(of.astype(np.uint16 if total < 1 << 16 else np.int64), kind="stable")
    edges = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=total))])
    made: list[tuple[int, Group]] = []
    words: list[int] = []
    for c in range(total):
        rows = order[edges[c] : edges[c + 1]]
        group = _numeric(parsed, rows, ids) if mapping and rows.size >= _FEW else None
        if group is not None:
            made.append((c, group))
        else:
            words.append(c)
    home = np.full(total, -1, np.int64)
    groups = [g for _, g in made]
    for k, (c, _) in enumerate(made):
        home[c] = k
    for members in _alike(words, order, edges, ids, parsed.headers) if mapping else [[c] for c in words]:
        home[members] = len(groups)
        rows = np.sort(np.concatenate([order[edges[c] : edges[c + 1]] for c in members]))
        local, firsts = (np.arange(rows.size),) * 2
        if mapping:
            local, firsts = intern(text, spans[rows, 0], spans[rows, 1])
        groups.append(Group(DICT, rows, local, spans=spans[rows[firsts]]))
    return _in_order(groups, home)


def _in_order(groups: list[Group], home: np.ndarray) -> tuple[list[Group], np.ndarray]:
    """Numbered by the first column they hold, so that header fields come first and most parents before."""
    first: dict[int, int] = {}
    for g in home:
        first.setdefault(int(g), len(first))
    ranked = sorted(range(len(groups)), key=lambda g: first[g])
    place = np.empty(len(groups) + 1, np.int64)
    place[ranked] = np.arange(len(groups))
    return [groups[g] for g in ranked], place[home]


def _numeric(parsed: Parsed, rows: np.ndarray, ids: np.ndarray) -> Group | None:
    """The column as numbers, if it is one and that measures smaller than a dictionary."""
    text, a, b = parsed.text, parsed.spans[rows, 0], parsed.spans[rows, 1]
    values, good = integers(text, parsed.spans, rows)
    form = None if good else find_form(text, a, b)
    if form is not None:
        values = form.values(text, a)
    elif not good:
        return None
    group = Group(FORM if form else INT, rows, values, form=form, base=int(values.min()),
                  top=int(values.max()))  # fmt: skip
    some = slice(0, SAMPLE)
    keys = np.zeros(min(rows.size, SAMPLE), np.int64)
    priced = {layout: price(symbols(group.base, values[some], layout, keys), keys, keys, mixing.PLAIN)
              for layout in (mixing.PLAIN, DELTA)}  # fmt: skip
    group.layout = min(priced, key=lambda k: priced[k])
    local = np.unique(ids[rows[some]], return_inverse=True)
    firsts = np.full(local[0].size, keys.size)
    np.minimum.at(firsts, local[1], np.arange(keys.size))
    renamed = np.empty(local[0].size, np.int64)
    renamed[np.argsort(firsts)] = np.arange(local[0].size)
    named = renamed[local[1]]
    spell = 0.48 * float((b - a)[: keys.size].mean() + 0.7) * local[0].size  # bytes: 3.8 bits a digit
    as_names = min(price(named, keys, keys, m) for m in (mixing.IDS, mixing.RANKS)) + spell
    return group if priced[group.layout] <= as_names else None


def symbols(base: int, v: np.ndarray, layout: int, keys: np.ndarray) -> np.ndarray:
    """What the kernel codes for a group of numbers: never negative, small where the layout fits."""
    if layout == mixing.PLAIN:
        return v - base
    step = np.diff(v, prepend=base) if layout == DELTA else v - sequences.last_of_key(v, keys, base)
    return np.where(step < 0, -2 * step - 1, 2 * step)


def _alike(
    words: list[int], order: np.ndarray, edges: np.ndarray, ids: np.ndarray, headers: int
) -> list[list[int]]:
    """Columns of words whose values overlap come together; so do all the very short ones."""
    parent = {c: c for c in words}

    def root(c: int) -> int:
        while parent[c] != c:
            parent[c] = parent[parent[c]]
            c = parent[c]
        return c

    sets = {c: np.unique(ids[order[edges[c] : edges[c + 1]]]) for c in words if c >= headers}
    big = [c for c in sets if edges[c + 1] - edges[c] >= _FEW]
    named = [np.stack([sets[c], np.full(sets[c].size, c)], axis=1) for c in big]
    pairs = np.concatenate([*named, np.full((1, 2), -1)])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    same = pairs[1:, 0] == pairs[:-1, 0]
    links, shared = np.unique(np.stack([pairs[:-1, 1][same], pairs[1:, 1][same]]), axis=1, return_counts=True)
    for (x, y), n in zip(links.T.tolist(), shared.tolist(), strict=True):
        if n >= 0.3 * min(sets[x].size, sets[y].size) and (n > 2 or sets[x].size == sets[y].size):
            parent[root(y)] = root(x)
    small = [c for c in words if c >= headers and edges[c + 1] - edges[c] < _FEW]
    for c in small[1:]:
        parent[c] = small[0]
    found: dict[int, list[int]] = {}
    for c in words:
        found.setdefault(root(c), []).append(c)
    return list(found.values())


def choose_layouts(groups: list[Group], segment: Segment, values: np.ndarray) -> None:
    """For each group the layout, and the column whose value says most about it, that measure smallest."""
    fields = int(segment.tables.heads.max(initial=0))
    for g in np.flatnonzero(segment.tables.alone).tolist():
        mine = values[segment.rows[g]]
        changes = int((mine != sequences.last_of_key(mine, segment.event_keys(g), groups[g].base)).sum())
        if changes * 100 <= mine.size:
            groups[g].layout, segment.tables.sparse[g] = SPARSE, True
    segment.tables.arrange()
    for g, group in enumerate(groups):
        if group.layout == SPARSE:
            continue
        every = segment.rows[g]
        rows = segment.rows[g] = every[:SAMPLE]
        mine, events = values[rows], segment.event_keys(g)
        options = {p: segment.parent_keys(g, p, values) for p in range(LEFT, 2 + fields)}
        useful = {p: k for p, k in options.items() if k.any()}
        scored = {p: hits(mine, k, events) for p, k in useful.items()}
        ranked = sorted(scored, key=lambda p: -scored[p])[:2]
        zero = np.zeros(rows.size, np.int64)
        best = None
        for layout in (mixing.IDS, mixing.RANKS) if group.kind == DICT else (mixing.PLAIN, DELTA, BY_KEY):
            coded = mine if group.kind == DICT else symbols(group.base, mine, layout, events)
            mode = layout if group.kind == DICT else mixing.PLAIN
            for parent in (NO_PARENT, *ranked):
                keys = options.get(parent, zero)
                cost = price(coded, events, keys, mode)
                if best is None or cost < best[0]:
                    best = (cost, layout, parent, hits(coded, keys, zero), hits(coded, events, zero))
        assert best is not None
        _, group.layout, group.parent, by_b, by_a = best
        group.guess = mixing.BY_B * (2 * by_b > rows.size) | mixing.BY_A * (2 * by_a > rows.size)
