"""What else searches vectors, beside SPANN in benchmarks/vectors.py: faiss, hnswlib, usearch, LanceDB, DiskANN."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import hnswlib
import numpy as np
from usearch.index import Index as USearch
from vectors_data import anonymous, cold

HERE = Path(__file__).parent
LISTS = 1024
Rows = Iterator[tuple[str, dict[str, Any]]]


def on_disk(data: Any, args: Any) -> Rows:
    base, queries, wanted = data
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        for n, x in {"x": base, "q": queries, "gt": wanted}.items():
            np.save(where / f"{n}.npy", x)
        for name, own in {"recipe": recipe, "lists": lists_on_disk, "view": viewed}.items():
            if name in args.peers:
                yield from own(where, base, queries, wanted)
        for python, script in ((args.lance_python, "lance_search"), (args.diskann_python, "diskann_search")):
            if python is None:
                continue
            # LanceDB stands still with one thread
            env = {**os.environ, "OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "2", "LANCE_IO_THREADS": "2"}
            command = [python, HERE / "peers" / f"{script}.py", folder]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, env=env, timeout=1800, check=False
                )
            except subprocess.TimeoutExpired:
                yield script, {"failed": "not done after 1,800 seconds"}
                continue
            if done.returncode:
                yield script, {"failed": done.stderr.strip().splitlines()[-1][:160]}
                continue
            for told, row in json.loads(done.stdout.splitlines()[-1]).items():
                row["private"], row["files"] = (
                    row.pop("private_bytes") / base.nbytes,
                    row.pop("disk_bytes") / base.nbytes,
                )
                yield told, row


def parts_of(dim: int) -> int:
    return next(p for p in (32, 25, 24, 16) if dim % p == 0)


def recipe(where: Path, base: np.ndarray, queries: np.ndarray, wanted: np.ndarray) -> Rows:
    """Codes in memory and the rows that look nearest by pread: what anyone can do with faiss in twenty lines."""
    began, start = time.process_time(), anonymous()
    index = faiss.index_factory(base.shape[1], f"IVF{LISTS},PQ{parts_of(base.shape[1])}x8")
    index.train(base)
    index.add(base)
    built, row_bytes, head = (
        time.process_time() - began,
        base.shape[1] * 4,
        (where / "x.npy").stat().st_size - base.nbytes,
    )
    size = ((where / "x.npy").stat().st_size + faiss.serialize_index(index).nbytes) / base.nbytes
    fd = os.open(where / "x.npy", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for probes, rows in ((16, 15), (32, 20), (64, 24), (64, 30), (96, 30)):
        index.nprobe = probes

        def act(query: np.ndarray, rows: int = rows) -> np.ndarray:
            _, near = index.search(query[None], rows)
            near = np.sort(near[0][near[0] >= 0])
            x = np.stack(
                [
                    np.frombuffer(os.pread(fd, row_bytes, head + i * row_bytes), np.float32)
                    for i in near.tolist()
                ]
            )
            return near[np.square(x - query).sum(1).argsort()[:10]]

        told = cold(act, [str(where / "x.npy")], queries[:300], wanted[:300])
        yield f"faiss IVF{LISTS},PQ + pread, {probes} probes, {rows} rows", {
            **told, "private": (anonymous() - start) / base.nbytes, "files": size, "build_cpu_s": built,
        }  # fmt: skip
    os.close(fd)


def lists_on_disk(where: Path, base: np.ndarray, queries: np.ndarray, wanted: np.ndarray) -> Rows:
    began = time.process_time()
    flat = faiss.IndexFlatL2(base.shape[1])
    index = faiss.IndexIVFFlat(flat, base.shape[1], LISTS)
    index.train(base)
    path = str(where / "lists.ivfdata")
    lists = faiss.OnDiskInvertedLists(LISTS, index.code_size, path)
    index.replace_invlists(lists, False)
    index.add(base)
    built = time.process_time() - began
    for probes in (16, 32):
        index.nprobe = probes
        told = cold(lambda q: index.search(q[None], 10)[1][0], [path], queries[:30], wanted[:30])
        yield f"faiss OnDiskInvertedLists, {probes} probes", {
            **told, "files": Path(path).stat().st_size / base.nbytes, "build_cpu_s": built,
        }  # fmt: skip


def viewed(where: Path, base: np.ndarray, queries: np.ndarray, wanted: np.ndarray) -> Rows:
    began = time.process_time()
    index = USearch(ndim=base.shape[1], metric="l2sq", dtype="f32", connectivity=16)
    index.add(np.arange(len(base)), base, threads=1)
    path = str(where / "x.usearch")
    index.save(path)
    built = time.process_time() - began
    there = USearch.restore(path, view=True)
    there.expansion_search = 40
    told = cold(
        lambda q: there.search(q, 10, threads=1).keys.astype(np.int64), [path], queries[:30], wanted[:30]
    )
    yield (
        "usearch view, ef 40",
        {**told, "files": Path(path).stat().st_size / base.nbytes, "build_cpu_s": built},
    )


def in_memory(
    base: np.ndarray, queries: np.ndarray, wanted: np.ndarray
) -> dict[str, tuple[Callable[[np.ndarray], Any], float]]:
    """Each at the first setting that finds .95 of the ten nearest, and its share of the vectors' bytes."""
    faiss.omp_set_num_threads(1)
    dim, out = base.shape[1], {}
    fine = dim - dim % 2

    def settled(
        name: str, index: Any, knob: Callable[[int], Any], steps: tuple[int, ...], search: Any
    ) -> None:
        for step in steps:
            knob(step)
            found = search(queries[:300])
            share = np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted[:300], strict=True)])
            if share >= 0.95:
                break
        size = index if isinstance(index, float) else faiss.serialize_index(index).nbytes / base.nbytes
        out[f"{name}, {step}"] = (search, size)

    steps = (8, 12, 16, 24, 32, 36, 40, 48, 64, 80, 96, 128, 256)
    for name, factory in {
        "faiss IVF1024,Flat": f"IVF{LISTS},Flat", "faiss IVF1024,SQ8": f"IVF{LISTS},SQ8",
        "faiss IVF1024,PQfs + refine": f"IVF{LISTS},PQ{fine // 2}x4fs,RFlat",
    }.items():  # fmt: skip
        index = faiss.index_factory(dim, factory)
        index.train(base)
        index.add(base)
        inner = faiss.extract_index_ivf(index)
        if hasattr(index, "k_factor"):
            index.k_factor = 10
        settled(
            name,
            index,
            lambda n, i=inner: setattr(i, "nprobe", n),
            steps,
            lambda q, i=index: i.search(q, 10)[1],
        )
    graph = faiss.IndexHNSWFlat(dim, 16)
    graph.hnsw.efConstruction = 100
    graph.add(base)
    settled(
        "faiss HNSW16",
        graph,
        lambda n: setattr(graph.hnsw, "efSearch", n),
        steps,
        lambda q: graph.search(q, 10)[1],
    )
    other = hnswlib.Index("l2", dim)
    other.init_index(len(base), M=16, ef_construction=100)
    other.set_num_threads(1)
    other.add_items(base)
    with tempfile.NamedTemporaryFile() as file:
        other.save_index(file.name)
        size = Path(file.name).stat().st_size / base.nbytes
    settled("hnswlib M16", size, other.set_ef, steps, lambda q: other.knn_query(q, 10, num_threads=1)[0])
    return out
