"""Vectors in files: what every format gives back, what is refused, and how little memory it takes."""

import io
import json
import struct
import subprocess
import sys
import warnings
import zipfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader
from holdall.vectors.source import Vectors

SHAPES = [(1, 5), (7, 1), (63, 63), (200, 8)]
TYPES = ["f4", "f2", "f8", "u1", "i1"]


def numbers(shape=(200, 8), dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def held(array):
    return array.astype("f4") if array.dtype.itemsize == 8 else array


# Writers, each written without the code under test.


def write_npy(path, array):
    np.save(path, array)


def write_npz(path, array):
    np.savez(path, vectors=array, flat=np.arange(3))


def write_packed_npz(path, array):
    np.savez_compressed(path, vectors=array)


def write_vecs(path, array):
    path.write_bytes(b"".join(struct.pack("<i", len(row)) + row.tobytes() for row in array))


def write_safetensors(path, array, tag=None):
    tags = {"float32": "F32", "float16": "F16", "float64": "F64", "uint8": "U8", "int8": "I8"}
    entry = {
        "dtype": tag or tags[str(array.dtype)],
        "shape": array.shape,
        "data_offsets": [3, 3 + array.nbytes],
    }
    pad = {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}
    head = json.dumps({"__metadata__": {"a": "b"}, "pad": pad, "emb": entry}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"abc" + array.tobytes())


def fixed(array):
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def listed(array):
    offsets = np.arange(len(array) + 1, dtype="i4") * array.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(array.reshape(-1)))


def table(column):
    n = len(column)
    kinds = pa.array([f"kind {i % 3}" for i in range(n)]).dictionary_encode()
    return pa.table({"id": [f"né{i}" for i in range(n)], "emb": column, "year": range(n), "kind": kinds})


def write_parquet(path, array):
    pq.write_table(table(fixed(array)), path, row_group_size=64)


def write_lists_parquet(path, array):
    pq.write_table(table(listed(array)), path, row_group_size=64)


def write_arrow(path, array):
    rows = table(fixed(array))
    with pa.ipc.new_file(path, rows.schema) as f:
        f.write_table(rows, max_chunksize=50)


def write_feather(path, array):
    pa.feather.write_feather(table(listed(array)), str(path), compression="zstd", chunksize=50)


WRITERS = {
    "npy": ("x.npy", write_npy),
    "npz": ("x.npz", write_npz),
    "packed npz": ("x.npz", write_packed_npz),
    "safetensors": ("x.safetensors", write_safetensors),
    "parquet": ("x.parquet", write_parquet),
    "parquet of lists": ("x.PARQUET", write_lists_parquet),
    "arrow": ("x.arrow", write_arrow),
    "feather": ("x.feather", write_feather),
}
VECS = {"x.fvecs": "<f4", "x.bvecs": "u1", "x.ivecs": "<i4"}
EVERY = [*WRITERS, *VECS]


def written(folder, kind, array=None):
    """Path of such a file, and the array that it should give."""
    if kind in VECS:
        array = numbers(dtype=VECS[kind]) if array is None else array.astype(VECS[kind])
        write_vecs(folder / kind, array)
        return folder / kind, array.astype("f4") if kind == "x.ivecs" else array
    name, write = WRITERS[kind]
    array = numbers() if array is None else array
    write(folder / name, array)
    return folder / name, held(array)


def everything(path, name=None):
    with Vectors.open(path, name) as v:
        v.ids  # noqa: B018
        v.attributes()
        return np.concatenate([b for _, b in v.blocks(1000)])


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


@pytest.mark.parametrize(
    "ids",
    [[1.5] * 3, [1, None, 2], pa.array([2**63, 1, 2], pa.uint64()), [[1], [2], [3]]],
    ids=["floats", "null", "large", "lists"],
)
def test_ids_that_are_none_are_refused(tmp_path, ids):
    pq.write_table(pa.table({"emb": fixed(numbers((3, 4))), "id": ids}), tmp_path / "x.parquet")
    with Vectors.open(tmp_path / "x.parquet") as v, pytest.raises(BadInput, match="ids"):
        v.ids  # noqa: B018


@pytest.mark.parametrize("ids", [np.arange(3), np.ones(200), np.ones((200, 1), int), np.array([None] * 200)])
def test_ids_of_an_archive_that_are_none_are_refused(tmp_path, ids):
    np.savez(tmp_path / "x.npz", emb=numbers(), ids=ids)
    with Vectors.open(tmp_path / "x.npz", "emb") as v, pytest.raises(BadInput, match="ids"):
        v.ids  # noqa: B018


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


@pytest.mark.parametrize("kind", [k for k in EVERY if k not in ("x.bvecs", "x.ivecs")])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_what_is_not_finite_names_its_row(tmp_path, kind, value, word):
    array = numbers()
    array[123, 7] = array[150, 0] = value
    path, _ = written(tmp_path, kind, array)
    with Vectors.open(path) as v:
        assert v.read(0, 123).shape == (123, 8) and v.take([122, 124]).shape == (2, 8)
        for work in (
            lambda: list(v.blocks(1 << 20)),
            lambda: list(v.blocks(64)),
            lambda: v.take([5, 123, 150]),
        ):
            with pytest.raises(BadInput) as caught:
                work()
            assert str(caught.value) == f"vectors: got row 123 has {word}; wanted finite numbers"


