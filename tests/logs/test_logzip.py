"""Logzip: exact on anything, smaller than what people use, from few sampled lines."""

import bz2
import gzip
import lzma
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall import get
from holdall.errors import BudgetError, CorruptArtefact
from holdall.logs import Logzip, quality
from holdall.packed import Packed


def server_log(lines: int, seed: int = 0) -> bytes:
    """A service's log, generated: four statements, blocks that come back, a clock that runs."""
    rng, clock, out = random.Random(seed), 34_215_000, []
    blocks = [rng.getrandbits(63) - (1 << 62) for _ in range(lines // 15 + 5)]
    nodes = [f"10.251.{rng.randrange(256)}.{rng.randrange(256)}" for _ in range(60)]
    for i in range(lines):
        clock += rng.randrange(400)
        s = clock // 1000
        block = blocks[max(0, min(len(blocks) - 1, i // 15 + rng.randrange(-3, 4)))]
        head = f"081109 {s // 3600 % 24:02d}{s // 60 % 60:02d}{s % 60:02d} {rng.randrange(30) + 100}"
        a, b = rng.choice(nodes), rng.choice(nodes)
        kind = rng.random()
        if kind < 0.4:
            out.append(
                f"{head} INFO dfs.DataXceiver: Receiving block blk_{block} "
                f"src: /{a}:{rng.randrange(30000, 60000)} dest: /{b}:50010"
            )
        elif kind < 0.7:
            out.append(
                f"{head} INFO dfs.PacketResponder: PacketResponder {i % 3} for block blk_{block} terminating"
            )
        elif kind < 0.95:
            out.append(
                f"{head} INFO dfs.FSNamesystem: blockMap updated: {a}:50010 is added to blk_{block} size 67108864"
            )
        else:
            out.append(
                f"{head} WARN dfs.DataNode: Slow flush took {rng.randrange(300, 4000)} ms on /mnt/d{rng.randrange(4)}"
            )
    return "\n".join(out).encode() + b"\n"


def back(raw: bytes, **knobs) -> bytes:
    return Logzip().decode(Packed.from_bytes(Logzip(**knobs).encode(raw).to_bytes()))


_TOKENS = st.sampled_from([b"error", b"at", b"10.0.0.1", b"0017", b"-5", b"-0", b"<*>", b"20:35:18", b"9" * 19, b"\r",
                           b"\xff", b" ", b"\t", b"", b"\0", b"blk_-12", b"2024-05-06", b"1e5"])  # fmt: skip
_LINES = st.lists(st.lists(_TOKENS, max_size=8).map(b" ".join), max_size=60).map(b"\n".join)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=400), _LINES, _LINES.map(lambda x: x * 30 + b"tail")), st.integers(1, 3))
def test_any_bytes_come_back(raw, level):
    assert back(raw, level=level, segment=50) == raw


@settings(max_examples=40, deadline=None)
@given(_LINES.map(lambda x: (x + b"\n") * 40), st.integers(1, 40))
def test_structure_comes_back_whatever_the_contest_says(raw, segment):
    from holdall.logs import blocks

    index, data, _ = blocks.encode_structured(raw, blocks.Recipe(segment=segment))
    assert blocks.decode_structured(index, data, "test") == raw


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_are_kept(ending, last):
    raw = server_log(300).replace(b"\n", ending)
    assert back(raw if last else raw.removesuffix(ending)) == (raw if last else raw.removesuffix(ending))


@pytest.mark.parametrize("raw", [b"x" * 1_000_000, b"word 17 " * 130_000 + b"\nshort\n", b"a\0" * 9000])
def test_long_lines_and_nuls(raw):
    assert back(raw) == raw


def test_blocks_cut_anywhere_and_in_parallel():
    raw = server_log(3000)
    for knobs in ({"block": 1000}, {"block": 64 << 10, "workers": 2}, {"block": 7777, "segment": 11}):
        assert back(raw, **knobs) == raw


def test_templates_from_few_lines():
    raw = server_log(120_000)
    meta = Logzip(target=0.9).encode(raw).meta
    assert meta["matched"] >= 0.9 and meta["sampled"] <= 0.05
    nothing = Logzip(level=1).encode(raw[:200_000]).meta
    assert nothing["matched"] == 0.0


def test_smaller_than_gzip_bzip2_and_xz_on_a_structured_log():
    raw = server_log(20_000)
    size = Logzip().encode(raw).nbytes
    assert size <= 0.6 * len(gzip.compress(raw, 9))
    assert size <= 0.7 * len(bz2.compress(raw, 9))
    assert size <= 0.7 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def test_a_real_log_of_this_machine():
    raw = quality.real()
    packed = Logzip().encode(raw)
    assert Logzip().decode(packed) == raw
    assert packed.nbytes <= 0.75 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


@pytest.mark.parametrize("kind", ["random", "prose", "one line", "numbers"])
def test_never_much_larger_than_xz(kind):
    from pydoc_data.topics import topics

    rng = np.random.default_rng(0)
    raw = {
        "random": rng.integers(0, 256, 100_000, np.uint8).tobytes(),
        "prose": "\n".join(topics.values()).encode()[:200_000],
        "one line": b"abc " * 50_000,
        "numbers": b"\n".join(b"%d" % n for n in rng.integers(0, 1 << 60, 9000)),
    }[kind]
    header = 700  # of any .hold file
    assert (
        Logzip().encode(raw).nbytes <= 1.01 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) + header
    )


def test_a_budget_that_cannot_be_met_names_the_least():
    raw = server_log(2000)
    with pytest.raises(BudgetError) as fault:
        Logzip().encode(raw, "1%")
    assert Logzip().encode(raw, int(fault.value.least)).nbytes <= fault.value.least


def test_lossy_keeps_header_and_event_and_says_what_is_left():
    raw = server_log(4000)
    exact = Logzip().encode(raw)
    lossy = Logzip(lossy=True).encode(raw, int(0.6 * exact.nbytes))
    text = Logzip().decode(lossy)
    assert lossy.nbytes <= 0.6 * exact.nbytes
    assert 0 < lossy.meta["kept_fields"] < 1 and 0 <= lossy.meta["whole_lines"] < 0.2
    was, now = raw.splitlines(), text.splitlines()
    assert len(was) == len(now)
    assert all(a.split()[:2] == b.split()[:2] for a, b in zip(was, now, strict=True))
    assert now[0].split(b":")[0] == was[0].split(b":")[0]
    assert Logzip().decode(Logzip(lossy=True).encode(raw, "99%")) == raw  # what fits is not touched


def test_a_hostile_index_raises():
    from holdall.logs import blocks

    raw = server_log(500)
    index, data, _ = blocks.encode_structured(raw, blocks.Recipe(segment=100))
    rng, wrong = random.Random(1), 0
    for _ in range(150):
        which, bad = rng.random() < 0.6, bytearray(index)
        target = bad if which else bytearray(data)
        target[rng.randrange(len(target))] ^= 1 << rng.randrange(8)
        try:
            got = blocks.decode_structured(
                bytes(target) if which else index, data if which else bytes(target), "t"
            )
        except CorruptArtefact:
            continue
        wrong += got != raw
    assert wrong == 0


@pytest.mark.slow
def test_a_stream_packs_in_bounded_memory(tmp_path):
    """24 MB more of stream, there and back, at most 12 MB more of memory: blocks come and go."""
    piece = server_log(20_000)
    script = (
        "import sys, filecmp, holdall\n"
        "from holdall.meter import Meter\n"
        "from holdall.logs import Logzip\n"
        "m = Logzip(block=2 << 20)\n"
        "m.decode(m.encode(open(sys.argv[1], 'rb').read(3 << 20)))\n"
        "with Meter() as meter:\n"
        "    m.encode(Logzip.read_input(sys.argv[1]), to=sys.argv[2]).close()\n"
        "    holdall.unpack(sys.argv[2], sys.argv[3])\n"
        "print(meter.peak_bytes)\n"
        "assert filecmp.cmp(sys.argv[1], sys.argv[3], shallow=False)\n"
    )
    peaks = []
    for size in (10_000_000, 34_000_000):
        with (tmp_path / "big.log").open("wb") as f:
            for _ in range(1 + size // len(piece)):
                f.write(piece)
        asked = [
            sys.executable,
            "-c",
            script,
            *(str(tmp_path / n) for n in ("big.log", "big.hold", "back.log")),
        ]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + (12 << 20), peaks


def test_golden_bytes_decode_for_ever():
    from pathlib import Path

    here = Path(__file__).parent.parent / "golden"
    packed = Packed.open(str(here / "logs-logzip-v1.hold"))
    assert get("logs.logzip")().decode(packed) == (here / "logs-logzip-v1.log").read_bytes()
