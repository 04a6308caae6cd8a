"""numba kernels that read a shared array as weights, and add the weights' gradients to it.

The slow truth is `sharing_map.naive_places`. Hashes are computed as they are needed: per weight where a map scatters
single weights, else per chunk, so that most of the work is plain copying with a factor.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.weights.sharing_map import Map, Segment

_PERMUTE, _SHIFT, _FREE = range(3)  # the last: each chunk starts where its own hash says
_ADD, _MUL, _MUL2 = (np.uint64(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_27, _30, _31, _32, _ONE = (np.uint64(v) for v in (27, 30, 31, 32, 1))

# keys of places and signs, code, size, chunk, base
Spot = tuple[np.uint64, np.uint64, int, int, int, int]
# slice, position in it, chunk, position in that, the slice's key
State = tuple[int, int, int, int, np.uint64]


def spot(m: Map, segment: Segment) -> Spot:
    """What the kernels have to know of a map and a segment."""
    place, sign = m.keys
    base, size = (segment.base, segment.size) if m.kind == "local" else (0, m.params)
    chunk = 1 if m.kind in ("hashed", "local") else m.chunk
    code = {"permute": _PERMUTE, "shift": _SHIFT}.get(m.kind, _FREE)
    return np.uint64(place), np.uint64(sign), code, size, chunk, base


@njit(inline="always")
def _hash(key, x):  # type: ignore[no-untyped-def]
    z = (np.uint64(x) + _ONE) * _ADD + key
    z = (z ^ (z >> _30)) * _MUL
    z = (z ^ (z >> _27)) * _MUL2
    return z ^ (z >> _31)


@njit(inline="always")
def _below(h, count):  # type: ignore[no-untyped-def]
    return np.int64(((h >> _32) * np.uint64(count)) >> _32)


@njit(cache=True, nogil=True)
def _permuted(key: np.uint64, c: int, count: int) -> int:
    low = 0
    while (1 << low) < count:
        low += 1
    high, low = low - low // 2, low // 2
    left, right = np.uint64((1 << high) - 1), np.uint64((1 << low) - 1)
    out = np.uint64(c)
    while True:
        a, b = out >> np.uint64(low), out & right
        a ^= _hash(key, b << np.uint64(2)) & left
        b ^= _hash(key, (a << np.uint64(2)) + np.uint64(1)) & right
        a ^= _hash(key, (b << np.uint64(2)) + np.uint64(2)) & left
        b ^= _hash(key, (a << np.uint64(2)) + np.uint64(3)) & right
        out = (a << np.uint64(low)) | b
        if out < np.uint64(count):
            return int(out)


@njit(cache=True, nogil=True, error_model="numpy")
def _begin(at: Spot, j: int) -> State:
    place, _, code, size, chunk, _ = at
    fold = 0 if code == _FREE else j // size
    o = j - fold * size
    c = o // chunk
    return fold, o, c, o - c * chunk, _hash(place, fold)


@njit(inline="always", error_model="numpy")
def _run(at, state):  # type: ignore[no-untyped-def]
    """(index into psi, how many weights follow each other there, their sign)."""
    place, sign, code, size, chunk, base = at
    fold, o, c, inside, key = state
    long, of = chunk - inside, c
    if code == _FREE:
        index = base + _below(_hash(place, c), size) + inside
        if index >= base + size:
            index -= size
        long = min(long, base + size - index)
    else:
        full = size // chunk
        of += fold * (full + 1)
        long = min(long, size - o)
        if code == _SHIFT:
            index = o + _below(key, size)
            if index >= size:
                index -= size
            long = min(long, size - index)
        elif c < full:
            index = _permuted(key, c, full) * chunk + inside
        else:
            index = o
    return index, long, np.float32(1) - np.float32(2) * np.float32(_hash(sign, of) & _ONE)


@njit(inline="always")
def _after(at, state, long):  # type: ignore[no-untyped-def]
    place, _, code, size, chunk, _ = at
    fold, o, c, inside, key = state
    o, inside = o + long, inside + long
    if code != _FREE and o == size:
        return fold + 1, 0, 0, 0, _hash(place, fold + 1)
    if inside == chunk:
        c, inside = c + 1, 0
    return fold, o, c, inside, key


@njit(cache=True, nogil=True)
def gather(at: Spot, psi: np.ndarray, scale: np.float32, start: int, out: np.ndarray) -> None:
    """out = the weights at virtual positions from `start` on."""
    done, state = 0, _begin(at, start)
    while done < len(out):
        index, long, sign = _run(at, state)
        long = min(long, len(out) - done)
        for t in range(long):
            out[done + t] = scale * sign * psi[index + t]
        done, state = done + long, _after(at, state, long)


@njit(cache=True, nogil=True)
def scatter(
    at: Spot, into: np.ndarray, gamma: np.ndarray, scale: np.float32, start: int, given: np.ndarray
) -> None:
    """Adds scale * sign * given to `into` where these weights are read, times gamma there if there is one."""
    done, state, scaled = 0, _begin(at, start), len(gamma) > 0
    while done < len(given):
        index, long, sign = _run(at, state)
        long = min(long, len(given) - done)
        if scaled:
            for t in range(long):
                into[index + t] += scale * sign * given[done + t] * gamma[index + t]
        else:
            for t in range(long):
                into[index + t] += scale * sign * given[done + t]
        done, state = done + long, _after(at, state, long)


@njit(cache=True, nogil=True)
def tally(at: Spot, into: np.ndarray, value: float, start: int, count: int) -> None:
    """Adds `value` at every place that weights from `start` on read."""
    done, state = 0, _begin(at, start)
    while done < count:
        index, long, _ = _run(at, state)
        long = min(long, count - done)
        for t in range(long):
            into[index + t] += value
        done, state = done + long, _after(at, state, long)


@njit(cache=True, nogil=True)
def gather_rows(
    at: Spot, psi: np.ndarray, scale: np.float32, start: int, rows: np.ndarray, out: np.ndarray
) -> None:
    """out [N, width] = rows of a table that starts at `start`."""
    for i in range(len(rows)):
        gather(at, psi, scale, start + rows[i] * out.shape[1], out[i])


@njit(cache=True, nogil=True)
def scatter_rows(
    at: Spot,
    into: np.ndarray,
    gamma: np.ndarray,
    scale: np.float32,
    start: int,
    rows: np.ndarray,
    given: np.ndarray,
) -> None:
    """`scatter` of rows [N, width] of a table that starts at `start`."""
    for i in range(len(rows)):
        scatter(at, into, gamma, scale, start + rows[i] * given.shape[1], given[i])
