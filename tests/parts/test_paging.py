"""The paging arena: past the page cache, spans used again, errors that come through; windows that keep their budget."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.errors import BadInput, BudgetError
from holdall.parts import paging, paging_file
from holdall.parts.paging import BLOCK, Arena, Window, aligned, buffer

ODD = (0, 1, 3, 63, 4095, 4096, 4097, (1 << 20) + 5, (5 << 20) + 123)


def bytes_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


@pytest.mark.parametrize("direct", [True, False])
def test_what_was_written_is_read_at_odd_sizes_and_addresses(tmp_path, direct):
    with Arena(tmp_path, direct) as arena:
        assert os.listdir(tmp_path) == []  # nothing is left by a process that is killed
        kept = []
        for i, n in enumerate(ODD):
            x = bytes_of(n + 1, i)[1:]  # not at the start of a page
            kept.append((arena.place(n), x))
            assert arena.write(kept[-1][0], x).result() == n
        for span, x in kept:
            odd, page = np.zeros(x.size + 1, np.uint8), buffer(x.size)
            arena.read(span, odd[1:]).result()
            arena.read(span, page).result()
            assert np.array_equal(odd[1:], x) and np.array_equal(page, x)
        told = arena.traffic()
        assert told["written_bytes"] == sum(ODD) and told["read_bytes"] == 2 * sum(ODD)
        assert told["writes"] == len(ODD) and told["reads"] == 2 * len(ODD)


def test_torch_tensors_go_in_and_out_bit_for_bit():
    torch = pytest.importorskip("torch")
    with Arena() as arena:
        for x in (
            torch.randn(7, 9),
            torch.randn(33).bfloat16(),
            torch.tensor(5),
            torch.tensor([True, False]),
        ):
            span, back = arena.place(x.nbytes), torch.empty_like(x)
            arena.write(span, x).result()
            arena.read(span, back).result()
            assert back.equal(x) and back.dtype == x.dtype
            back.untyped_storage().resize_(0)  # its owner may still do with it what he likes
        gone = arena.place(1 << 20)
        waiting = arena.write(gone, torch.full((1 << 18,), 3.0))  # nobody else holds it
        waiting.result()
        back = torch.zeros(1 << 18)
        arena.read(gone, back).result()
        assert (back == 3).all()
        with pytest.raises(BadInput, match="contiguous"):
            arena.write(arena.place(64), torch.randn(4, 4).T)


def test_parts_of_a_span_are_written_and_read_at_whole_blocks():
    with Arena() as arena:
        span, x = arena.place(5 * BLOCK + 7), bytes_of(2 * BLOCK)
        arena.write(span, x, at=BLOCK).result()
        back = buffer(BLOCK)
        arena.read(span, back, at=2 * BLOCK).result()
        assert np.array_equal(back, x[BLOCK:])
        for n, at in ((BLOCK, 3), (BLOCK, -BLOCK), (BLOCK, 6 * BLOCK), (7 * BLOCK, 0)):
            with pytest.raises(BadInput, match="whole blocks within"):
                arena.write(span, bytes_of(n), at=at)


def test_the_page_cache_is_not_the_store(tmp_path):
    """What is kept in the cache is seen by mincore; here by how little of the file the kernel says is resident."""
    mincore = __import__("ctypes").CDLL(None).mincore
    import ctypes
    import mmap

    for direct in (True, False):
        with Arena(tmp_path, direct, name=f"kept{direct}") as arena:
            n = 64 << 20
            span, x = arena.place(n), buffer(n)
            x[:] = 7
            arena.write(span, x).result()
            with Path(arena.path).open("r+b") as f, mmap.mmap(f.fileno(), n) as seen:
                pages = (ctypes.c_ubyte * (n // mmap.PAGESIZE))()
                address = ctypes.addressof(ctypes.c_char.from_buffer(seen))
                assert mincore(ctypes.c_void_p(address), ctypes.c_size_t(n), pages) == 0
                resident = sum(p & 1 for p in pages) * mmap.PAGESIZE
            assert resident <= n // 4, f"{resident} bytes of {n} are in the page cache, direct={direct}"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=40), st.integers(0, 1000))
def test_spans_never_overlap_and_are_used_again(sizes, seed):
    chance, live = random.Random(seed), {}
    with Arena() as arena:
        for i, n in enumerate(sizes):
            span = arena.place(n)
            assert span.start % BLOCK == 0 and span.nbytes == n
            for other in live.values():
                assert span.start + span.room <= other.start or other.start + other.room <= span.start
            live[i] = span
            if chance.random() < 0.5:
                arena.free(live.pop(chance.choice(list(live))))
            assert arena.nbytes == sum(s.room for s in live.values())
        most = arena._end
        for span in live.values():
            arena.free(span)
        assert arena.nbytes == 0 and arena._end == 0
        assert arena.place(sum(sizes)).start == 0 and most >= 0


def test_a_span_is_freed_once():
    with Arena() as arena:
        a, b = arena.place(10), arena.place(10)
        arena.free(a)
        with pytest.raises(BadInput, match="is not free"):
            arena.free(a)
        arena.free(b)
        with pytest.raises(BadInput, match="is not free"):
            arena.free(b)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("call", "act"), [("pwrite", "writing"), ("preadv", "reading")])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_one_clear_line_at_result(monkeypatch, call, act, number, direct):
    with Arena(direct=direct) as arena:
        span, x = arena.place(9000), bytes_of(9000)
        arena.write(span, x).result()
        real, failed = getattr(os, call), []

        def fails(*args):
            failed.append(args)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(paging_file.os, call, fails)
        waiting = arena.write(span, x) if act == "writing" else arena.read(span, bytes_of(9000))
        with pytest.raises(OSError, match=f"{act} 9000 bytes failed: ") as told:
            waiting.result()
        assert told.value.errno == number and "\n" not in str(told.value) and failed
        monkeypatch.setattr(paging_file.os, call, real)
        back = buffer(9000)
        arena.read(span, back).result()
        assert np.array_equal(back, x)  # it works on


def test_short_calls_of_the_kernel_are_gone_on_with(monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(paging_file.os, "pwrite", lambda fd, m, at: real(fd, m[:BLOCK], at))
    with Arena() as arena:
        span, x, back = arena.place(5 * BLOCK), bytes_of(5 * BLOCK), buffer(5 * BLOCK)
        arena.write(span, x).result()
        arena.read(span, back).result()
        assert np.array_equal(back, x)


def test_reading_past_what_was_ever_written_is_an_error_not_a_wait():
    with Arena() as arena, pytest.raises(OSError, match="the file ends"):
        arena.read(arena.place(BLOCK), buffer(BLOCK)).result()


def test_a_named_arena_is_there_for_the_next_process(tmp_path):
    code = (
        "import sys, numpy as np; from holdall.parts.paging import Arena\n"
        "with Arena(sys.argv[1], name='a.bin') as arena:\n"
        "    arena.write(arena.place(5000), np.full(5000, 9, np.uint8)).result(); arena.sync()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    with Arena(tmp_path, name="a.bin") as arena:
        back = buffer(5000)
        arena.read(arena.place(5000), back).result()
        assert (back == 9).all()


def test_work_goes_on_in_the_background_and_a_rate_is_kept():
    with Arena(rate=20e6) as arena:
        span, x = arena.place(4 << 20), buffer(4 << 20)
        start = time.perf_counter()
        waiting = arena.write(span, x)
        assert not waiting.done() and threading.active_count() > 1
        waiting.result()
        assert time.perf_counter() - start >= 0.9 * x.size / 20e6  # a rate is a lower bound of time


def test_closing_finishes_what_is_under_way_and_leaves_no_file_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    arena = Arena(tmp_path, name="x", rate=50e6)
    waiting = arena.write(arena.place(1 << 20), buffer(1 << 20))
    arena.close()
    arena.close()
    assert waiting.result() == 1 << 20 and len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(BadInput, match="open"):
        arena.read(paging.Span(0, 5), buffer(5))
    with pytest.raises(BadInput, match="folder that exists"):
        Arena(tmp_path / "nowhere")


def test_buffers_are_pages():
    for n in ODD:
        b = buffer(n)
        assert b.size == n and b.ctypes.data % BLOCK == 0 and aligned(n) >= n and aligned(n) % BLOCK == 0


def test_a_window_keeps_its_budget_and_says_who_leaves():
    for order, leaves in (("lru", ["b"]), ("fifo", ["a"]), ({"a": 5, "b": 6, "c": 1}.get, ["c"])):
        window = Window(100, order)
        for name in "abc":
            assert window.take(name, 30) == []
        assert window.take("a", 30) == []  # used again
        assert window.take("d", 40) == leaves, order
        assert window.nbytes <= 100 and "d" in window
        assert (window.hits, window.misses, window.evicted) == (1, 4, 1)


def test_what_is_pinned_stays_and_what_cannot_fit_is_refused():
    window = Window(100)
    window.take("a", 60, pin=True)
    window.take("b", 30)
    with pytest.raises(BudgetError) as told:
        window.take("c", 50)
    assert told.value.least == 110 and "b" in window and window.nbytes == 90
    window.unpin("a")
    assert window.take("c", 50) == ["a"]
    window.drop("c")
    assert window.nbytes == 30
    with pytest.raises(BadInput, match="order"):
        Window(5, "random")
