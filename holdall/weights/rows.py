"""Kernels over the rows of a matrix, shared among threads that sleep, not spin, while they wait.

numba's own parallel loops spin at every barrier: with a thousand small products a token and one busy neighbour on
the machine they were measured 40 times slower than one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

_WORTH = 6_000_000  # signs of a product below which handing rows to another thread costs more than it gains


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="holdall-rows")


def by_rows(kernel: Callable[..., None], rows: int, work: int, *args: Any) -> None:
    """kernel(*args, first, last) over all rows, on as many threads as torch uses where there is enough work.

    work: in signs of a product, the cheapest kernel; the others take about four times as long a sign.
    """
    import torch

    threads = min(torch.get_num_threads(), rows) if work >= _WORTH else 1
    if threads <= 1:
        kernel(*args, 0, rows)
        return
    cuts = [rows * t // threads for t in range(threads + 1)]
    others = [_pool(threads - 1).submit(kernel, *args, *pair) for pair in pairwise(cuts[1:])]
    kernel(*args, cuts[0], cuts[1])
    for other in others:
        other.result()
