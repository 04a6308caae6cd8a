"""Packed logs as files, beside gzip's own file object."""

import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import holdall.logs as logs
from holdall.errors import BadInput
from holdall.logs import Logzip
from tests.logs.test_logzip import server_log

RAW = server_log(900) + b"no newline at the end"
PACKED = Logzip(block=20_000).encode(RAW)


def reader() -> logs.LogReader:
    return logs.LogReader(PACKED, Logzip())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["read", "readline", "seek", "current", "end", "tell", "read1"]),
                          st.integers(0, 40_000)), max_size=8))  # fmt: skip
def test_it_behaves_like_a_file(steps):
    f, truth = reader(), io.BytesIO(RAW)
    for what, n in steps:
        if what == "seek":
            f.seek(min(n, len(RAW)))
            truth.seek(min(n, len(RAW)))
        elif what == "current":
            n = min(n, len(RAW) - truth.tell())
            assert f.seek(n, io.SEEK_CUR) == truth.seek(n, io.SEEK_CUR)
        elif what == "end":
            assert f.seek(-min(n, len(RAW)), io.SEEK_END) == truth.seek(-min(n, len(RAW)), io.SEEK_END)
        elif what == "read1":
            piece = f.read1(n)
            assert piece == truth.read(len(piece))
        elif what != "tell":
            assert getattr(f, what)(n) == getattr(truth, what)(n)
        assert f.tell() == truth.tell()


def test_lines_and_whole_text(tmp_path):
    path = str(tmp_path / "a.hold")
    with logs.open(path, "wb") as f:
        for start in range(0, len(RAW), 1000):
            f.write(RAW[start : start + 1000])
    zipped = io.BytesIO()
    with gzip.open(zipped, "wb") as g:
        g.write(RAW)
    zipped.seek(0)
    with logs.open(path) as f, gzip.open(zipped) as g:
        assert list(f) == list(g)
    with logs.open(path) as f, io.TextIOWrapper(f, "utf-8") as text:
        assert text.read() == RAW.decode()


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.hold"
    with logs.open(str(path), "wb") as f:
        f.write(b"old\n")
    before = path.read_bytes()
    with pytest.raises(RuntimeError), logs.open(str(path), "wb") as f:
        f.write(b"new\n")
        raise RuntimeError
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.hold"]


def test_wrong_uses_say_so(tmp_path):
    with pytest.raises(BadInput):
        logs.open(str(tmp_path / "a.hold"), "a+")
    with pytest.raises(BadInput):
        logs.open(str(tmp_path / "missing.hold"))
    f = reader()
    f.close()
    with pytest.raises(ValueError):
        f.read()
