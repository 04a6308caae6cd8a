"""Data of the vectors benchmarks, and what a query costs on a disk that has nothing in memory yet."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

LIBC, _DONTNEED = ctypes.CDLL(None, use_errno=True), 4
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "vectors"


def load(name: str, glove: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(vectors float32 [N, D], queries [Q, D], rows of the ten nearest [Q, 10]).

    sift: 110,000 descriptors of 800 photographs, queries of 50 others. glove: word vectors of length one, queries held
    out: the 20,000 commonest, or all of a .npy. tokens: SmolLM2's token embeddings, centred, queries held out.
    """
    draw = np.random.default_rng(0)
    if name == "sift":
        base = np.load(SHARED / "sift_base.npy").astype(np.float32)
        asked = np.load(SHARED / "sift_query.npy").astype(np.float32)
        return base, asked, np.load(SHARED / "sift_gt100.npy")[:, :10]
    if name == "glove":
        x = np.load(glove or SHARED / "glove100.npy").astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    else:
        from holdall.weights import Model

        x = Model.read("smollm2").state["model.embed_tokens.weight"].float().numpy()
        x = x - x.mean(0)
    from holdall.vectors.metrics import nearest

    x = x[draw.permutation(len(x))]
    base, asked = np.ascontiguousarray(x[1000:]), np.ascontiguousarray(x[:1000])
    return base, asked, nearest(asked, base, 10, "l2")[1]


def spectrum(count: int, seed: int = 0) -> np.ndarray:
    """float32 [count, 96], generated: 20,000 middles with the spectrum and the spread of SIFT's first 96 directions."""
    base = np.load(SHARED / "sift_base.npy").astype(np.float32)
    base -= base.mean(0)
    values, _ = np.linalg.eigh(base.T @ base / len(base))
    scale = np.sqrt(values[::-1][:96]).astype(np.float32)
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(20_000, 96)).astype(np.float32) * scale
    out = np.empty((count, 96), np.float32)
    for first in range(0, count, 100_000):
        some = slice(first, min(count, first + 100_000))
        size = some.stop - first
        out[some] = 0.7 * middles[draw.integers(0, 20_000, size)]
        out[some] += 0.7 * scale * draw.standard_normal((size, 96), dtype=np.float32)
    return out


def evict(paths: Iterable[str]) -> None:
    """Take files out of the page cache, and out of what maps them into this process."""
    paths = set(paths)
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, path = line.split(maxsplit=5)
        if path in paths:
            first, last = (int(b, 16) for b in bounds.split("-"))
            if LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED):
                raise OSError(ctypes.get_errno(), f"madvise of {path}")
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def device_bytes() -> int:
    """Bytes that this process has had read from a device."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"])


def anonymous() -> int:
    """Bytes of memory that belong to no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous"))


def cold(
    act: Callable[[np.ndarray], np.ndarray], files: Iterable[str], queries: np.ndarray, wanted: np.ndarray
) -> dict[str, float]:
    """Each query by itself, everything taken out of the page cache before: recall@10, kB from the device, CPU, wall."""
    files = list(files)
    for query in queries[:3]:
        act(query)
    os.sync()
    read, cpu, walls, hits = 0, 0.0, [], 0.0
    for query, rows in zip(queries, wanted, strict=True):
        evict(files)
        before, started, clock = device_bytes(), time.process_time(), time.perf_counter()
        found = act(query)
        walls.append(time.perf_counter() - clock)
        cpu += time.process_time() - started
        read += device_bytes() - before
        hits += len(set(found[:10].tolist()) & set(rows.tolist())) / 10
    p50, p99 = np.percentile(walls, [50, 99]) * 1e3
    return {
        "recall": hits / len(queries), "device_kb": read / len(queries) / 1e3, "cpu_ms": cpu / len(queries) * 1e3,
        "p50_ms": float(p50), "p99_ms": float(p99),
    }  # fmt: skip


def apart(script: str, *words: Any) -> str:
    """What a Python process of its own prints: what it holds is its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout
