"""One block of a log as an index and segments, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from holdall.errors import CorruptArtefact
from holdall.logs.groups import choose_layouts, gather
from holdall.logs.index import OWN_TEXT, Index, lines_of, read_index, write_index
from holdall.logs.numerals import Form
from holdall.logs.opened import Opened, leaning
from holdall.logs.segments import Segment, Tables, encode_segment
from holdall.logs.structure import Parsed, parse, without_parameters
from holdall.logs.traces import Trace
from holdall.logs.weaving import weave

_OWN_STREAM = 256  # rows from which a group has a stream of its own
_SEGMENT, _SMALL = 512, 1 << 16  # lines of a segment; blocks of fewer lines are one segment


@dataclass(frozen=True)
class Recipe:
    """How a block is packed: the method's knobs."""

    level: int = 3
    segment: int = 0
    sample: float = 0.01
    theta: float = 0.5
    target: float = 0.99
    lossy: bool = False


def encode_structured(raw: bytes, how: Recipe) -> tuple[bytes, bytes, dict[str, float]]:
    """The index, the segments one after the other, and what was found."""
    text = np.frombuffer(raw, np.uint8)
    parsed = parse(text, templates=how.level > 1, sample=how.sample, theta=how.theta, target=how.target)
    found = {"lines": parsed.events.size, "matched": parsed.matched * parsed.events.size,
             "sampled": parsed.sampled * parsed.events.size, "fields": parsed.spans.shape[0]}  # fmt: skip
    if how.lossy:
        whole = np.diff(parsed.bounds)
        parsed = without_parameters(parsed)
        found["whole_lines"] = int((np.diff(parsed.bounds) == whole).sum())
        found["kept_fields"] = parsed.spans.shape[0]
    groups, home = gather(parsed, how.level > 2)
    alone = np.array([g.rows.size >= _OWN_STREAM for g in groups], bool)
    alone[home[: parsed.headers]] = True
    heads = [sum(c < parsed.headers for c in row) for row in parsed.columns]
    tables = Tables.of(heads, parsed.columns, home, alone, np.zeros(alone.size, bool))
    values = np.zeros(parsed.column_of.size, np.int64)
    for g in groups:
        values[g.rows] = g.values
    choose_layouts(groups, Segment(tables, parsed.events), values)
    words = [_entries(text, g.spans) for g in groups]
    big = [g for g, w in enumerate(words) if len(w) >= OWN_TEXT]
    index = Index(len(raw), raw[-1:] != b"\n", xxhash.xxh3_64_digest(raw), tables, groups, np.empty(0, np.uint8),
                  np.empty(0, np.uint8), [len(g.spans) for g in groups], [], [], [], big)  # fmt: skip
    data, told = _encode_segments(index, parsed, values, _segment_lines(how, parsed.events.size))
    if how.lossy:
        index.literals = np.frombuffer(lines_of([x for row in parsed.literals for x in row]), np.uint8)
        index.words = np.frombuffer(b"".join(words), np.uint8)
        least = Segment(tables, parsed.events)
        lossy = Weaver(index)(
            least, values, len(raw) + 4 * values.size + 3 * int(found["fields"]), not index.open_end, ""
        )
        index.size, index.digest = len(lossy), xxhash.xxh3_64_digest(lossy)
    return write_index(index, parsed, words, told), data, found


def _segment_lines(how: Recipe, lines: int) -> int:
    """Small blocks are one segment: every further one costs some bytes, and saves little time."""
    if how.segment:
        return how.segment
    return _SEGMENT if lines >= _SMALL else max(1, lines)


def _encode_segments(
    index: Index, parsed: Parsed, values: np.ndarray, step: int
) -> tuple[bytes, list[list[np.ndarray]]]:
    """All segments, and for each the lists that let a search pass over it."""
    fresh, out, told = np.zeros(len(index.groups), np.int64), [], []
    for a in range(0, parsed.events.size, step):
        events = parsed.events[a : a + step]
        low, high = parsed.bounds[a], parsed.bounds[a + events.size]
        segment = Segment(index.tables, events)
        index.fresh.append(fresh.copy())
        old = fresh.copy()
        out.append(encode_segment(segment, index.groups, values[low:high], fresh))
        here = [np.unique(values[low:high][segment.rows[g]]) for g in index.big]
        older = [x[x < old[g]] for x, g in zip(here, index.big, strict=True)]
        told.append([np.diff(x, prepend=-1) for x in (np.unique(events), *older)])
        index.lines.append(events.size)
        index.sizes.append(len(out[-1]))
    return b"".join(out), told


