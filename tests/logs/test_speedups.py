"""What is left out for speed: it must not show in the bytes that come back, nor let xz win."""

import argparse
import itertools
import lzma
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.logs import Logzip, alignment, bytestreams, digits, matching, mixing, plain, ppmd, sequences
from holdall.logs import tokens as tk
from tests.logs.test_logzip import server_log

_PATTERN = st.lists(st.sampled_from([alignment.STAR, 32, 47, 300, 301, 302]), max_size=12)


def naive_weight(a: list[int], b: list[int]) -> int:
    """The most that the common tokens of two patterns can weigh, without any short cut."""
    best = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            both = best[i, j] + (4 if x >= 257 else 1) if x == y != alignment.STAR else 0
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], both)
    return int(best[-1, -1])


@settings(max_examples=150, deadline=None)
@given(_PATTERN, _PATTERN, _PATTERN, _PATTERN)
def test_equal_ends_lose_nothing(lead, a, b, tail):
    x, y = lead + a + tail, lead + b + tail
    got = alignment.common_pattern(np.array(x, np.int32), np.array(y, np.int32))[0]
    kept = [t for t in got.tolist() if t != alignment.STAR]
    assert sum(4 if t >= 257 else 1 for t in kept) == naive_weight(x, y)
    for whole in (x, y):
        spans = np.empty((got.size + 1, 2), np.int64)
        assert matching.match(np.array(whole, np.int32), 0, len(whole), got, spans)


@settings(max_examples=150, deadline=None)
@given(_PATTERN, _PATTERN, st.sampled_from([0.0, 0.3, 0.5, 0.95]))
def test_what_is_foretold_of_an_alignment_is_true(a, b, theta):
    template, line = np.array(a, np.int32), np.array(b, np.int32)
    counts, spans = np.zeros(400, np.int32), np.empty((30, 2), np.int64)
    verdict = alignment.foretell(template, line, theta, counts, spans)
    _, alike, total = alignment.common_pattern(template, line)
    assert not counts.any()
    assert verdict != alignment.APART or alike <= theta * total
    if verdict == alignment.INSIDE:
        assert alike > theta * total and matching.match(line, 0, line.size, template, spans)


def test_a_line_like_its_template_is_foretold_inside_and_a_stranger_apart():
    template, counts = np.array([300, 32, alignment.STAR, 32, 301, 302], np.int32), np.zeros(400, np.int32)
    spans = np.empty((9, 2), np.int64)
    like = np.array([300, 32, 310, 32, 301, 302], np.int32)
    assert alignment.foretell(template, like, 0.5, counts, spans) == alignment.INSIDE
    stranger = np.array([330, 32, 331, 32, 301, 333], np.int32)
    assert alignment.foretell(template, stranger, 0.5, counts, spans) == alignment.APART


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(1, 3), st.integers(-2, 2))
def test_changes_of_a_column(raw, kinds, base):
    values, keys = np.array(raw, np.int64), np.arange(len(raw)) % kinds
    last, at, steps = dict.fromkeys(range(kinds), base), [-1], []
    for i, v in enumerate(raw):
        if v != last[i % kinds]:
            last[i % kinds] = v
            at.append(i)
            steps.append(-2 * (v - base) - 1 if v < base else 2 * (v - base))
    gaps, news = sequences.changes(values, keys, base)
    assert gaps.tolist() == (np.diff(at) - 1).tolist() and news.tolist() == steps


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=400), st.integers(0, 400), st.sampled_from([0, 8, 24])
)
def test_a_stream_can_be_read_in_part(raw, some, asks):
    values, some = np.array(raw, np.int64), min(some, len(raw))
    keys, zero = np.arange(values.size) % 7, np.zeros(values.size, np.int64)
    modes, fresh = np.array([mixing.PLAIN | asks]), np.zeros(1, np.int64)
    coded = mixing.encode(values, zero, keys, zero, modes, fresh.copy())
    got = mixing.decode(coded, zero[:some], keys[:some], zero[:some], modes, fresh, values.size)
    assert got is not None and (got == values[:some]).all()


