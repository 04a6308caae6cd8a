"""Vectors in files: what every format gives back, and how little is read and held for it."""

import subprocess
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from vector_files import (
    EVERY,
    VECS,
    WRITERS,
    everything,
    fixed,
    held,
    listed,
    numbers,
    write_arrow,
    write_safetensors,
    written,
)

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader
from holdall.vectors.source import Vectors

SHAPES = [(1, 5), (7, 1), (63, 63), (200, 8)]
TYPES = ["f4", "f2", "f8", "u1", "i1"]


def same(v, wanted):
    assert (v.count, v.dim) == wanted.shape and v.dtype == wanted.dtype and v.nbytes == wanted.nbytes
    whole = v.read(0, v.count)
    assert whole.dtype == wanted.dtype and whole.flags.c_contiguous and whole.flags.writeable
    np.testing.assert_array_equal(whole, wanted)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", TYPES)
def test_each_format_gives_back_what_numpy_wrote(tmp_path, kind, dtype):
    for shape in SHAPES:
        path, wanted = written(tmp_path, kind, numbers(shape, dtype))
        with Vectors.open(path) as v:
            same(v, wanted)


@pytest.mark.parametrize("kind", VECS)
@pytest.mark.parametrize("shape", SHAPES)
def test_vecs_files(tmp_path, kind, shape):
    path, wanted = written(tmp_path, kind, numbers(shape, VECS[kind]))
    with Vectors.open(path) as v:
        same(v, wanted)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("size", [1, 96, 1000, 10**9])
