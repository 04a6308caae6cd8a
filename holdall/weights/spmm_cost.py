"""What a sparse 1x1 convolution costs before it is run, and from which sparsity on it beats a dense one.

    t = ceil(P / MR) * sum over groups of rows [NR * V * row + non-zeros * ((V + 1) * load + NR * V * fma)]

with V vectors, MR pixels, in a strip; a strip of Cin * MR floats has to fit the nearest cache. The constants are
measured on this machine once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np

from holdall.weights.sparse_rows import SparseRows
from holdall.weights.spmm import Multiply
from holdall.weights.spmm_kernels import planes
from holdall.weights.spmm_lanes import LANES, VECTORS, vectors


def best(act: Callable[[], None], seconds: float = 2e-3, rounds: int = 5) -> float:
    """CPU seconds of a call, the least of some rounds."""
    act()
    start = time.thread_time()
    act()
    many = max(1, int(seconds / max(time.thread_time() - start, 1e-7)))
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(many):
            act()
        found.append((time.thread_time() - start) / many)
    return min(found)


def nearest_cache() -> int:
    """Bytes of a core's first cache for data; 32 kB where the system does not tell."""
    told = Path("/sys/devices/system/cpu/cpu0/cache/index0/size")
    if told.exists() and told.read_text().strip().endswith("K"):
        return int(told.read_text().strip()[:-1]) << 10
    return 32 << 10


@dataclass(frozen=True)
class Machine:
    """Seconds: `row` for beginning and storing a row's vector, `load` a vector, `fma` a vector's multiply-add."""

    row: float
    load: float
    fma: float
    gemm: float  # floating point operations a second of torch's dense product
    cache: int

    def strip(self, channels: int, nr: int = 1) -> int:
        """Vectors of the widest strip that stays in the nearest cache."""
        for many in vectors(nr):
            if channels * many * LANES * 4 <= self.cache:
                return many
        return VECTORS[-1]

    def seconds(self, rows: SparseRows, pixels: int, many: int) -> float:
        """Of these rows over `pixels`, in strips of `many` vectors."""
        strips = -(-pixels // (many * LANES))
        each = (many + 1) * self.load + rows.nr * many * self.fma  # one more load: the step and the weights
        return strips * (len(rows.counts) * self.row * rows.nr * many + len(rows.columns) * each)

    def dense(self, shape: tuple[int, int], pixels: int) -> float:
        return 2 * shape[0] * shape[1] * pixels / self.gemm

    def crossover(self, shape: tuple[int, int], pixels: int, nr: int = 1) -> float:
        """The sparsity where sparse and dense take the same time; 0 where sparse is always faster, 1 where never."""
        o, i = shape
        many = self.strip(i, nr)
        strips, groups = -(-pixels // (many * LANES)), o // nr
        each = (many + 1) * self.load + nr * many * self.fma
        left = self.dense(shape, pixels) / strips - groups * self.row * nr * many
        return float(np.clip(1 - left / (groups * i * each), 0, 1))


@cache
def machine() -> Machine:
    """Measured now, on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Machine(*_constants(), _gemm(), nearest_cache())
    finally:
        torch.set_num_threads(threads)


def _gemm() -> float:
    import torch

    a, b, out = torch.randn(256, 256), torch.randn(256, 1024), torch.empty(256, 1024)

    def act() -> None:
        torch.mm(a, b, out=out)

    return 2 * 256 * 256 * 1024 / best(act)


def _constants() -> tuple[float, float, float]:
    """Row, load and fma that are nearest to what some small products take, relatively."""
    rng, told, taken = np.random.default_rng(0), [], []
    for nr, many, share in product((1, 4), VECTORS, (0.02, 0.1, 0.3)):
        if many not in vectors(nr):
            continue
        kept = rng.random((128 // nr, 64)) < share
        weight = (rng.normal(size=(128, 64)) * np.repeat(kept, nr, 0)).astype(np.float32)
        rows, pixels = SparseRows.of(weight, np.zeros(128, np.float32), nr), 8 * LANES
        x, out = planes(rng.normal(size=(64, pixels)).astype(np.float32)), planes(np.zeros((128, pixels)))
        multiply = Multiply([rows], x.shape[1], many)
        taken.append(best(partial(multiply, x, out, pixels), 5e-4))
        figures = (
            len(rows.counts) * nr * many,
            len(rows.columns) * (many + 1),
            len(rows.columns) * nr * many,
        )
        told.append([n * (8 // many) for n in figures])
    return _fitted(np.array(told, float), np.array(taken))


def _fitted(told: np.ndarray, taken: np.ndarray) -> tuple[float, float, float]:
    """Constants of at least 0 with the least relative errors, each column left out in turn where it comes out below."""
    found, used = np.zeros(told.shape[1]), list(range(told.shape[1]))
    while used:
        some = np.linalg.lstsq(told[:, used] / taken[:, None], np.ones(len(taken)), rcond=None)[0]
        if (some >= 0).all():
            found[used] = some
            break
        used.pop(int(some.argmin()))
    return float(found[0]), float(found[1]), float(found[2])
