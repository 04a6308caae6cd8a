"""One block of a log as bytes and back: structured where that is smaller, else the best plain kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from holdall.errors import CorruptArtefact
from holdall.logs import bytestreams as bs
from holdall.logs import mixing
from holdall.logs.bytestreams import Cursor, varints
from holdall.logs.groups import BY_KEY, DELTA, DICT, FORM, SPARSE, Group, choose_layouts, gather
from holdall.logs.numerals import Form
from holdall.logs.segments import Segment, Tables, decode_segment, encode_segment
from holdall.logs.structure import Parsed, parse
from holdall.logs.weaving import weave

MOST_BYTES = 256 << 20  # of one block, unpacked
_OWN_STREAM = 256  # rows from which a group has a stream of its own
_OWN_TEXT = 8192  # bytes from which a dictionary has a text stream of its own
PLAIN_BLOCK, STRUCTURED = 0, 1


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


def encode_block(raw: bytes, segment_lines: int, **how: float) -> tuple[bytes, list[bytes], dict[str, float]]:
    """The index, the segments, and what was found. A plain block has no segments."""
    text = np.frombuffer(raw, np.uint8)
    parsed = parse(text, **how)
    groups, home = gather(parsed, True)
    alone = np.array([g.rows.size >= _OWN_STREAM or home[0] == k for k, g in enumerate(groups)], bool)
    alone |= np.isin(np.arange(len(groups)), home[: parsed.headers])
    heads = [sum(c < parsed.headers for c in row) for row in parsed.columns]
    tables = Tables.of(heads, parsed.columns, home, alone)
    values = np.zeros(parsed.column_of.size, np.int64)
    for g in groups:
        values[g.rows] = g.values
    choose_layouts(groups, Segment(tables, parsed.events), values)
    fresh, segments, lines = np.zeros(len(groups), np.int64), [], []
    for a in range(0, parsed.events.size, segment_lines):
        events = parsed.events[a : a + segment_lines]
        low, high = parsed.bounds[a], parsed.bounds[a + events.size]
        segments.append(encode_segment(Segment(tables, events), groups, values[low:high], fresh))
        lines.append(events.size)
    words = [_entries(text, g.spans) for g in groups]
    index = Index(len(raw), raw[-1:] != b"\n", xxhash.xxh3_64_digest(raw), tables, groups,
                  np.empty(0, np.uint8), np.empty(0, np.uint8), [len(g.spans) for g in groups], lines,
                  [len(s) for s in segments])  # fmt: skip
    found = {"matched": parsed.matched, "sampled": parsed.sampled, "events": float(len(parsed.literals))}
    return _write_index(index, parsed, words), segments, found


def _entries(text: np.ndarray, spans: np.ndarray) -> bytes:
    raw = text.tobytes() if spans.size > 200_000 else text
    return b"".join(bytes(raw[a:b]) + b"\n" for a, b in spans.tolist())


def _write_index(index: Index, parsed: Parsed, words: list[bytes]) -> bytes:
    t = index.tables
    head = [index.size, int(index.open_end), len(parsed.columns), t.home.size, len(index.groups), len(index.lines)]
    for k, row in enumerate(parsed.columns):
        tail = row[int(t.heads[k]) :]
        head += [int(t.heads[k]), len(tail), tail[0] if tail else 0]
    head += t.home.tolist()
    for g, alone, count in zip(index.groups, t.alone, index.counts, strict=True):
        head += [g.kind | int(alone) << 2 | g.layout << 3, g.parent << 2 | g.guess >> 3]
        head += [count] if g.kind == DICT else [_zigzag(g.base)]
        if g.form is not None:
            head += [len(g.form.mask), *g.form.mask, len(g.form.widths), *g.form.widths, *g.form.radices]
    head += index.lines + index.sizes
    small = b"".join(b"".join(x + b"\n" for x in row) for row in parsed.literals)
    head.append(len(small))
    texts = [small + b"".join(w for w in words if len(w) < _OWN_TEXT), *(w for w in words if len(w) >= _OWN_TEXT)]
    head += [len(w) for g, w in zip(index.groups, words, strict=True) if g.kind == DICT]
    packed = [bs.pack(x) for x in texts]
    head += [x for kernel, data in packed for x in (kernel, len(data))]
    plain = varints(head)
    kernel, data = bs.pack(plain)
    start = varints([STRUCTURED, len(plain), kernel, len(data)])
    return start + index.digest + data + b"".join(d for _, d in packed)


def _zigzag(n: int) -> int:
    return -2 * n - 1 if n < 0 else 2 * n


def read_index(raw: bytes, path: str) -> Index:
    """The inverse of `_write_index`; distrusts everything."""
    outer = Cursor(raw, path)
    if outer.number(STRUCTURED) != STRUCTURED:
        raise CorruptArtefact(path, "a plain block where a structured one is wanted")
    length, kernel, packed = outer.number(MOST_BYTES), outer.number(255), outer.number(len(raw))
    digest = outer.take(8)
    c = Cursor(bs.unpack(kernel, outer.take(packed), length, path), path)
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
    literals, words = _read_texts(c, outer, [g for g, _, _ in made], size)
    if sum(lines) > size + 1 or events == 0 or sum(len(r) + 1 for r in rows) != int((literals == 10).sum()):
        raise CorruptArtefact(path, "its templates contradict each other")
    counts = [n for _, _, n in made]
    if any(n != int((w == 10).sum()) for n, w in zip(counts, words, strict=True)):
        raise CorruptArtefact(path, "a dictionary contradicts its count")
    tables = Tables.of(heads, rows, home, alone)
    every = np.concatenate([*words, np.empty(0, np.uint8)])
    return Index(size, bool(open_end), digest, tables, [g for g, _, _ in made], literals, every, counts, lines, sizes)


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
    if kind == FORM:
        mask = bytes(c.number(255) for _ in range(c.number(64)))
        n = c.number(40)
        group.form = Form(mask, tuple(c.number(18) for _ in range(n)), tuple(c.number(10**18) for _ in range(n)))
        if not group.form.sound():
            raise CorruptArtefact(c.path, "a number has no sane form")
    return group, bool(flags & 4), 0


def _read_texts(c: Cursor, outer: Cursor, groups: list[Group], size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The literals, and the entries of each group."""
    small = c.number(MOST_BYTES)
    lengths = [c.number(2 * size + 2) if g.kind == DICT else 0 for g in groups]
    wanted = [small + sum(n for n in lengths if n < _OWN_TEXT), *(n for n in lengths if n >= _OWN_TEXT)]
    if sum(wanted) > 8 * size + (1 << 20):
        raise CorruptArtefact(c.path, "its dictionaries are larger than its text")
    texts = []
    kinds = [(c.number(255), c.number(len(outer.raw))) for _ in wanted]
    for (kernel, packed), n in zip(kinds, wanted, strict=True):
        texts.append(np.frombuffer(bs.unpack(kernel, outer.take(packed), n, c.path), np.uint8))
    words, at, own = [], small, 1
    for n in lengths:
        if n < _OWN_TEXT:
            words.append(texts[0][at : at + n])
            at += n
        else:
            words.append(texts[own])
            own += 1
        if n and words[-1][-1] != 10:
            raise CorruptArtefact(c.path, "a dictionary is cut short")
    return texts[0][:small], words


def decode_block(index: Index, segments: list[bytes], path: str) -> bytes:
    """The text of a structured block."""
    pieces, fresh = [], np.zeros(len(index.groups), np.int64)
    woven = Weaver(index)
    for k, raw in enumerate(segments):
        segment, values = decode_segment(raw, index.lines[k], index.tables, index.groups, fresh, path)
        last = k + 1 < len(segments) or not index.open_end
        pieces.append(woven(segment, values, index.size, last, path))
    whole = b"".join(pieces)
    if len(whole) != index.size or xxhash.xxh3_64_digest(whole) != index.digest:
        raise CorruptArtefact(path, "its columns do not give the text that was packed")
    return whole


class Weaver:
    """The tables that put lines together, made once for a block."""

    def __init__(self, index: Index):
        g = index.groups
        self.cuts = _ends(index.literals)
        self.firsts = np.concatenate([[0], np.cumsum(index.tables.widths + 1)])[:-1]
        self.literals, self.words, self.word_ends = index.literals, index.words, _ends(index.words)
        self.kinds = np.array([x.kind for x in g], np.int64)
        self.bases = np.concatenate([[0], np.cumsum(index.counts)]).astype(np.int64)
        forms = [x.form or Form(b"", (), ()) for x in g]
        self.masks = np.frombuffer(b"".join(f.mask for f in forms) + b"\0", np.uint8)
        self.mask_cuts = np.cumsum([0, *(len(f.mask) for f in forms)])
        self.widths = np.array([w for f in forms for w in f.widths] or [0], np.int64)
        self.radices = np.array([r for f in forms for r in f.radices] or [1], np.int64)
        self.form_cuts = np.cumsum([0, *(len(f.widths) for f in forms)])

    def __call__(self, segment: Segment, values: np.ndarray, most: int, last: bool, path: str) -> bytes:
        out = np.empty(most + 128, np.uint8)
        n = weave(out, segment.events, segment.bounds, segment.group_of, values, self.literals, self.cuts,
                  self.firsts, self.kinds, self.bases, self.words, self.word_ends, self.masks, self.mask_cuts,
                  self.widths, self.radices, self.form_cuts, last)  # fmt: skip
        if n < 0:
            raise CorruptArtefact(path, "a value is none that its column can hold")
        return out[:n].tobytes()


def _ends(text: np.ndarray) -> np.ndarray:
    """Where each newline-ended entry begins, and the end of the last; the newline itself is not part of it."""
    return np.concatenate([[0], np.flatnonzero(text == 10) + 1]).astype(np.int64)
