"""What keeping m numbers of n costs an inner product: pruning at random, pruning by size, and sharing.

x and y stand for weights and inputs. A shared x is a sketch: sum of sign * x over the entries that read the same place.
Errors are of the estimate of <x, y>, squared and averaged over what is drawn.
"""

from __future__ import annotations

import numpy as np

from holdall.errors import BadInput


def pruning_variance(x: np.ndarray, y: np.ndarray, m: int) -> float:
    """Each coordinate is kept with probability m / n, and what is kept is scaled by n / m: unbiased."""
    x, y = _pair(x, y, m)
    return float((len(x) / m - 1) * np.sum(x**2 * y**2))


def sharing_variance(x: np.ndarray, y: np.ndarray, m: int) -> float:
    """Each coordinate has a place of its own choice and a sign (HashedNet; a count sketch): unbiased."""
    x, y = _pair(x, y, m)
    return float((np.sum(x**2) * np.sum(y**2) + np.dot(x, y) ** 2 - 2 * np.sum(x**2 * y**2)) / m)


def fold_variance(x: np.ndarray, y: np.ndarray, m: int, chunk: int = 1) -> float:
    """RANDOMFOLD by permutations of chunks with a sign each: no two coordinates of a slice of m meet.

    Chunks A, B of different slices meet with probability chunk / m, and then add <x_A, y_B> + <x_B, y_A>, signed.
    """
    x, y = _pair(x, y, m)
    if m % chunk:
        raise BadInput("chunk", str(chunk), f"a divisor of {m}")
    short = -len(x) % m
    xs, ys = (np.pad(v, (0, short)).reshape(-1, m // chunk, chunk) for v in (x, y))
    total = 0.0
    for p in range(len(xs)):
        for q in range(p):
            total += float(np.sum((xs[p] @ ys[q].T + ys[p] @ xs[q].T) ** 2))
    return total * chunk / m


def magnitude_error(x: np.ndarray, y: np.ndarray, m: int) -> float:
    """The m coordinates with the largest |x| are kept: nothing is drawn, so this is the bias, squared."""
    x, y = _pair(x, y, m)
    gone = np.argsort(-np.abs(x), kind="stable")[m:]
    return float(np.dot(x[gone], y[gone]) ** 2)


def crossover(x: np.ndarray, y: np.ndarray) -> tuple[int, int]:
    """The least and the largest m at which sharing errs less than keeping the largest; (0, 0) where it never does.

    Above, what pruning drops of a peaked vector is nothing; below, a handful of numbers says more as it is.
    """
    x, y = _pair(x, y, 1)
    order = np.argsort(-np.abs(x), kind="stable")
    left = np.dot(x, y) - np.cumsum((x * y)[order])  # at m = 1, 2, ...
    shared = sharing_variance(x, y, 1) / np.arange(1, len(x) + 1)
    wins = np.flatnonzero(shared < left**2) + 1
    return (int(wins[0]), int(wins[-1])) if len(wins) else (0, 0)


def _pair(x: np.ndarray, y: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape or not 0 < m <= max(len(x), 1):
        raise BadInput(
            "x, y, m", f"{x.shape}, {y.shape}, {m}", "two vectors of one length, and 1 to that many"
        )
    return x, y