def test_numbers_beyond_float32_are_refused():
    with pytest.raises(BadInput, match=r"row 1 has .*too large for float32"):
        Vectors.of(np.array([[1.0], [1e300]])).read(0, 2)


REFUSED_ARRAYS = {
    "objects": (np.array([[None, 1]]), "object"),
    "int64": (np.ones((3, 3), np.int64), "int64"),
    "bool": (np.ones((3, 3), bool), "bool"),
    "complex": (np.ones((3, 3), complex), "complex"),
    "text": (np.array([["a"]]), "U1"),
    "records": (np.zeros((3, 3), [("a", "f4")]), "wanted"),
    "no rows": (np.ones((0, 3), "f4"), "0 rows"),
    "no columns": (np.ones((3, 0), "f4"), "0 columns"),
    "three axes": (np.ones((2, 3, 4), "f4"), "shape"),
    "no axis": (np.float32(3), "shape"),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_arrays_that_are_no_vectors(tmp_path, case):
    array, word = REFUSED_ARRAYS[case]
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", emb=array)
    for work in (
        lambda: Vectors.of(array),
        lambda: Vectors.open(tmp_path / "x.npy"),
        lambda: Vectors.open(tmp_path / "x.npz", "emb"),
    ):
        with pytest.raises(BadInput, match=word) as caught:
            work()
        assert "\n" not in str(caught.value)


def test_more_that_is_refused(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(numbers()))
    with pytest.raises(BadInput, match="Fortran"):
        Vectors.open(tmp_path / "f.npy")
    for given in (np.ma.masked_array(numbers()), [[1.0], [1.0, 2.0]], "text", object()):
        with pytest.raises(BadInput):
            Vectors.of(given)
    for url in (
        tmp_path / "x.bin",
        tmp_path,
        tmp_path / "missing.npy",
        "memory://nowhere/x.npy",
        "nonsense://x.npy",
    ):
        with pytest.raises(BadInput):
            Vectors.open(url)
    v = Vectors.of(numbers())
    for a, b in ((-1, 3), (3, 2), (0, 201)):
        with pytest.raises(BadInput, match="within 0 to 200"):
            v.read(a, b)
    for rows in ([-1], [200], [1.0], [[1]], [True]):
        with pytest.raises(BadInput, match="row"):
            v.take(rows)
    v.close()
    with pytest.raises(BadInput, match="closed"):
        v.read(0, 1)
    write_npy(tmp_path / "x.npy", numbers())
    v = Vectors.open(tmp_path / "x.npy")
    v.close()
    v.close()
    with pytest.raises(BadInput, match="closed"):
        v.take([1])


COLUMNS = {
    "null row": (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), "row 1 is null|size=0"),
    "null in a row": (pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float32(), 2)), "row 1 has a null"),
    "null row of lists": (pa.array([[1.0], None], pa.list_(pa.float32())), "row 1 is null"),
    "ragged": (
        pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32())),
        "row 1 has 2 numbers where row 0 has 1",
    ),
    "integers": (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), "int64"),
    "text": (pa.array([["a"]], pa.list_(pa.string())), "string"),
    "scalars": (pa.array([1.0]), "double"),
    "no rows": (pa.array([], pa.list_(pa.float32(), 2)), "0 rows"),
    "empty lists": (pa.array([[], []], pa.list_(pa.float32())), "0 columns"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_that_are_no_vectors(tmp_path, case):
    column, words = COLUMNS[case]
    rows = pa.table({"emb": column})
    pq.write_table(rows, tmp_path / "x.parquet")
    with pa.ipc.new_file(tmp_path / "x.arrow", rows.schema) as f:
        f.write_table(rows)
    for path in (tmp_path / "x.parquet", tmp_path / "x.arrow"):
        with pytest.raises(BadInput, match=words):
            everything(path)


def test_slices_of_columns_are_written_and_read_right(tmp_path):
    array = numbers((300, 4))
    for column in (fixed(array), listed(array)):
        rows = pa.table(
            {"emb": pa.chunked_array([column.slice(10, 100), column.slice(250, 0), column.slice(5, 7)])}
        )
        with pa.ipc.new_file(tmp_path / "x.arrow", rows.schema) as f:
            f.write_table(rows)
        np.testing.assert_array_equal(everything(tmp_path / "x.arrow"), np.r_[array[10:110], array[5:12]])


def test_rows_of_vecs_that_differ_in_length(tmp_path):
    rows = [numbers((1, n))[0] for n in (4, 4, 10, 4)]
    write_vecs(tmp_path / "x.fvecs", rows)
    with pytest.raises(CorruptArtefact, match="rows differ"):
        Vectors.open(tmp_path / "x.fvecs")
    write_vecs(tmp_path / "x.fvecs", [*rows[:2], numbers((1, 9))[0][:3], *rows[:1], numbers((1, 5))[0]])
    with Vectors.open(tmp_path / "x.fvecs") as v, pytest.raises(CorruptArtefact, match="row 2 has 3 numbers"):
        v.read(0, v.count)
    for head, error in (
        (b"", BadInput),
        (b"\0\0", CorruptArtefact),
        (b"\0" * 8, BadInput),
        (b"\xff" * 8, CorruptArtefact),
    ):
        (tmp_path / "x.fvecs").write_bytes(head)
        with pytest.raises(error):
            Vectors.open(tmp_path / "x.fvecs")


@pytest.mark.parametrize("kind", EVERY)
def test_a_file_that_is_cut_short(tmp_path, kind):
    path, _ = written(tmp_path, kind)
    raw = path.read_bytes()
    for left in (0, 1, 7, 9, 40, len(raw) // 2 + 1, len(raw) - 1):
        path.write_bytes(raw[:left])
        with pytest.raises((CorruptArtefact, BadInput) if left == 0 else CorruptArtefact) as caught:
            everything(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", EVERY)
def test_altered_bytes_raise_nothing_but_what_holdall_raises(tmp_path, kind):
    path, wanted = written(tmp_path, kind)
    raw = path.read_bytes()
    rng = np.random.default_rng(EVERY.index(kind))
    refused = 0
    for trial in range(60):
        spoilt = bytearray(raw)
        places = rng.integers(0, 200, rng.integers(1, 4))
        if trial % 3 == 2:  # what says where things are stands at the end of some formats
            places = len(raw) - 1 - places
        for at in places:
            spoilt[at] = rng.integers(256) if trial % 2 else spoilt[at] ^ (1 << rng.integers(8))
        path.write_bytes(spoilt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that Python 2 may have written
            try:
                assert everything(path).size
            except (BadInput, CorruptArtefact) as fault:
                refused += 1
                assert "\n" not in str(fault)
    assert refused
    path.write_bytes(raw)
    np.testing.assert_array_equal(everything(path), wanted)


def test_headers_that_ask_for_more_than_there_is(tmp_path):
    def npy(told):
        text = told.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(80)

    good = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
    for shape in (
        "(1000000000000, 1000000)",
        "(-1, 5)",
        "(2, True)",
        f"({10**30}, 1)",
        "(5, 5)",
        "()",
        "__import__('os')",
    ):
        (tmp_path / "x.npy").write_bytes(npy(good % shape))
        with pytest.raises((BadInput, CorruptArtefact)):
            Vectors.open(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(npy(good % "(4, 5)"))
    assert everything(tmp_path / "x.npy").shape == (4, 5)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("emb.npy", npy(good % "(4, 5)"))
        z.writestr("ids.npy", npy("{'descr': '<U100000', 'fortran_order': False, 'shape': (4,)}"))
    with Vectors.open(tmp_path / "x.npz") as v, pytest.raises(CorruptArtefact, match="contradicts"):
        v.ids  # noqa: B018
    for entry in (
        {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [1, 4], "data_offsets": [1 << 60, (1 << 60) + 16]},
        {"dtype": "F32", "shape": [1, 4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [1.0, 4], "data_offsets": [0, 16]},
        {"dtype": "F9", "shape": [1, 4], "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [1, 4], "data_offsets": [0, 16]},
        [],
    ):
        head = json.dumps({"emb": entry}).encode()
        (tmp_path / "x.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
        with pytest.raises((BadInput, CorruptArtefact)):
            everything(tmp_path / "x.safetensors")


def test_an_arrow_stream_says_that_it_is_one(tmp_path):
    rows = table(fixed(numbers()))
    with pa.ipc.new_stream(tmp_path / "x.arrow", rows.schema) as f:
        f.write_table(rows)
    with pytest.raises(CorruptArtefact, match="stream"):
        Vectors.open(tmp_path / "x.arrow")


def test_an_archive_can_be_closed_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path, wanted = written(tmp_path, "packed npz")
    np.testing.assert_array_equal(everything(path), wanted)
    out = io.BytesIO(path.read_bytes())
    out.getbuffer()[len(out.getbuffer()) // 2] ^= 255
    path.write_bytes(out.getvalue())
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


@pytest.mark.parametrize("kind", ["npy", "packed npz", "x.fvecs"])
def test_a_file_larger_than_its_blocks_takes_two_blocks(tmp_path, kind):
    block = 4 << 20
    path, wanted = written(tmp_path, kind, np.zeros((15 << 10, 1000), "f4") + np.arange(1000, dtype="f4"))
    assert wanted.nbytes > 60_000_000
    words = [sys.executable, "-c", PEAK, str(path), str(block)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    total, peak, heavy = map(int, run.stdout.split())
    assert not heavy
    assert total == int(wanted.view("u1")[:, 0].sum(dtype=np.int64)) and peak < 2.75 * block
