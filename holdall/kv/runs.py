"""Cutting a row of tokens into runs of neighbours whose keys look alike: as many runs as there is room for."""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

STEPS = 20  # of the binary search


@njit(cache=True)
def cut(
    alike: Floats, alone: Flags, shown: Flags, room: int, longest: int, eps: float
) -> tuple[Ints, Floats]:
    """For each token of each row the number of its run, and each row's threshold.

    alike [R, T-1]: how alike a token and the next are; alone [R, T]: tokens that share a run with none; shown [R, T]:
    others belong to no run (-1). A row gets `room` runs, or as many as it has tokens. Scanning from the last token to
    the first, a run grows while neighbours are at least as alike as eps, up to `longest` tokens (more, where the room
    asks for it). eps NaN: searched, the largest that needs no more runs than there is room for. Then, to the very
    number: the longest run is split at its weakest link, or the two shortest neighbours are joined. room 0: as many
    runs as eps makes.
    """
    rows, tokens = alone.shape
    runs = np.full((rows, tokens), -1, np.int64)
    found = np.zeros(rows, np.float32)
    for row in range(rows):
        at = np.flatnonzero(shown[row])
        n = len(at)
        if n == 0:
            continue
        link = np.empty(max(0, n - 1), np.float64)  # -inf: must be cut
        for i in range(n - 1):
            apart = alone[row, at[i]] or alone[row, at[i + 1]]
            link[i] = -np.inf if apart else (alike[row, at[i]] if at[i + 1] == at[i] + 1 else 0.0)
        most, target, limit = longest, min(room, n), eps
        while room and most < n and _scan(link, -2.0, most, np.zeros(n, np.bool_)) > target:
            most = min(n, most + max(1, most // 4))
        if np.isnan(eps):
            limit = _searched(link, target, most)
        first = np.zeros(n, np.bool_)  # where runs begin
        count = _scan(link, limit, most, first)
        found[row] = limit
        while room and count < target:
            _split(link, first)
            count += 1
        while room and count > target:
            if not _join(link, first):
                break
            count -= 1
        run = -1
        for i in range(n):
            run += first[i]
            runs[row, at[i]] = run
    return runs, found


@njit(cache=True)
def _scan(link: NDArray[np.float64], eps: float, longest: int, first: Flags) -> int:
    """Marks where runs begin; returns how many there are."""
    size, count = 1, 1
    first[:] = False
    for i in range(len(link) - 1, -1, -1):
        if link[i] >= eps and size < longest:
            size += 1
        else:
            first[i + 1] = True
            count, size = count + 1, 1
    first[0] = True
    return count


@njit(cache=True)
def _searched(link: NDArray[np.float64], target: int, longest: int) -> float:
    low, high = -2.0, 1.0 + 1e-6
    first = np.zeros(len(link) + 1, np.bool_)
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _scan(link, middle, longest, first) > target:
            high = middle
        else:
            low = middle
    return low


@njit(cache=True)
def _split(link: NDArray[np.float64], first: Flags) -> None:
    """Cuts the longest run (the first of these) at its weakest link, the nearest to its middle of these."""
    n, start, best, size = len(first), 0, 0, 0
    for i in range(1, n + 1):
        if i == n or first[i]:
            if i - start > size:
                best, size = start, i - start
            start = i
    weakest, middle = best + 1, best + size / 2
    for i in range(best + 1, best + size):
        weaker = link[i - 1] < link[weakest - 1]
        if weaker or (link[i - 1] == link[weakest - 1] and abs(i - middle) < abs(weakest - middle)):
            weakest = i
    first[weakest] = True


@njit(cache=True)
def _join(link: NDArray[np.float64], first: Flags) -> bool:
    """Joins the two neighbours that are shortest together (the most alike of these); False where none may be joined."""
    n, best, size = len(first), -1, 0
    before, start = -1, 0  # of the last two runs
    for i in range(1, n + 1):
        if i == n or first[i]:
            if before >= 0 and link[start - 1] > -np.inf:
                both = i - before
                if best < 0 or both < size or (both == size and link[start - 1] > link[best - 1]):
                    best, size = start, both
            before, start = start, i
    if best >= 0:
        first[best] = False
    return best >= 0


def naive_cut(
    alike: Floats, alone: Flags, shown: Flags, room: int, longest: int, eps: float
) -> tuple[Ints, Floats]:
    """`cut`, with lists of lists."""
    runs, found = np.full(alone.shape, -1, np.int64), np.zeros(len(alone), np.float32)
    for row in range(len(alone)):
        tokens = [int(t) for t in np.flatnonzero(shown[row])]
        if not tokens:
            continue
        links = {}
        for a, b in itertools.pairwise(tokens):
            near = float(alike[row, a]) if b == a + 1 else 0.0
            links[b] = -np.inf if alone[row, a] or alone[row, b] else near
        made, found[row] = _naive_row(tokens, links, room, longest, eps)
        for number, run in enumerate(made):
            runs[row, run] = number
    return runs, found


def _naive_row(
    tokens: list[int], links: dict[int, float], room: int, longest: int, eps: float
) -> tuple[list[list[int]], float]:
    target = min(room, len(tokens))
    while room and longest < len(tokens) and len(_naive_scan(tokens, links, -2.0, longest)) > target:
        longest = min(len(tokens), longest + max(1, longest // 4))
    if np.isnan(eps):
        eps, high = -2.0, 1.0 + 1e-6
        for _ in range(STEPS):
            middle = (eps + high) / 2
            if len(_naive_scan(tokens, links, middle, longest)) > target:
                high = middle
            else:
                eps = middle
    made = _naive_scan(tokens, links, eps, longest)
    while room and len(made) < target:
        i = max(range(len(made)), key=lambda i: (len(made[i]), -i))
        run = made[i]
        at = min(range(1, len(run)), key=lambda j: (links[run[j]], abs(j - len(run) / 2), j))
        made[i : i + 1] = [run[:at], run[at:]]
    while room and len(made) > target:
        pairs = [i for i in range(1, len(made)) if links[made[i][0]] > -np.inf]
        if not pairs:
            break
        i = min(pairs, key=lambda i: (len(made[i - 1]) + len(made[i]), -links[made[i][0]], i))
        made[i - 1 : i + 1] = [made[i - 1] + made[i]]
    return made, eps


def _naive_scan(tokens: list[int], links: dict[int, float], eps: float, longest: int) -> list[list[int]]:
    made = [[tokens[-1]]]
    for t in reversed(tokens[:-1]):
        if links[made[0][0]] >= eps and len(made[0]) < longest:
            made[0].insert(0, t)
        else:
            made.insert(0, [t])
    return made