@pytest.mark.parametrize("what", ["prose", "log", "source"])
def test_lzma_gains_no_more_on_a_sample_than_is_allowed_for(what):
    from pydoc_data import topics

    raw = {
        "prose": "\n".join(topics.topics.values()).encode(),
        "log": server_log(8000),
        "source": Path(typing.__file__).read_bytes() + Path(argparse.__file__).read_bytes(),
    }[what]
    least = len(bytestreams.press(bytestreams.LZMA, raw)) / plain._fast(raw)
    assert least > plain._SURE
    for taste in (32 << 10, 64 << 10):
        allowed = plain.gain(taste, len(raw))
        assert allowed < 1 and allowed * plain._share(bytestreams.LZMA, raw, taste) < least
    assert plain.gain(1 << 15, 1 << 25) < plain.gain(1 << 18, 1 << 25) < plain.gain(1 << 18, 1 << 22) < 1


def test_templates_are_tried_on_a_middling_block_unless_a_sample_says_they_lose():
    raw = server_log(20_000)
    assert 1 << 20 <= len(raw) < 8 << 20
    assert plain.is_lost(raw, lambda sample: len(sample))
    assert not plain.is_lost(raw, lambda sample: 10)
    assert not plain.is_lost(raw[: 1 << 19], lambda sample: len(sample))  # not worth the question
    assert not plain.is_lost(b"x" * (2 << 20), lambda sample: len(sample))  # no lines


def test_stars_are_split_where_they_hold_numbers():
    ids = np.array([300, 32, tk.NUMBER, 46, tk.NUMBER, 46, tk.NUMBER, 32, 301, 32, 302], np.int32)
    words = ids >= 256
    pattern = np.array([300, 32, alignment.STAR, 32, alignment.STAR], np.int32)
    words[[2, 4, 6]] = True
    out, spans = np.empty(40, np.int32), np.empty((9, 2), np.int64)
    n = matching.split_stars(ids, words, 0, ids.size, pattern, spans, 24, tk.NUMBER, out)
    star = alignment.STAR
    assert out[:n].tolist() == [300, 32, star, 46, star, 46, star, 32, star]
    assert matching.split_stars(ids, words, 0, 2, pattern, spans, 24, tk.NUMBER, out) == 0  # no match


def test_a_stream_that_does_not_read_back_is_not_kept(monkeypatch):
    raw = b"GET /index.html 200\n" * 400
    assert bytestreams.pack(raw, (bytestreams.PPMD + 4,))[0] == bytestreams.PPMD + 4
    monkeypatch.setattr(ppmd, "decode", lambda order, packed, size: b"?" * size)
    assert bytestreams.pack(raw, (bytestreams.PPMD + 4,)) == (bytestreams.STORED, raw)
    kernel, data = bytestreams.pack(raw, (bytestreams.PPMD + 4, bytestreams.ZSTD))
    assert kernel == bytestreams.ZSTD and bytestreams.unpack(kernel, data, len(raw), "test") == raw


@pytest.mark.slow
def test_a_log_that_comes_twice_is_left_to_lzma():
    """What lies far back is seen by xz alone: the sample must not hide it."""
    once = server_log(25_000)
    raw = once + once
    assert Logzip().encode(raw).nbytes <= 1.01 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) + 700
    assert plain.contest(raw, 10) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=2),
                          st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=2, max_size=2)), min_size=1,
                max_size=9))  # fmt: skip
def test_lists_of_segments_are_cut_where_they_were_joined(segments):
    flat: list[int] = []
    for k, (new, lists) in enumerate(segments):
        flat += new if k else []
        for x in lists:
            flat += [len(x), *x]
    edges = digits.tour_edges(np.array(flat, np.int64), len(segments), 2, 2)
    for row, (_, lists) in zip(edges.tolist(), segments, strict=True):
        assert [flat[a + 1 : b] for a, b in itertools.pairwise(row)] == lists
    assert digits.tour_edges(np.array(flat[:-1], np.int64), len(segments), 2, 2).size == 0
