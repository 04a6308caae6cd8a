"""Files of vectors in every format, each written without the code under test."""

import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from holdall.vectors.source import Vectors


def numbers(shape=(200, 8), dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def held(array):
    return array.astype("f4") if array.dtype.itemsize == 8 else array


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
