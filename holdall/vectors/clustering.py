"""A tree over vectors by balanced k-means, and which of them are heads (SPANN's build, as SPTAG does it).

Every vector is one node: a set's node is the vector nearest to its middle, the others are split into up to `branches`
sets of about equal size, and so on; in sets of up to `leaf` vectors all the others are the node's children.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from holdall.parts.codebook import assigned

_SAMPLE = 1000  # vectors of a set that its clustering looks at
_ROUNDS, _PATIENCE, _STILL = 30, 5, 1e-3
# of balance, in mean squared distances a mean cluster size; the most even one is kept
_WEIGHTS = (0.05, 0.3, 1.0)


def balanced(x: np.ndarray, k: int, seed: int, weights: tuple[float, ...] = _WEIGHTS) -> np.ndarray:
    """Centroids [<= k, D] of x [N, D] whose clusters are of about equal size; x is float32.

    Assigned is where squared distance + weight * size of the cluster is least; sizes are those of the rounds before, of
    which the last counts for three tenths: else all leave a large cluster at once. One that got nothing goes to the
    farthest vector of the largest one. Of some weights the one whose clusters are most even by distance alone is kept.
    """
    draw = np.random.default_rng(seed)
    some = x if len(x) <= _SAMPLE else x[np.sort(draw.choice(len(x), _SAMPLE, replace=False))]
    starts = [some[draw.choice(len(some), min(k, len(some)), replace=False)] for _ in range(3)]
    first = min(starts, key=lambda c: float(_squares(some, c).min(1).sum()))
    found = [_settled(some, first.copy(), w) for w in weights]
    return min(found, key=lambda f: f[1])[0]


def _settled(x: np.ndarray, centroids: np.ndarray, weight: float) -> tuple[np.ndarray, float]:
    """(centroids, the spread of what they get by distance alone)."""
    k = len(centroids)
    counts, best, stale = np.full(k, len(x) / k), np.inf, 0
    for _ in range(_ROUNDS):
        squares = _squares(x, centroids)
        scale = weight * float(squares.min(1).mean()) / (len(x) / k)
        owners = (squares + scale * counts).argmin(1)
        counts = 0.7 * counts + 0.3 * np.bincount(owners, minlength=k)
        cost = float(squares[np.arange(len(x)), owners].sum() + scale * np.square(counts).sum())
        new = _means(x, owners, centroids, squares)
        moved = float(np.square(new - centroids).sum(1).max())
        centroids = new
        stale = 0 if cost < best else stale + 1
        best = min(best, cost)
        if moved < _STILL * float(squares.min(1).mean()) or stale >= _PATIENCE:
            break
    sizes = np.bincount(_squares(x, centroids).argmin(1), minlength=k)
    return centroids, float(sizes.std())


def _means(x: np.ndarray, owners: np.ndarray, centroids: np.ndarray, squares: np.ndarray) -> np.ndarray:
    k = len(centroids)
    counts = np.bincount(owners, minlength=k)
    mine = np.zeros((k, len(x)), np.float32)
    mine[owners, np.arange(len(x))] = 1
    sums = mine @ x
    new = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    empty, largest = np.flatnonzero(counts == 0), int(counts.argmax())
    if len(empty):
        crowd = np.flatnonzero(owners == largest)
        far = crowd[np.argsort(-squares[crowd, largest], kind="stable")[: len(empty)]]
        new[empty[: len(far)]] = x[far]
    return new


def _squares(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances [N, k]."""
    found = np.square(x).sum(1)[:, None] - 2 * (x @ centroids.T) + np.square(centroids).sum(1)
    return np.maximum(found, 0, out=found)


@dataclass(frozen=True)
class Tree:
    """parents int64 [N]: each vector's node above, -1 of the root; order: all vectors, each after its parent."""

    parents: np.ndarray
    order: np.ndarray

    def heads(
        self, ratio: float, *, select: int | None = None, split: int | None = None, factor: int = 5
    ) -> np.ndarray:
        """Rows that are heads, rising: about `ratio` of all. With select and split given, those that they select.

        From the leaves up, a node's size is one more than what children that are no heads pass on. One of `select` or
        more is a head, passes on nothing, and of more than `split` its ceil(size / factor) largest children are, too.
        """
        if select is not None and split is not None:
            return np.flatnonzero(self._selected(select, split, factor))
        wanted, found = ratio * len(self.parents), np.zeros(0, np.int64)
        for low in range(2, 7):
            least, most = low, max(low, len(self.parents))
            while least <= most:  # a larger split selects fewer
                middle = (least + most) // 2
                mine = np.flatnonzero(self._selected(low, middle, factor))
                if not len(found) or abs(len(mine) - wanted) < abs(len(found) - wanted):
                    found = mine
                if len(mine) > wanted:
                    least = middle + 1
                else:
                    most = middle - 1
        return found

    def _selected(self, select: int, split: int, factor: int) -> np.ndarray:
        head = np.zeros(len(self.parents), np.bool_)
        _select(self.parents, self.order, *self._children, select, split, factor, head)
        return head

    @cached_property
    def _children(self) -> tuple[np.ndarray, np.ndarray]:
        """(children of all nodes, where those of each node begin [N + 1])."""
        rows = np.argsort(self.parents, kind="stable")
        return rows, np.searchsorted(self.parents[rows], np.arange(len(rows) + 1))


@njit(cache=True)
def _select(parents, order, children, starts, select, split, factor, head):  # type: ignore[no-untyped-def]
    """Marks heads; `Tree.heads` says which."""
    sizes = np.ones(len(parents), np.int64)
    for at in range(len(order) - 1, -1, -1):
        node = order[at]
        if sizes[node] < select:
            if parents[node] >= 0:
                sizes[parents[node]] += sizes[node]
            continue
        head[node] = True
        if sizes[node] <= split:
            continue
        below = children[starts[node] : starts[node + 1]]
        largest = np.argsort(-sizes[below], kind="mergesort")
        for j in largest[: -(-sizes[node] // factor)]:
            head[below[j]] = True


def tree(x: np.ndarray, *, branches: int = 32, leaf: int = 8, seed: int = 0) -> Tree:
    """Of vectors [N, D], float32, N at least 1."""
    parents, order = np.full(len(x), -1), []
    work: list[tuple[np.ndarray, int]] = [(np.arange(len(x)), -1)]
    while work:
        rows, parent = work.pop()
        middle = rows[np.square(x[rows] - x[rows].mean(0)).sum(1).argmin()]
        parents[middle] = parent
        order.append(int(middle))
        rest = rows[rows != middle]
        if len(rest) <= leaf:
            parents[rest] = middle
            order += rest.tolist()
            continue
        owners = assigned(x[rest], balanced(x[rest], branches, seed + len(order)))
        parts = [p for c in range(branches) if len(p := rest[owners == c])]
        if len(parts) == 1:  # all the same: cut anyhow
            parts = np.array_split(rest, min(branches, len(rest)))
        work += [(p, int(middle)) for p in parts]
    return Tree(parents, np.array(order, np.int64))
