"""The fast loops beside slow truths, and the layouts beside each other."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.logs import Logzip, alignment, bytestreams, digits, matching, mixing, sequences, tables
from holdall.logs import tokens as tk

_IDS = st.lists(st.integers(0, 40), min_size=1, max_size=300)


def by_first_use(raw: list[int]) -> np.ndarray:
    names: dict[int, int] = {}
    return np.array([names.setdefault(x, len(names)) for x in raw], np.int64)


@settings(max_examples=60, deadline=None)
@given(
    _IDS, st.sampled_from([mixing.IDS, mixing.RANKS]), st.sampled_from([0, 8, 16, 24]), st.integers(0, 2**32)
)
def test_ids_come_back(raw, mode, asks, seed):
    ids, rng = by_first_use(raw), np.random.default_rng(seed)
    keys = [rng.integers(0, 4, ids.size) for _ in range(2)]
    zero, modes = np.zeros(ids.size, np.int64), np.array([mode | asks])
    fresh = np.zeros(1, np.int64)
    coded = mixing.encode(ids, zero, *keys, modes, fresh)
    assert fresh[0] == ids.max() + 1
    got = mixing.decode(coded, zero, *keys, modes, np.zeros(1, np.int64))
    assert got is not None and (got == ids).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**61), max_size=63), st.sampled_from([mixing.PLAIN, mixing.EVENTS]))
def test_numbers_come_back(raw, mode):
    values = np.array(raw, np.int64)
    zero = np.zeros(values.size, np.int64)
    coded = mixing.encode(values, zero, zero, zero, np.array([mode]), np.zeros(1, np.int64))
    got = mixing.decode(coded, zero, zero, zero, np.array([mode]), np.zeros(1, np.int64))
    assert got is not None and (got == values).all()


def test_the_kernel_is_near_the_entropy():
    rng = np.random.default_rng(1)
    values = rng.choice(4, 20_000, p=[0.7, 0.2, 0.05, 0.05])
    zero = np.zeros(values.size, np.int64)
    coded = mixing.encode(values, zero, zero, zero, np.array([mixing.PLAIN]), np.zeros(1, np.int64))
    least = -sum(p * np.log2(p) for p in (0.7, 0.2, 0.05, 0.05)) * values.size / 8
    assert least * 0.99 < len(coded) < least * 1.06


def test_a_key_that_foretells_is_used():
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 300, 20_000)
    ids = by_first_use((keys * 7919 % 1009).tolist())
    zero = np.zeros(ids.size, np.int64)
    blind = mixing.encode(ids, zero, zero, zero, np.array([mixing.IDS]), np.zeros(1, np.int64))
    told = mixing.encode(ids, zero, zero, keys, np.array([mixing.IDS | mixing.BY_B]), np.zeros(1, np.int64))
    assert len(told) * 10 < len(blind)


def test_tables_are_what_they_say():
    x = np.arange(-2800, 2801) / 256
    assert np.abs(tables.SQUASH - (65536 / (1 + np.exp(-x))).clip(1, 65535)).max() <= 1.01
    assert (np.diff(tables.STRETCH) >= 0).all() and tables.STRETCH[2048] in (0, 1, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_decimal_text(raw):
    values = np.array(raw, np.int64)
    assert digits.write_lines(values).tobytes() == digits.naive_write_lines(values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**62 - 1), max_size=40))
def test_varints(numbers):
    raw = bytestreams.varints(numbers)
    got, good = digits.read_varints(np.frombuffer(bytearray(raw), np.uint8))
    assert good and got.tolist() == numbers == digits.naive_read_varints(raw)


@pytest.mark.parametrize("kernel", [0, 1, 2, 3, 18, 21, 32])
@pytest.mark.parametrize("size", [1, 3, 63, 5000])
def test_kernels_of_text(kernel, size):
    raw = (b"worker-7 took 12 ms\n" * (size // 20 + 1))[:size]
    assert bytestreams.unpack(kernel, bytestreams.press(kernel, raw), size, "test") == raw


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**60), 2**60), max_size=63), st.booleans())
def test_steps_are_undone(raw, by_key):
    values = np.array(raw, np.int64)
    keys = np.arange(values.size) % 3
    before = sequences.last_of_key(values, keys if by_key else keys * 0, 5)
    step = values - before
    zigzag = np.where(step < 0, -2 * step - 1, 2 * step)
    assert (sequences.undo_steps(zigzag, keys, 5, by_key) == values).all()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_tokens_join_to_the_line(raw):
    text = np.frombuffer(bytearray(raw), np.uint8)
    lines = tk.split_lines(text)
    starts, stops, ids, bounds = tk.tokenize(text, lines, True)
    whole = [
        b"".join(raw[starts[t] : stops[t]] for t in range(bounds[i], bounds[i + 1]))
        for i in range(len(lines) - 1)
    ]
    assert whole == (raw.removesuffix(b"\n").split(b"\n") if raw else [])
    same: dict[int, bytes] = {}
    for t in range(ids.size):  # equal ids are equal words, but for numbers
        if ids[t] != tk.NUMBER:
            assert same.setdefault(int(ids[t]), raw[starts[t] : stops[t]]) == raw[starts[t] : stops[t]]


@pytest.mark.parametrize(("text", "wanted"), [
    (b"10.251.43.21:50010", [b"10.251.43.21", b":", b"50010"]),
    (b"2005-06-03 20:35:18,250", [b"2005-06-03", b" ", b"20:35:18,250"]),
    (b"blk_-160", [b"blk", b"_", b"-", b"160"]), (b"a..b", [b"a", b"..", b"b"]),
])  # fmt: skip
def test_what_a_token_is(text, wanted):
    raw = np.frombuffer(bytearray(text), np.uint8)
    starts, stops, _, _ = tk.tokenize(raw, tk.split_lines(raw), True)
    assert [text[a:b] for a, b in zip(starts, stops, strict=True)] == wanted


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([1, 2, -1]), max_size=9), st.lists(st.integers(1, 2), max_size=12))
def test_matching_is_complete(pattern, ids):
    pattern = [p for k, p in enumerate(pattern) if p != -1 or k == 0 or pattern[k - 1] != -1]
    truth = re.fullmatch("".join("[12]*" if p == -1 else str(p) for p in pattern), "".join(map(str, ids)))
    spans = np.zeros((10, 2), np.int64)
    got = matching.match(np.array(ids, np.int32), 0, len(ids), np.array(pattern, np.int32), spans)
    assert got == (truth is not None)
    if got:  # the spans and the constants make the line again
        out, s = [], 0
        for p in pattern:
            out += ids[spans[s, 0] : spans[s, 1]] if p == -1 else [p]
            s += p == -1
        assert out == ids


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(300, 304), min_size=1, max_size=10),
    st.lists(st.integers(300, 304), min_size=1, max_size=10),
)
def test_a_common_pattern_matches_both(a, b):
    pattern, alike, longer = alignment.common_pattern(np.array(a, np.int32), np.array(b, np.int32))
    spans = np.zeros((30, 2), np.int64)
    assert alike == (pattern >= 0).sum() and longer == max(len(a), len(b))
    for ids in (a, b):
        assert matching.match(np.array(ids, np.int32), 0, len(ids), pattern, spans)


def columns() -> dict[str, list[str]]:
    rng = random.Random(5)
    names = [f"{rng.getrandbits(64):016x}" for _ in range(40)]
    return {
        "rising": [str(5000 + i * 3 + rng.randrange(3)) for i in range(3000)],
        "unique numbers": [str(rng.getrandbits(40)) for _ in range(3000)],
        "few numbers": [str(rng.choice([80, 443, 8080, 50010])) for _ in range(3000)],
        "names that repeat": [rng.choice(names) for _ in range(3000)],
        "unique names": [f"{rng.getrandbits(64):016x}" for _ in range(3000)],
        "addresses": [f"10.0.{rng.randrange(3)}.{rng.randrange(250)}" for _ in range(3000)],
        "clock": [f"{i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}" for i in range(3000)],
        "words": [rng.choice(["open", "closed", "half open"]) for _ in range(3000)],
    }


@pytest.mark.parametrize("kind", columns())
def test_the_chosen_layout_is_never_much_worse_than_another(kind):
    raw = "".join(f"the value is {v} now\n" for v in columns()[kind]).encode()
    size = Logzip().encode(raw).nbytes
    others = [Logzip(level=1).encode(raw).nbytes, Logzip(level=2).encode(raw).nbytes]
    assert size <= 1.02 * min(others)
