"""Some lines of a block as streams of symbols: the same walk over groups when packing and unpacking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import mixing, sequences
from holdall.logs.bytestreams import Cursor, varints
from holdall.logs.groups import BY_KEY, DELTA, DICT, LEFT, NO_PARENT, SPARSE, Group, symbols


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

    @classmethod
    def of(cls, heads: list[int], columns: list[list[int]], home: np.ndarray, alone: np.ndarray,
           sparse: np.ndarray) -> Tables:  # fmt: skip
        widths = np.array([len(c) for c in columns], np.int64)
        flat = np.array([c for row in columns for c in row] or [0], np.int64)
        offsets = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
        return cls(np.array(heads, np.int64), widths, offsets, flat, home, alone, sparse)

    def streams(self) -> list[list[int]]:
        """Groups of each stream, in the order in which they are coded."""
        sparse, shared = np.flatnonzero(self.sparse).tolist(), np.flatnonzero(~self.alone).tolist()
        own = [[int(g)] for g in np.flatnonzero(self.alone & ~self.sparse)]
        return [x for x in (sparse, *own, shared) if x]


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
        order = np.argsort(self.group_of, kind="stable")
        edges = np.searchsorted(self.group_of[order], np.arange(tables.alone.size + 1))
        self.rows = [order[edges[g] : edges[g + 1]] for g in range(tables.alone.size)]
        self.order_streams()

    def order_streams(self) -> None:
        """Which stream a group is in; anew when it becomes known which groups are sparse."""
        self.stream_of = np.zeros(self.tables.alone.size, np.int64)
        for s, members in enumerate(self.tables.streams()):
            self.stream_of[members] = s

    def event_keys(self, g: int) -> np.ndarray:
        """What kind of place a value stands in: its column, or for header fields the event of its line."""
        rows = self.rows[g]
        columns = self.column_of[rows]
        most = int(self.tables.heads.max(initial=0))
        return np.where(columns < most, self.events[self.line_of[rows]], self.tables.widths.size + columns)

    def parent_keys(self, g: int, parent: int, values: np.ndarray) -> np.ndarray:
        """The values of the parent column in the same lines; 0 where there is none yet."""
        rows = self.rows[g]
        if parent == NO_PARENT or not rows.size:
            return np.zeros(rows.size, np.int64)
        lines = self.line_of[rows]
        if parent == LEFT:
            at = rows - 1
            there = at >= self.bounds[lines]
            at = np.maximum(at, 0)
            there &= self.stream_of[self.group_of[at]] < self.stream_of[g]
        else:
            at = self.bounds[lines] + (parent - 2)
            there = self.tables.heads[self.events[lines]] > parent - 2
            at = np.where(there, at, 0)
            there = there & (self.stream_of[self.group_of[at]] < self.stream_of[g])
        return np.where(there, values[at] + 1, 0)


def encode_segment(segment: Segment, groups: list[Group], values: np.ndarray, fresh: np.ndarray) -> bytes:
    """A directory of stream lengths and new ids, then the streams. `fresh` [groups] moves on."""
    n = segment.events.size
    zero = np.zeros(n, np.int64)
    events = mixing.encode(segment.events, zero, zero, zero, np.array([mixing.EVENTS]), np.zeros(1, np.int64))
    streams = [events]
    for members in segment.tables.streams():
        if groups[members[0]].layout == SPARSE:
            streams.append(_sparse(segment, groups, members, values))
            continue
        parts = [_parts(segment, groups, g, k, values) for k, g in enumerate(members)]
        modes = _modes(groups, members)
        new = fresh[members]
        mine, column, keys, parents = (np.concatenate(p) for p in zip(*parts, strict=True))
        streams.append(mixing.encode(mine, column, keys, parents, modes, new))
        fresh[members] = new
    return varints([len(s) for s in streams]) + b"".join(streams)


def _modes(groups: list[Group], members: list[int]) -> np.ndarray:
    made = [(groups[g].layout if groups[g].kind == DICT else mixing.PLAIN) | groups[g].guess for g in members]
    return np.array(made, np.int64)


def _sparse(segment: Segment, groups: list[Group], members: list[int], values: np.ndarray) -> bytes:
    """Columns that hardly change: only where they do, and to what. One stream, for each alone is a few bytes."""
    counts, told = [], []
    for g in members:
        mine, base = values[segment.rows[g]], groups[g].base
        at = np.flatnonzero(mine != sequences.last_of_key(mine, segment.event_keys(g), base))
        counts.append(int(at.size))
        if at.size:
            new = mine[at] - base
            told += [np.diff(at, prepend=-1) - 1, np.where(new < 0, -2 * new - 1, 2 * new)]
    if not told:
        return b""
    column, zero = _sparse_columns(counts)
    modes, fresh = np.zeros((2, 2 * len(members)), np.int64)
    return varints(counts) + mixing.encode(np.concatenate(told), column, zero, zero, modes, fresh)


def _sparse_columns(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns 2k and 2k + 1 are the places and the values of member k; and as many zeros."""
    column = np.repeat(np.arange(2 * len(counts)), np.repeat(counts, 2))
    return column, np.zeros(column.size, np.int64)


