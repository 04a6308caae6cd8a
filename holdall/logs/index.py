"""The index of a structured block: templates, dictionaries, layouts, and what lets a search pass over segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.logs import bytestreams as bs
from holdall.logs import mixing
from holdall.logs.bytestreams import Cursor, Numbers, varints
from holdall.logs.digits import holders, read_varints, tour_edges
from holdall.logs.groups import BY_KEY, DELTA, DICT, FORM, SPARSE, Group
from holdall.logs.numerals import Form
from holdall.logs.segments import Tables
from holdall.logs.structure import Parsed

MOST_BYTES = 256 << 20  # of one block, unpacked
OWN_TEXT = 4096  # bytes from which a dictionary has a text stream of its own
PLAIN_BLOCK, STRUCTURED = (
    0,
    3,
)  # 1 was a layout that was never released; 2 is an index with its columns behind it


@dataclass
class Index:
    """All of a structured block but its columns."""

    size: int
    open_end: bool
    digest: bytes
    tables: Tables
    groups: list[Group]
    literals: np.ndarray  # u8: every literal of every event, each with a newline
    words: np.ndarray  # u8: every dictionary entry, each with a newline
    counts: list[int]  # entries by group
    lines: list[int]  # by segment
    sizes: list[int]  # bytes by segment
    fresh: list[np.ndarray]  # by segment: [groups] the next new id at its beginning
    big: list[int]  # groups with large dictionaries
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # the lists of all segments
    edges: np.ndarray = field(
        default_factory=lambda: np.empty((0, 0), np.int64)
    )  # [segments, lists + 1] in them

    @cached_property
    def literal_cuts(self) -> np.ndarray:
        """Where each literal begins, and the end of the last; its newline is not part of it."""
        return _cuts(self.literals)

    @cached_property
    def word_cuts(self) -> np.ndarray:
        """The same of the entries of all dictionaries."""
        return _cuts(self.words)

    def listed(self, which: int, wanted: np.ndarray) -> np.ndarray:
        """[segments] whether list `which` (0: events, then older entries of each large dictionary) has one of these."""
        return holders(self.numbers, self.edges[:, which], self.edges[:, which + 1], np.unique(wanted))


def _cuts(text: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.flatnonzero(text == 10) + 1]).astype(np.int64)


def lines_of(texts: list[bytes]) -> bytes:
    return b"".join(x + b"\n" for x in texts)


def write_index(index: Index, parsed: Parsed, words: list[bytes], told: list[list[np.ndarray]]) -> bytes:
    """told: by segment, the steps between the events in it, then between older entries of each large dictionary."""
    t = index.tables
    head = [
        index.size,
        int(index.open_end),
        len(parsed.columns),
        t.home.size,
        len(index.groups),
        len(index.lines),
    ]
    for k, row in enumerate(parsed.columns):
        tail = row[int(t.heads[k]) :]
        head += [int(t.heads[k]), len(tail), tail[0] if tail else 0]
    head += t.home.tolist()
    for g, alone, count in zip(index.groups, t.alone, index.counts, strict=True):
        head += [g.kind | int(alone) << 2 | g.layout << 3, g.parent << 2 | g.guess >> 3]
        head += [count] if g.kind == DICT else [_zigzag(g.base), g.top - g.base]
        if g.form is not None:
            head += [len(g.form.mask), *g.form.mask, len(g.form.widths), *g.form.widths, *g.form.radices]
    head += index.lines + index.sizes
    small = lines_of([x for row in parsed.literals for x in row])
    head.append(len(small))
    texts = [
        small + b"".join(w for w in words if len(w) < OWN_TEXT),
        *(w for w in words if len(w) >= OWN_TEXT),
    ]
    head += [len(w) for g, w in zip(index.groups, words, strict=True) if g.kind == DICT]
    spare = sum(index.sizes) // 500 if len(index.lines) > 1 else 0  # a search reads all of them
    packed = [bs.pack(x, spare=spare) for x in texts]
    head += [x for kernel, data in packed for x in (kernel, len(data))]
    if len(index.lines) > 1:
        packed.append(bs.pack(tours := _write_tours(index, told), (bs.ZSTD,)))
        head += [len(tours), packed[-1][0], len(packed[-1][1])]
    plain = varints(head)
    kernel, data = bs.pack(plain)
    start = varints([STRUCTURED, len(plain), kernel, len(data)])
    return start + index.digest + data + b"".join(d for _, d in packed)


def _write_tours(index: Index, told: list[list[np.ndarray]]) -> bytes:
    """For each segment: new entries by dictionary, events in it, older entries of the large dictionaries in it."""
    out: list[int] = []
    names = [g for g, x in enumerate(index.groups) if x.kind == DICT]
    for k in range(len(index.lines)):
        if k:
            out += (index.fresh[k] - index.fresh[k - 1])[names].tolist()
        for steps in told[k]:
            out += [steps.size, *steps.tolist()]
    return varints(out)


def _read_tours(index: Index, raw: bytes, big: list[int], path: str) -> None:
    names = np.array([g for g, x in enumerate(index.groups) if x.kind == DICT], np.int64)
    numbers, good = read_varints(np.frombuffer(bytearray(raw), np.uint8))
    edges = tour_edges(numbers, len(index.lines), names.size, 1 + len(big))
    if not good or edges.size == 0:
        raise CorruptArtefact(path, "a list is cut short")
    fresh = np.zeros((len(index.lines), len(index.groups)), np.int64)
    new = numbers[
        edges[1:, :1] - names.size + np.arange(names.size)
    ]  # the lists begin behind the new entries
    fresh[1:, names] = np.cumsum(np.minimum(new, 1 << 40), axis=0)
    if (fresh > np.array(index.counts)).any() or (fresh < 0).any():
        raise CorruptArtefact(path, "a segment has entries that its dictionary lacks")
    index.fresh.extend(fresh)
    index.numbers, index.edges = numbers, edges


def _zigzag(n: int) -> int:
    return -2 * n - 1 if n < 0 else 2 * n


def read_index(raw: bytes, path: str) -> Index:
    """The inverse of `_write_index`; distrusts everything."""
    outer = Cursor(raw, path)
    if outer.number(STRUCTURED) != STRUCTURED:
        raise CorruptArtefact(path, "a block of a layout that is not known")
    length, kernel, packed = outer.number(MOST_BYTES), outer.number(255), outer.number(len(raw))
    digest = outer.take(8)
    c = Numbers(bs.unpack(kernel, outer.take(packed), length, path), path)
    size, open_end, events, columns, groups, segments = (
        c.number(most) for most in (MOST_BYTES, 1, len(c.raw), len(c.raw), len(c.raw), len(c.raw))
    )
    heads, rows = [], []
    for _ in range(events):
        head, tail, first = c.number(columns), c.number(columns), c.number(columns)
        if first + tail > columns:
            raise CorruptArtefact(path, "an event has columns that are none")
        heads.append(head)
        rows.append([*range(head), *range(first, first + tail)])
    home = np.array([c.number(max(0, groups - 1)) for _ in range(columns)], np.int64)
    made = [_read_group(c) for _ in range(groups)]
    alone = np.array([a for _, a, _ in made], bool)
    lines = [c.number(size + 1) for _ in range(segments)]
    sizes = [c.number(MOST_BYTES) for _ in range(segments)]
    literals, words, big = _read_texts(c, outer, [g for g, _, _ in made], size)
    if sum(lines) > size + 1 or events == 0 or sum(len(r) + 1 for r in rows) != int((literals == 10).sum()):
        raise CorruptArtefact(path, "its templates contradict each other")
    counts = [n for _, _, n in made]
    if any(n != int((w == 10).sum()) for n, w in zip(counts, words, strict=True)):
        raise CorruptArtefact(path, "a dictionary contradicts its count")
    tables = Tables.of(heads, rows, home, alone, np.array([g.layout == SPARSE for g, _, _ in made], bool))
    every = np.concatenate([*words, np.empty(0, np.uint8)])
    index = Index(size, bool(open_end), digest, tables, [g for g, _, _ in made], literals, every, counts, lines, sizes,
                  [], big)  # fmt: skip
    if segments > 1:
        length, kernel, packed = c.number(64 * size), c.number(255), c.number(len(raw))
        _read_tours(index, bs.unpack(kernel, outer.take(packed), length, path), big, path)
    else:
        index.fresh.append(np.zeros(groups, np.int64))
    return index


def _read_group(c: Cursor) -> tuple[Group, bool, int]:
    flags, parent = c.number(127), c.number(MOST_BYTES)
    kind, layout = flags & 3, flags >> 3
    known = (mixing.IDS, mixing.RANKS) if kind == DICT else (mixing.PLAIN, DELTA, BY_KEY)
    if kind > FORM or (layout not in known and not (layout == SPARSE and flags & 4)):
        raise CorruptArtefact(c.path, "a group of no known kind")
    nothing = np.empty(0, np.int64)
    group = Group(kind, nothing, nothing, layout, parent=parent >> 2, guess=(parent & 3) << 3)
    if kind == DICT:
        return group, bool(flags & 4), c.number(MOST_BYTES)
    base = c.number(1 << 62)
    group.base = -((base + 1) >> 1) if base & 1 else base >> 1
    group.top = group.base + c.number(1 << 63)
    if kind == FORM:
        mask = bytes(c.number(255) for _ in range(c.number(64)))
        n = c.number(40)
        group.form = Form(
            mask, tuple(c.number(18) for _ in range(n)), tuple(c.number(10**18) for _ in range(n))
        )
        if not group.form.sound():
            raise CorruptArtefact(c.path, "a number has no sane form")
    return group, bool(flags & 4), 0


def _read_texts(
    c: Cursor, outer: Cursor, groups: list[Group], size: int
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """The literals, the entries of each group, and which groups have large dictionaries."""
    small = c.number(MOST_BYTES)
    lengths = [c.number(2 * size + 2) if g.kind == DICT else 0 for g in groups]
    wanted = [small + sum(n for n in lengths if n < OWN_TEXT), *(n for n in lengths if n >= OWN_TEXT)]
    if sum(wanted) > 8 * size + (1 << 20):
        raise CorruptArtefact(c.path, "its dictionaries are larger than its text")
    texts = []
    kinds = [(c.number(255), c.number(len(outer.raw))) for _ in wanted]
    for (kernel, packed), n in zip(kinds, wanted, strict=True):
        texts.append(np.frombuffer(bs.unpack(kernel, outer.take(packed), n, c.path), np.uint8))
    words, at, own = [], small, 1
    for n in lengths:
        if n < OWN_TEXT:
            words.append(texts[0][at : at + n])
            at += n
        else:
            words.append(texts[own])
            own += 1
        if n and words[-1][-1] != 10:
            raise CorruptArtefact(c.path, "a dictionary is cut short")
    return texts[0][:small], words, [g for g, n in enumerate(lengths) if n >= OWN_TEXT]
