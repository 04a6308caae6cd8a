"""Packed lines again: streams are decoded when they are asked for, and no further than they are."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import mixing, sequences
from holdall.logs.bytestreams import Cursor
from holdall.logs.groups import BY_KEY, DELTA, DICT, LEFT, NO_PARENT, SPARSE, Group
from holdall.logs.segments import Segment, Tables, modes_of, sparse_columns


class Opened:
    """A packed segment whose events are known; `values` [parameters] fills up as streams are read."""

    def __init__(self, raw: bytes, n: int, tables: Tables, groups: list[Group], fresh: np.ndarray, path: str):
        cursor = Cursor(raw, path)
        sizes = [cursor.number(len(raw)) for _ in range(1 + len(tables.streams))]
        zero = np.zeros(n, np.int64)
        events = mixing.decode(
            cursor.take(sizes[0]), zero, zero, zero, np.array([mixing.EVENTS]), np.zeros(1, np.int64)
        )
        if events is None or (n and int(events.max()) >= tables.widths.size):
            raise CorruptArtefact(path, "its events contradict its templates")
        self.segment, self.groups, self.fresh, self.path = Segment(tables, events), groups, fresh, path
        self.values = np.zeros(self.segment.column_of.size, np.int64)
        self._packed = dict(enumerate(cursor.take(size) for size in sizes[1:]))  # what is not read yet

    def read(self, streams: Collection[int], lines: int) -> None:
        """Decode these streams, of which each has those that it leans on among them, for the first lines.

        Streams of several groups are whole or nothing: theirs come one after the other.
        """
        wanted = [s for s in sorted(streams) if s in self._packed]
        rows, plan = self.segment.rows, self.segment.tables.streams
        shared = any(
            len(plan[s]) > 1 and not self._is_sparse(s) and any(rows[g].size for g in plan[s]) for s in wanted
        )
        edge = int(self.segment.bounds[-1 if shared else lines])
        for s in wanted:
            raw = self._packed.pop(s)
            if self._is_sparse(s):
                self._read_sparse(raw, plan[s])
            else:
                self._read(raw, plan[s], edge)

    def _is_sparse(self, s: int) -> bool:
        return self.groups[self.segment.tables.streams[s][0]].layout == SPARSE

    def _read(self, raw: bytes, members: list[int], edge: int) -> None:
        """The values of one stream before parameter number `edge`."""
        segment, groups = self.segment, self.groups
        total = sum(segment.rows[g].size for g in members)
        rows = [segment.rows[g][: np.searchsorted(segment.rows[g], edge)] for g in members]
        columns = np.repeat(np.arange(len(members)), [r.size for r in rows])
        keys = [segment.keys[r] for r in rows]
        parents = [segment.parent_keys(g, groups[g].parent, self.values, r.size)
                   for g, r in zip(members, rows, strict=True)]  # fmt: skip
        new = self.fresh[members]
        got = mixing.decode(
            raw, columns, np.concatenate(keys), np.concatenate(parents), modes_of(groups, members), new, total
        )
        if got is None:
            raise CorruptArtefact(self.path, "a column contradicts itself")
        self.fresh[members] = new
        edges = np.cumsum([0, *(r.size for r in rows)])
        for k, g in enumerate(members):
            self.values[rows[k]] = _numbers(groups[g], got[edges[k] : edges[k + 1]], keys[k])

    def _read_sparse(self, raw: bytes, members: list[int]) -> None:
        """Fill the values of the sparse groups."""
        cursor, every = Cursor(raw, self.path), self.segment.rows
        counts = [cursor.number(every[g].size) if raw else 0 for g in members]
        column, zero = sparse_columns(counts)
        modes, fresh = np.zeros((2, 2 * len(members)), np.int64)
        got = mixing.decode(raw[cursor.at :], column, zero, zero, modes, fresh) if column.size else zero
        if got is None:
            raise CorruptArtefact(self.path, "a column contradicts itself")
        edge = 0
        for g, n in zip(members, counts, strict=True):
            rows, base = every[g], self.groups[g].base
            gaps, new = got[edge : edge + n], got[edge + n : edge + 2 * n]
            edge += 2 * n
            if not n:
                self.values[rows] = base
                continue
            at = np.cumsum(np.minimum(gaps, rows.size) + 1) - 1
            if int(at[-1]) >= rows.size:
                raise CorruptArtefact(self.path, "a column contradicts itself")
            changed, mine = np.zeros(rows.size, np.bool_), np.full(rows.size, base)
            changed[at] = True
            mine[at] = base + np.where(new & 1, -((new + 1) >> 1), new >> 1)
            self.values[rows] = sequences.carry(mine, changed, self.segment.keys[rows], base)


def _numbers(group: Group, got: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if group.kind == DICT:
        return got
    if group.layout in (DELTA, BY_KEY):
        return sequences.undo_steps(got, keys, group.base, group.layout == BY_KEY)
    return got + group.base


def leaning(tables: Tables, groups: list[Group]) -> list[set[int]]:
    """[streams] the streams without which one cannot be decoded, itself among them."""
    if not tables.streams:
        return []
    flat = tables.stream_of[tables.home[tables.columns]]
    inner = np.ones(flat.size, bool)  # not the first parameter of an event
    inner[tables.offsets[tables.widths > 0]] = False
    inner[0] = False
    beside = np.flatnonzero(inner)
    left: dict[int, set[int]] = {}
    for g, s in set(
        zip(tables.home[tables.columns[beside]].tolist(), flat[beside - 1].tolist(), strict=True)
    ):
        left.setdefault(g, set()).add(s)
    out: list[set[int]] = []
    for s, members in enumerate(tables.streams):
        found = {s}
        for g in members:
            parent = groups[g].parent
            if groups[g].layout == SPARSE or parent == NO_PARENT:
                continue
            behind = left.get(g, set())
            if parent != LEFT:
                behind = set(tables.stream_of[tables.home[parent - 2 : parent - 1]].tolist())
            found |= {x for b in behind if b < s for x in out[b]}
        out.append(found)
    return out
