"""Some lines of a block as streams of symbols: what a column is coded with, and the packing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdall.logs import mixing, sequences
from holdall.logs.bytestreams import varints
from holdall.logs.groups import DICT, LEFT, NO_PARENT, SPARSE, Group, symbols


@dataclass
class Tables:
    """What the segments of a block share: which columns an event has, which group a column is in."""

    heads: np.ndarray  # [events] header fields
    widths: np.ndarray  # [events] parameters, header fields included
    offsets: np.ndarray  # [events] where its columns begin in `columns`
    columns: np.ndarray  # all events' columns, one after the other
    home: np.ndarray  # [columns] group
    alone: np.ndarray  # [groups] whether it has a stream of its own
    sparse: np.ndarray  # [groups] whether only its changes are kept: all of those share the first stream
    streams: list[list[int]] = field(default_factory=list)  # groups of each stream, in the order of coding
    stream_of: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [groups]

    @classmethod
    def of(cls, heads: list[int], columns: list[list[int]], home: np.ndarray, alone: np.ndarray,
           sparse: np.ndarray) -> Tables:  # fmt: skip
        widths = np.array([len(c) for c in columns], np.int64)
        flat = np.array([c for row in columns for c in row] or [0], np.int64)
        offsets = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
        made = cls(np.array(heads, np.int64), widths, offsets, flat, home, alone, sparse)
        made.arrange()
        return made

    def arrange(self) -> None:
        """Which stream a group is in; anew when it becomes known which groups are sparse."""
        sparse, shared = np.flatnonzero(self.sparse).tolist(), np.flatnonzero(~self.alone).tolist()
        own = [[int(g)] for g in np.flatnonzero(self.alone & ~self.sparse)]
        self.streams = [x for x in (sparse, *own, shared) if x]
        self.stream_of = np.zeros(self.alone.size, np.int64)
        for s, members in enumerate(self.streams):
            self.stream_of[members] = s


class Segment:
    """The parameters of some lines, whose events are known."""

    def __init__(self, tables: Tables, events: np.ndarray):
        self.tables, self.events = tables, events
        widths = tables.widths[events]
        self.bounds = np.concatenate([[0], np.cumsum(widths)])
        total = int(self.bounds[-1])
        self.line_of = np.repeat(np.arange(events.size), widths)
        slot = np.arange(total) - np.repeat(self.bounds[:-1], widths)
        self.column_of = tables.columns[np.repeat(tables.offsets[events], widths) + slot]
        self.group_of = tables.home[self.column_of]
        small = np.uint16 if tables.alone.size < 1 << 16 else np.int64  # 16 bits are sorted by counting
        order = np.argsort(self.group_of.astype(small), kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(self.group_of, minlength=tables.alone.size))])
        self.rows = [order[edges[g] : edges[g + 1]] for g in range(tables.alone.size)]
        head = self.column_of < int(tables.heads.max(initial=0))
        self.keys = np.where(head, events[self.line_of], tables.widths.size + self.column_of)

    def event_keys(self, g: int) -> np.ndarray:
        """What kind of place a value stands in: its column, or for header fields the event of its line."""
        return self.keys[self.rows[g]]

    def groups_in(self, lines: np.ndarray) -> np.ndarray:
        """The groups of the parameters of some lines, with repeats."""
        inside = np.zeros(self.events.size, bool)
        inside[lines] = True
        return self.group_of[np.repeat(inside, np.diff(self.bounds))]

    def parent_keys(self, g: int, parent: int, values: np.ndarray, most: int | None = None) -> np.ndarray:
        """The values of the parent column in the same lines; 0 where there is none yet. most: rows asked for."""
        rows = self.rows[g][:most]
        if parent == NO_PARENT or not rows.size:
            return np.zeros(rows.size, np.int64)
        lines = self.line_of[rows]
        if parent == LEFT:
            at = rows - 1
            there = at >= self.bounds[lines]
            at = np.maximum(at, 0)
            there &= self.tables.stream_of[self.group_of[at]] < self.tables.stream_of[g]
        else:
            at = self.bounds[lines] + (parent - 2)
            there = self.tables.heads[self.events[lines]] > parent - 2
            at = np.where(there, at, 0)
            there = there & (self.tables.stream_of[self.group_of[at]] < self.tables.stream_of[g])
        return np.where(there, values[at] + 1, 0)


def encode_segment(segment: Segment, groups: list[Group], values: np.ndarray, fresh: np.ndarray) -> bytes:
    """A directory of stream lengths and new ids, then the streams. `fresh` [groups] moves on."""
    n = segment.events.size
    zero = np.zeros(n, np.int64)
    events = mixing.encode(segment.events, zero, zero, zero, np.array([mixing.EVENTS]), np.zeros(1, np.int64))
    streams = [events]
    for members in segment.tables.streams:
        if groups[members[0]].layout == SPARSE:
            streams.append(_sparse(segment, groups, members, values))
            continue
        parts = [_parts(segment, groups, g, k, values) for k, g in enumerate(members)]
        modes = modes_of(groups, members)
        new = fresh[members]
        mine, column, keys, parents = (np.concatenate(p) for p in zip(*parts, strict=True))
        streams.append(mixing.encode(mine, column, keys, parents, modes, new))
        fresh[members] = new
    return varints([len(s) for s in streams]) + b"".join(streams)


def modes_of(groups: list[Group], members: list[int]) -> np.ndarray:
    made = [(groups[g].layout if groups[g].kind == DICT else mixing.PLAIN) | groups[g].guess for g in members]
    return np.array(made, np.int64)


def _sparse(segment: Segment, groups: list[Group], members: list[int], values: np.ndarray) -> bytes:
    """Columns that hardly change: only where they do, and to what. One stream, for each alone is a few bytes."""
    counts, told = [], []
    for g in members:
        news = sequences.changes(values[segment.rows[g]], segment.event_keys(g), groups[g].base)
        counts.append(news.shape[1])
        told += [*news]
    if not any(counts):
        return b""
    column, zero = sparse_columns(counts)
    modes, fresh = np.zeros((2, 2 * len(members)), np.int64)
    return varints(counts) + mixing.encode(np.concatenate(told), column, zero, zero, modes, fresh)


def sparse_columns(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns 2k and 2k + 1 are the places and the values of member k; and as many zeros."""
    column = np.repeat(np.arange(2 * len(counts)), np.repeat(counts, 2))
    return column, np.zeros(column.size, np.int64)


def _parts(
    segment: Segment, groups: list[Group], g: int, k: int, values: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Symbols, column number, and both keys of one group."""
    group, rows = groups[g], segment.rows[g]
    keys = segment.event_keys(g)
    mine = values[rows]
    if group.kind != DICT:
        mine = symbols(group.base, mine, group.layout, keys)
    return mine, np.full(rows.size, k), keys, segment.parent_keys(g, group.parent, values)
