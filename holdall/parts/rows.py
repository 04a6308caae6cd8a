"""Kernels over rows (of a matrix, or heads), shared among threads that sleep, not spin, while they wait.

numba's own parallel loops spin at every barrier: with a thousand small products a token and one busy neighbour on
the machine they were measured 40 times slower than one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="holdall-rows")


def by_rows(kernel: Callable[..., None], rows: int, work: float, *args: Any) -> None:
    """kernel(*args, first, last) over all rows, on as many threads as torch uses where there is enough work.

    work: as a multiple of that from which another thread gains more than the handing over costs.
    """
    import torch

    threads = min(torch.get_num_threads(), rows) if work >= 1 else 1
    if threads <= 1:
        kernel(*args, 0, rows)
        return
    cuts = [rows * t // threads for t in range(threads + 1)]
    others = [_pool(threads - 1).submit(kernel, *args, *pair) for pair in pairwise(cuts[1:])]
    kernel(*args, cuts[0], cuts[1])
    for other in others:
        other.result()
