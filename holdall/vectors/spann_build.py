"""SPANN's build: a tree, heads, closure, lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.vectors.closure import closure
from holdall.vectors.clustering import tree
from holdall.vectors.heads import Heads
from holdall.vectors.lists import Lists
from holdall.vectors.metrics import ready

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.shelf import Given, State
    from holdall.vectors.spann import SPANN

_CANDIDATES = 64  # heads that a vector may choose its lists from
_BLOCK = 4096


def placed(x: np.ndarray, metric: str, reach: float, query: bool = False) -> np.ndarray:
    """Where Euclidean distance ranks as the metric does: float32 [N, D], or [N, D + 1] for inner products."""
    found = ready(x, metric)
    if metric != "ip":
        return found
    more = np.zeros((len(found), 1), np.float32)
    if not query:
        more[:, 0] = np.sqrt(np.maximum(reach**2 - np.square(found).sum(1), 0))
    return np.hstack([found, more])


def owned(recipe: SPANN, index: Heads, heads: np.ndarray, x: np.ndarray) -> np.ndarray:
    """int32 [N, replicas]: the lists that placed vectors go into, -1 behind the last."""
    owners = np.empty((len(x), recipe.replicas), np.int32)
    for first in range(0, len(x), _BLOCK):
        some, mine = x[first : first + _BLOCK], owners[first : first + _BLOCK]
        _, near = index.nearest(some, _CANDIDATES)
        closure(
            some, heads, near, recipe.replicas, np.float32(recipe.slack), recipe.apart, mine, 0, len(some)
        )
    return owners


def cap_of(recipe: SPANN, dim: int, dtype: np.dtype[Any]) -> int:
    """Vectors of the longest list."""
    most = recipe.list_bytes or (12 << 10 if dtype.itemsize == 1 else 48 << 10)
    return max(2, most // (4 + dim * dtype.itemsize))


def built(recipe: SPANN, change: Change, given: Given, heads: int) -> State:
    vectors = given.vectors
    raw = vectors.read(0, vectors.count)
    reach = float(np.sqrt(np.square(raw.astype(np.float64)).sum(1).max()))
    x = placed(raw, recipe.metric, reach)
    which = tree(x, branches=recipe.branches, leaf=recipe.leaf, seed=recipe.seed).heads(heads / len(x))
    which = which if len(which) else np.zeros(1, np.int64)
    if len(which) > heads:
        which = which[np.sort(np.random.default_rng(recipe.seed).choice(len(which), heads, replace=False))]
    made = Heads.sections(x[which], raw.dtype == np.uint8 and recipe.metric == "l2", recipe.seed)
    exact = Heads.decoded(made)
    owners = owned(recipe, Heads(made), exact, x)
    spacing = float(np.square(x - exact[owners[:, 0]]).sum(1).mean())
    lists = capped(x, exact, owners, len(which), cap_of(recipe, vectors.dim, raw.dtype))
    written = Lists.write(change, "lists-1", vectors.dim, raw.dtype, ((rows, raw[rows]) for rows in lists))
    told = {
        "lists": written.to_meta(),
        "reach": reach,
        "stored": vectors.count,
        "clean": 0,
        "spacing": spacing,
        "share": len(which) / len(x),
    }
    return {**made, **written.sections()}, told


def capped(x: np.ndarray, heads: np.ndarray, owners: np.ndarray, count: int, cap: int) -> list[np.ndarray]:
    """Rows of each list, the nearest first, at most `cap`; a row that would be nowhere stays all the same.

    Of a list that is too long those go first that are in another one too, the farthest of them.
    """
    rows, place = np.nonzero(owners >= 0)
    mine = owners[rows, place]
    copies = (owners >= 0).sum(1)
    order = np.argsort(mine, kind="stable")
    ends = np.searchsorted(mine[order], np.arange(count + 1))
    found = []
    for at in range(count):
        some = rows[order[ends[at] : ends[at + 1]]]
        away = np.square(x[some] - heads[at]).sum(1)
        if len(some) > cap:
            first = np.lexsort((away, copies[some] > 1))
            cut = first[cap:]
            cut = cut[copies[some[cut]] > 1]
            copies[some[cut]] -= 1
            stay = np.setdiff1d(np.arange(len(some)), cut)
            some, away = some[stay], away[stay]
        found.append(some[np.argsort(away, kind="stable")])
    return found