def _entries(text: np.ndarray, spans: np.ndarray) -> bytes:
    raw = text.tobytes() if spans.size > 200_000 else text
    return b"".join(bytes(raw[a:b]) + b"\n" for a, b in spans.tolist())


def open_segment(index: Index, data: bytes, k: int, path: str) -> Opened:
    """Segment k with its columns still packed."""
    end = sum(index.sizes[: k + 1])
    raw = data[end - index.sizes[k] : end]
    return Opened(raw, index.lines[k], index.tables, index.groups, index.fresh[k].copy(), path)


def decode_segments(index: Index, data: bytes, path: str) -> Iterator[bytes]:
    """The text of all segments, one by one."""
    if sum(index.sizes) != len(data):
        raise CorruptArtefact(path, "its columns are not as long as its index says")
    woven, streams = Weaver(index), range(len(index.tables.streams))
    for k, lines in enumerate(index.lines):
        opened = open_segment(index, data, k, path)
        opened.read(streams, lines)
        last = k + 1 < len(index.lines) or not index.open_end
        yield woven(opened.segment, opened.values, index.size, last, path)


def decode_structured(index_raw: bytes, data: bytes, path: str) -> bytes:
    """The text of a structured block."""
    index = read_index(index_raw, path)
    whole = b"".join(decode_segments(index, data, path))
    if len(whole) != index.size or xxhash.xxh3_64_digest(whole) != index.digest:
        raise CorruptArtefact(path, "its columns do not give the text that was packed")
    return whole


def search_segments(
    index: Index, data: bytes, which: list[int], whole: set[int], trace: Trace | None, path: str
) -> Iterator[tuple[int, bytes, np.ndarray | None]]:
    """(segment, text, numbers of its lines): of those in `whole` all lines (None), of others those that may be hits.

    Columns that tell where the trace's word is are decoded first, and the rest only as far as lines need them.
    """
    if sum(index.sizes) != len(data):
        raise CorruptArtefact(path, "its columns are not as long as its index says")
    woven, every = Weaver(index), range(len(index.tables.streams))
    behind = leaning(index.tables, index.groups)
    for k in which:
        opened, numbers, lines = open_segment(index, data, k, path), None, index.lines[k]
        streams: set[int] = set(every)
        if trace is not None and k not in whole:
            opened.read({x for s in trace.streams(index) for x in behind[s]}, lines)
            numbers = trace.lines(opened)
            if not numbers.size:
                continue
            lines = int(numbers[-1]) + 1
            needed = np.unique(index.tables.stream_of[opened.segment.groups_in(numbers)]).tolist()
            streams = {x for s in needed for x in behind[s]}
        opened.read(streams, lines)
        last = k + 1 < len(index.lines) or not index.open_end
        yield k, woven(opened.segment, opened.values, index.size, last, path, numbers), numbers


class Weaver:
    """The tables that put lines together, made once for a block."""

    def __init__(self, index: Index):
        g = index.groups
        self.cuts = index.literal_cuts
        self.firsts = np.concatenate([[0], np.cumsum(index.tables.widths + 1)])[:-1]
        self.literals, self.words, self.word_ends = index.literals, index.words, index.word_cuts
        self.kinds = np.array([x.kind for x in g], np.int64)
        self.bases = np.concatenate([[0], np.cumsum(index.counts)]).astype(np.int64)
        forms = [x.form or Form(b"", (), ()) for x in g]
        self.masks = np.frombuffer(b"".join(f.mask for f in forms) + b"\0", np.uint8)
        self.mask_cuts = np.cumsum([0, *(len(f.mask) for f in forms)])
        self.widths = np.array([w for f in forms for w in f.widths] or [0], np.int64)
        self.radices = np.array([r for f in forms for r in f.radices] or [1], np.int64)
        self.form_cuts = np.cumsum([0, *(len(f.widths) for f in forms)])

    def __call__(self, segment: Segment, values: np.ndarray, most: int, last: bool, path: str,
                 which: np.ndarray | None = None) -> bytes:  # fmt: skip
        """Lines as text, all or those numbered `which`; last: whether the last line has its end."""
        which = np.arange(segment.events.size) if which is None else which
        out = np.empty(most + 128, np.uint8)
        n = weave(out, segment.events, segment.bounds, segment.group_of, values, self.literals, self.cuts,
                  self.firsts, self.kinds, self.bases, self.words, self.word_ends, self.masks, self.mask_cuts,
                  self.widths, self.radices, self.form_cuts, last, which)  # fmt: skip
        if n < 0:
            raise CorruptArtefact(path, "a value is none that its column can hold")
        return out[:n].tobytes()