def _unsparse(
    raw: bytes, segment: Segment, groups: list[Group], members: list[int], values: np.ndarray, path: str
) -> None:
    """Fill the values of the sparse groups."""
    cursor = Cursor(raw, path)
    counts = [cursor.number(segment.rows[g].size) if raw else 0 for g in members]
    column, zero = _sparse_columns(counts)
    modes, fresh = np.zeros((2, 2 * len(members)), np.int64)
    got = mixing.decode(raw[cursor.at :], column, zero, zero, modes, fresh) if column.size else zero
    if got is None:
        raise CorruptArtefact(path, "a column contradicts itself")
    edge = 0
    for g, n in zip(members, counts, strict=True):
        rows, base = segment.rows[g], groups[g].base
        gaps, new = got[edge : edge + n], got[edge + n : edge + 2 * n]
        edge += 2 * n
        if not n:
            values[rows] = base
            continue
        at = np.cumsum(np.minimum(gaps, rows.size) + 1) - 1
        if int(at[-1]) >= rows.size:
            raise CorruptArtefact(path, "a column contradicts itself")
        changed, mine = np.zeros(rows.size, np.bool_), np.full(rows.size, base)
        changed[at] = True
        mine[at] = base + np.where(new & 1, -((new + 1) >> 1), new >> 1)
        values[rows] = sequences.carry(mine, changed, segment.event_keys(g), base)


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


def decode_segment(raw: bytes, n: int, tables: Tables, groups: list[Group], fresh: np.ndarray,
                   path: str) -> tuple[Segment, np.ndarray]:  # fmt: skip
    """The lines' events and the values of their parameters."""
    cursor = Cursor(raw, path)
    sizes = [cursor.number(len(raw)) for _ in range(1 + len(tables.streams()))]
    zero = np.zeros(n, np.int64)
    events = mixing.decode(
        cursor.take(sizes[0]), zero, zero, zero, np.array([mixing.EVENTS]), np.zeros(1, np.int64)
    )
    if events is None or (n and int(events.max()) >= tables.widths.size):
        raise CorruptArtefact(path, "its events contradict its templates")
    segment = Segment(tables, events)
    values = np.zeros(segment.column_of.size, np.int64)
    for members, size in zip(tables.streams(), sizes[1:], strict=True):
        if groups[members[0]].layout == SPARSE:
            _unsparse(cursor.take(size), segment, groups, members, values, path)
            continue
        modes = _modes(groups, members)
        rows = [segment.rows[g] for g in members]
        columns = np.concatenate([np.full(r.size, k) for k, r in enumerate(rows)])
        events_of = [segment.event_keys(g) for g in members]
        parents = [segment.parent_keys(g, groups[g].parent, values) for g in members]
        new = fresh[members]
        got = mixing.decode(
            cursor.take(size), columns, np.concatenate(events_of), np.concatenate(parents), modes, new
        )
        if got is None:
            raise CorruptArtefact(path, "a column contradicts itself")
        fresh[members] = new
        edges = np.cumsum([0, *(r.size for r in rows)])
        for k, g in enumerate(members):
            values[rows[k]] = _numbers(groups[g], got[edges[k] : edges[k + 1]], events_of[k])
    return segment, values


def _numbers(group: Group, got: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if group.kind == DICT:
        return got
    if group.layout in (DELTA, BY_KEY):
        return sequences.undo_steps(got, keys, group.base, group.layout == BY_KEY)
    return got + group.base
