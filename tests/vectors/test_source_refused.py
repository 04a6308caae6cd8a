"""Vectors in files: what is refused, and that altered files raise nothing but what Holdall raises."""

import json
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_files import (
    EVERY,
    everything,
    fixed,
    listed,
    numbers,
    table,
    write_npy,
    write_vecs,
    written,
)

from holdall.errors import BadInput, CorruptArtefact
from holdall.vectors.source import Vectors


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
    for trial in range(45):
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