def test_blocks_are_the_rows_in_order(tmp_path, kind, size):
    path, wanted = written(tmp_path, kind)
    with Vectors.open(path) as v:
        starts, blocks = zip(*v.blocks(size), strict=True)
        step = min(v.count, max(1, size // (v.dim * v.dtype.itemsize)))
        assert list(starts) == list(range(0, v.count, step))
        assert all(b.nbytes <= max(size, v.nbytes // v.count) for b in blocks)
        np.testing.assert_array_equal(np.concatenate(blocks), wanted)


@pytest.mark.parametrize("kind", EVERY)
def test_reads_across_the_borders_of_groups(tmp_path, kind):
    path, wanted = written(tmp_path, kind)
    with Vectors.open(path) as v:
        for a, b in [(49, 51), (0, 1), (63, 65), (10, 190), (199, 200), (100, 100), (200, 200)]:
            np.testing.assert_array_equal(v.read(a, b), wanted[a:b])


@pytest.mark.parametrize("kind", EVERY)
def test_take_gives_any_rows_in_any_order(tmp_path, kind):
    path, wanted = written(tmp_path, kind)
    rng = np.random.default_rng(1)
    with Vectors.open(path) as v:
        for rows in ([], [5], [199, 0, 199, 63, 64, 0], rng.integers(0, 200, 300), np.arange(200)[::-1]):
            at = np.asarray(rows, dtype=np.int64)
            np.testing.assert_array_equal(v.take(rows), wanted[at])


def test_take_far_apart_and_in_pieces(tmp_path):
    wanted = numbers((40_000, 64))
    np.save(tmp_path / "x.npy", wanted)
    rng = np.random.default_rng(2)
    with Vectors.open(tmp_path / "x.npy") as v:
        for rows in (rng.integers(0, 40_000, 50), rng.permutation(40_000)[:20_000]):
            np.testing.assert_array_equal(v.take(rows), wanted[rows])


def test_take_reads_neighbours_at_once_and_not_the_file(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", numbers((40_000, 64)))
    reads = []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, a, b: reads.append(b - a) or read(self, a, b))
    with Vectors.open(tmp_path / "x.npy") as v:
        reads.clear()
        v.take(np.array([20_010, 3, 20_000, 7, 3, 39_999, 20_005]))
    assert sorted(reads) == [256, 5 * 256, 11 * 256]


def test_a_parquet_file_is_read_one_group_at_a_time_and_each_once(tmp_path, monkeypatch):
    wanted = numbers((1000, 16))
    pq.write_table(pa.table({"emb": fixed(wanted)}), tmp_path / "x.parquet", row_group_size=100)
    asked = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, g, **k: asked.append(g) or read(self, g, **k)
    )
    with Vectors.open(tmp_path / "x.parquet") as v:
        np.testing.assert_array_equal(np.concatenate([b for _, b in v.blocks(37 * 64)]), wanted)
        assert asked == list(range(10))
        rows = np.array([950, 3, 450, 7, 999, 0])
        np.testing.assert_array_equal(v.take(rows), wanted[rows])
        assert asked[10:] == [0, 4, 9]


def test_an_arrow_files_batches_are_not_read_to_count_them(tmp_path):
    wanted = numbers((4000, 64))
    write_arrow(tmp_path / "x.arrow", wanted)
    with Vectors.open(tmp_path / "x.arrow") as v:
        assert v.count == 4000 and v._rows._reader.traffic < wanted.nbytes / 10
        v.read(100, 150)
        assert v._rows._reader.traffic < wanted.nbytes / 5


@pytest.mark.parametrize("kind", EVERY)
def test_any_file_may_be_remote(tmp_path, kind):
    path, wanted = written(tmp_path, kind)
    url = f"memory://holdall-vectors/{path.name}"
    fs = fsspec.filesystem("memory")
    fs.pipe_file(url, path.read_bytes())
    try:
        with Vectors.open(url) as v:
            same(v, wanted)
            np.testing.assert_array_equal(v.take([199, 3, 3]), wanted[[199, 3, 3]])
    finally:
        fs.rm_file(url)


def test_bfloat16_becomes_float32(tmp_path):
    wanted = numbers((63, 9))
    upper = (wanted.view("u4") >> 16).astype("u2")
    write_safetensors(tmp_path / "x.safetensors", upper, "BF16")
    wanted = (upper.astype("u4") << 16).view("f4")
    with Vectors.open(tmp_path / "x.safetensors") as v:
        same(v, wanted)
    same(Vectors.of(torch.from_numpy(wanted).bfloat16()), wanted)


def test_arrays_and_tensors(tmp_path):
    array = numbers((63, 9))
    for given in (
        array,
        np.asfortranarray(array),
        array.astype(">f4"),
        torch.from_numpy(array),
        array.astype("f8"),
    ):
        same(Vectors.of(given), array)
    same(Vectors.of(torch.from_numpy(array).requires_grad_()), array)
    same(Vectors.of(array[3]), array[3:4])
    for dtype in TYPES:
        same(Vectors.of(numbers(dtype=dtype)), held(numbers(dtype=dtype)))
    with Vectors.of(array) as v:
        block = v.read(0, 63)
        block[:] = 0
        assert v.read(0, 63).any() and array.any() and v.ids is None and v.attributes() is None
        np.testing.assert_array_equal(v.take([5, 5, 1]), array[[5, 5, 1]])
    np.save(tmp_path / "q.npy", array[0])
    np.save(tmp_path / "big.npy", array.astype(">f4"))
    assert everything(tmp_path / "q.npy").shape == (1, 9)
    np.testing.assert_array_equal(everything(tmp_path / "big.npy"), array)


def test_ids_and_attributes(tmp_path):
    array = numbers()
    for kind in ("parquet", "arrow", "feather"):
        path, _ = written(tmp_path, kind, array)
        with Vectors.open(path) as v:
            assert v.ids.dtype.kind == "U" and v.ids.tolist() == [f"né{i}" for i in range(200)]
            told = v.attributes()
            assert told.column_names == ["year", "kind"] and told["year"].to_pylist() == list(range(200))
            assert told["kind"][4].as_py() == "kind 1"
    for ids in (np.arange(200) * 7, np.arange(200, dtype=">u4"), np.array([f"ü{i}" for i in range(200)])):
        np.savez(tmp_path / "x.npz", ids=ids, emb=array)
        with Vectors.open(tmp_path / "x.npz") as v:
            assert v.ids.tolist() == ids.tolist() and v.ids.dtype == (
                ids.dtype if ids.dtype.kind == "U" else np.int64
            )
            assert v.attributes() is None
    plain = pa.table({"emb": fixed(array), "id": pa.array(range(200), pa.int32())})
    pq.write_table(plain, tmp_path / "plain.parquet")
    with Vectors.open(tmp_path / "plain.parquet") as v:
        assert v.ids.dtype == np.int64 and v.ids.tolist() == list(range(200)) and v.attributes() is None


def test_several_that_could_be_meant_need_a_name(tmp_path):
    a, b = numbers((5, 3)), numbers((5, 4), seed=1)
    np.savez(tmp_path / "x.npz", first=a, second=b)
    write_safetensors(tmp_path / "x.safetensors", a)
    pq.write_table(pa.table({"first": fixed(a), "second": listed(b)}), tmp_path / "x.parquet")
    for file in ("x.npz", "x.parquet"):
        with pytest.raises(BadInput, match=r"first.*second"):
            Vectors.open(tmp_path / file)
        with pytest.raises(BadInput, match=r"third.*first.*second"):
            Vectors.open(tmp_path / file, "third")
        np.testing.assert_array_equal(everything(tmp_path / file, "second"), b)
    np.testing.assert_array_equal(everything(tmp_path / "x.safetensors", "emb"), a)
    with pytest.raises(BadInput, match=r"\bpad\b"):
        Vectors.open(tmp_path / "x.safetensors", "nothing")
    for file in ("x.npy", "x.fvecs"):
        with pytest.raises(BadInput, match="name"):
            Vectors.open(tmp_path / file, "first")


def test_an_archive_can_be_closed_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path, wanted = written(tmp_path, "packed npz")
    np.testing.assert_array_equal(everything(path), wanted)
    spoilt = bytearray(path.read_bytes())
    spoilt[len(spoilt) // 2] ^= 255
    path.write_bytes(spoilt)
    with pytest.raises(CorruptArtefact):
        everything(path)
    assert not list((tmp_path / "tmp").iterdir())


PEAK = """
import sys
import numpy as np
from holdall.meter import Meter
from holdall.vectors.source import Vectors
path, block = sys.argv[1], int(sys.argv[2])
with Vectors.open(path) as v:
    list(zip(range(1), v.blocks(block)))  # what is imported at the first read
    with Meter() as meter:
        total = sum(int(b.view(np.uint8)[:, 0].sum()) for _, b in v.blocks(block))
        v.take(np.random.default_rng(0).integers(0, v.count, 1000))
print(total, meter.peak_bytes, len({"torch", "numba", "pyarrow"} & set(sys.modules)))
"""


@pytest.mark.parametrize("kind", ["npy", "packed npz"])
def test_a_file_larger_than_its_blocks_takes_two_blocks(tmp_path, kind):
    block = 4 << 20
    path, wanted = written(tmp_path, kind, np.zeros((15 << 10, 1000), "f4") + np.arange(1000, dtype="f4"))
    assert wanted.nbytes > 60_000_000
    words = [sys.executable, "-c", PEAK, str(path), str(block)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    total, peak, heavy = map(int, run.stdout.split())
    assert not heavy
    assert total == int(wanted.view("u1")[:, 0].sum(dtype=np.int64)) and peak < 2.75 * block
