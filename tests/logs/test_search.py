"""Search while packed: the same lines as a search of the text, and blocks that are not touched."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.errors import BadInput
from holdall.logs import Logzip, Xz
from tests.logs.test_logzip import server_log

RAW = server_log(2500)
LINES = RAW.removesuffix(b"\n").split(b"\n")
PACKED = Logzip(block=100_000, segment=200).encode(RAW)


def expected(pattern: bytes) -> list[tuple[int, bytes]]:
    return [(i, line) for i, line in enumerate(LINES, 1) if pattern in line]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(RAW) - 1), st.integers(1, 40))
def test_any_piece_of_the_text_is_found(start, size):
    pattern = RAW[start : start + size].split(b"\n")[0]
    assert list(Logzip().grep(PACKED, pattern)) == expected(pattern)


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="0123456789abcdefkl_.:- ", min_size=1, max_size=6))
def test_short_terms(term):
    assert list(Logzip().grep(PACKED, term)) == expected(term.encode())


@pytest.mark.parametrize(
    "pattern", [r"blk_-?\d+5 size", r"^0811.* WARN", r"PacketResponder [02] ", r"terminating$", "x|y"]
)
def test_regular_expressions(pattern):
    wanted = [(i, x) for i, x in enumerate(LINES, 1) if re.search(pattern.encode(), x)]
    assert list(Logzip().grep(PACKED, pattern, regex=True)) == wanted


def test_case_can_be_ignored():
    wanted = [(i, x) for i, x in enumerate(LINES, 1) if b"slow FLUSH".lower() in x.lower()]
    assert wanted and list(Logzip().grep(PACKED, "slow FLUSH", ignore_case=True)) == wanted


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"a\nb", b"a 12\n" * 300 + b"end", b"\x00bin\nary\n" * 9])
@pytest.mark.parametrize("block", [32 << 20, 50])
def test_odd_texts(raw, block):
    packed = Logzip(block=block).encode(raw)
    for term in (b"a", b"12", b"", b"end", b"bin", b"b\na"):
        lines = raw.removesuffix(b"\n").split(b"\n") if raw else []
        wanted = [(i, x) for i, x in enumerate(lines, 1) if term in x]
        assert list(Logzip().grep(packed, term)) == wanted, term


def test_every_codec_can_search():
    packed = Xz().encode(RAW)
    assert list(Xz().grep(packed, "Slow flush")) == expected(b"Slow flush")


def test_only_the_segments_that_can_hold_the_term_are_unpacked(monkeypatch):
    from holdall.logs import blocks

    raw = server_log(20_000)
    packed = Logzip(segment=600).encode(raw)
    seen = []
    real = blocks.open_segment
    monkeypatch.setattr(blocks, "open_segment", lambda *a: seen.append(1) or real(*a))
    assert list(Logzip().grep(packed, "blk_123456789123456789123")) == []
    assert not seen
    block = re.search(rb"blk_(-?\d{15,})", raw[len(raw) // 2 :])[1]
    got = list(Logzip().grep(packed, block))
    assert got == [(i, x) for i, x in enumerate(raw.splitlines(), 1) if block in x]
    assert 1 <= len(seen) <= 5  # of 34


def test_columns_are_decoded_only_as_far_as_the_hits_need_them(monkeypatch):
    from holdall.logs import mixing

    raw = server_log(20_000)
    lines = raw.splitlines()
    packed, rows = Logzip(segment=2000).encode(raw), []
    real = mixing.decode
    monkeypatch.setattr(mixing, "decode", lambda *a: rows.append(a[1].size) or real(*a))
    assert Logzip().decode(packed) == raw
    every, rows[:] = sum(rows), []
    block = re.search(rb"blk_(-?\d{15,})", lines[10_100])[1]  # early in its segment
    hits = [(i, x) for i, x in enumerate(lines, 1) if block in x]
    assert list(Logzip().grep(packed, block)) == hits
    near = len({(i - 1) // 2000 for i, _ in hits})
    assert sum(rows) < 0.6 * every * near / 10


@pytest.mark.parametrize("term", ["10.251", "251.1", "10.251.2", ".251.", ":50010", "50010 is added", "src: /10.",
                                  "ms on", "081109 09", "INFO", "blk_", "", "Slow flush took"])  # fmt: skip
def test_terms_that_begin_or_end_inside_a_value(term):
    assert list(Logzip().grep(PACKED, term)) == expected(term.encode())
    assert list(Logzip().grep(PACKED, term.swapcase(), ignore_case=True)) == expected(term.encode())


@pytest.mark.parametrize("term", ["tail", "front 7", "x", "middle", "one tail"])
def test_a_line_that_is_cut_between_blocks(term, monkeypatch):
    from holdall.logs import plain

    monkeypatch.setattr(plain, "contest", lambda raw, structured: None)
    front = b"".join(b"the front %d of it\n" % i for i in range(40))
    raw = front + b"x 1 " * 400 + b"one tail\n" + b"".join(b"a middle %d line\n" % i for i in range(40))
    packed = Logzip(block=500, segment=5).encode(raw)
    wanted = [(i, x) for i, x in enumerate(raw.splitlines(), 1) if term.encode() in x]
    assert wanted and list(Logzip().grep(packed, term)) == wanted


def test_columns_of_a_block_without_the_term_are_not_read(tmp_path):
    import random

    rng = random.Random(3)
    raw = b"".join(
        b"%d job %d of unit %016x\n" % (i, rng.randrange(9), rng.getrandbits(64)) for i in range(12_000)
    )
    with Logzip().encode(raw, to=str(tmp_path / "a.hold")) as packed:
        assert "0c" in packed.arrays
        whole = packed.nbytes - packed.arrays.section("0c").stop + packed.arrays.section("0c").start
        before = packed.traffic
        assert list(Logzip().grep(packed, "reactor")) == []
        assert packed.traffic - before <= whole


def test_a_bad_pattern_is_one_line():
    with pytest.raises(BadInput):
        list(Logzip().grep(PACKED, "(", regex=True))
