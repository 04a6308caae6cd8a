"""Shortlists: the rows of each tenant in the order of leaves, cut where nodes of the tree hold them.

A tenant's list at a node is a stretch of its rows, so pushing a list down to the children is cutting it, and merging
lists up is forgetting the cuts. Every row of a tenant is in one list, at its leaf or above; a list above the leaves
has at most `most` rows, and below a node with a list there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numba import njit

from holdall.vectors.curator_kernels import place


class Own(NamedTuple):
    """What one tenant has. ids int32 [n], in the order of (leaf, row); nodes int32 [f], rising, that have lists, and
    where in ids each begins, int32 [f]."""

    ids: np.ndarray
    nodes: np.ndarray
    firsts: np.ndarray


NOTHING = Own(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclass(frozen=True)
class Lists:
    """Of all tenants, one behind the other: starts int64 [T + 1] in ids, spans int64 [T + 1] in nodes and firsts."""

    ids: np.ndarray
    starts: np.ndarray
    nodes: np.ndarray
    firsts: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, owns: list[Own]) -> Self:
        def joined(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([np.zeros(0, np.int32), *parts])

        def ends(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)

        ids, nodes, firsts = ([o[i] for o in owns] for i in range(3))
        return cls(joined(ids), ends(ids), joined(nodes), joined(firsts), ends(nodes))

    @property
    def count(self) -> int:
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.ids, self.starts, self.nodes, self.firsts, self.spans

    def own(self, which: int) -> Own:
        some = slice(*self.spans[which : which + 2])
        return Own(self.ids[slice(*self.starts[which : which + 2])], self.nodes[some], self.firsts[some])

    def but(self, changed: dict[int, Own]) -> Self:
        """With some tenants' rows in place of what they were; numbers from `count` on are new ones."""
        cuts, parts = sorted(changed), []
        before = 0
        for which in cuts:
            parts += [self._run(before, which), [changed[which]]]
            before = which + 1
        parts.append(self._run(before, self.count))
        runs = [o for part in parts for o in part]
        lens = [np.diff(self.starts), np.diff(self.spans)]
        more = max(cuts[-1] + 1 - self.count, 0) if cuts else 0
        sizes = [np.concatenate([n, np.zeros(more, np.int64)]) for n in lens]
        for which in cuts:
            sizes[0][which], sizes[1][which] = len(changed[which].ids), len(changed[which].nodes)
        starts, spans = (np.concatenate([[0], np.cumsum(s)]).astype(np.int64) for s in sizes)
        flat = Lists.of(runs)
        return type(self)(flat.ids, starts, flat.nodes, flat.firsts, spans)

    def _run(self, first: int, last: int) -> list[Own]:
        """Neighbours as if they were one."""
        last = min(last, self.count)
        if first >= last:
            return []
        some = slice(self.spans[first], self.spans[last])
        return [Own(self.ids[self.starts[first] : self.starts[last]], self.nodes[some], self.firsts[some])]


@njit(nogil=True, cache=True)
def _merged(ids, more, leaves):  # type: ignore[no-untyped-def]
    """(both in the order of (leaf, row); how many of `more` stand before each place)."""
    both, news = np.empty(len(ids) + len(more), np.int32), np.zeros(len(ids) + len(more) + 1, np.int32)
    a, b = 0, 0
    for i in range(len(both)):
        mine = b == len(more) or (
            a < len(ids)
            and (leaves[ids[a]] < leaves[more[b]] or (leaves[ids[a]] == leaves[more[b]] and ids[a] < more[b]))
        )
        if mine:
            both[i] = ids[a]
            a += 1
        else:
            both[i] = more[b]
            b += 1
        news[i + 1] = b
    return both, news


@njit(nogil=True, cache=True)
def _until(ids, leaves, first, last, end):  # type: ignore[no-untyped-def]
    """Where in ids[first:last] the leaves from `end` on begin."""
    while first < last:
        middle = (first + last) // 2
        if leaves[ids[middle]] < end:
            first = middle + 1
        else:
            last = middle
    return first


@njit(nogil=True, cache=True)
def granted(ids, nodes, firsts, more, leaves, ends, most):  # type: ignore[no-untyped-def]
    """A tenant's (ids, nodes, firsts) with `more` rows, which it does not have yet, in the order of (leaf, row).

    A row goes to the list on its way down; without one, to the first node with no list at it or below. A list above a
    leaf that has become longer than `most` is pushed down.
    """
    both, news = _merged(ids, more, leaves)
    made, begins, count = np.empty(len(both), np.int32), np.empty(len(both), np.int32), 0
    stack, open_ = (
        np.zeros((len(ends) + 1, 4), np.int32),
        1,
    )  # node, its rows from and to, whether they are pushed
    stack[0, 2] = len(both)
    while open_:
        open_ -= 1
        node, low, high, pushed = stack[open_, 0], stack[open_, 1], stack[open_, 2], stack[open_, 3] == 1
        leaf = ends[node] == node + 1
        at = place(nodes, 0, len(nodes), node)
        if not pushed:
            if news[high] == news[low]:  # nothing new here: as it was
                while at < len(nodes) and nodes[at] < ends[node]:
                    made[count], begins[count] = nodes[at], firsts[at] + news[low]
                    count, at = count + 1, at + 1
                continue
            pushed = at == len(nodes) or nodes[at] == node or nodes[at] >= ends[node]
        if leaf or (pushed and high - low <= most):
            made[count], begins[count] = node, low
            count += 1
            continue
        child, first = node + 1, open_
        while child < ends[node]:
            cut = _until(both, leaves, low, high, ends[child])
            if cut > low:
                stack[open_, 0], stack[open_, 1], stack[open_, 2], stack[open_, 3] = child, low, cut, pushed
                open_ += 1
            low, child = cut, ends[child]
        stack[first:open_] = stack[first:open_][::-1].copy()  # the first child comes off first
    return both, made[:count].copy(), begins[:count].copy()


@njit(nogil=True, cache=True)
def revoked(ids, nodes, firsts, gone, parents, ends, most):  # type: ignore[no-untyped-def]
    """A tenant's (ids, nodes, firsts) without the rows where `gone`; empty lists go. Where all that is left below a
    node are lists of its children, of `most` rows together, they are merged into one at the node, and so on upward."""
    kept = np.empty(len(ids), np.int32)
    made, begins = np.empty(len(nodes) + 1, np.int32), np.empty(len(nodes) + 1, np.int32)
    above, shrunk, rows, count = np.empty(len(nodes), np.int32), 0, 0, 0
    for at in range(len(nodes)):
        first, last = rows, firsts[at + 1] if at + 1 < len(nodes) else len(ids)
        for i in range(firsts[at], last):
            if not gone[i]:
                kept[rows] = ids[i]
                rows += 1
        if rows - first < last - firsts[at]:
            above[shrunk] = parents[nodes[at]]
            shrunk += 1
        if rows > first:
            made[count], begins[count] = nodes[at], first
            count += 1
    for i in range(shrunk):
        node = above[i]
        while node >= 0:
            low, high = place(made, 0, count, node), place(made, 0, count, ends[node])
            total = (begins[high] if high < count else rows) - begins[low] if high > low else 0
            flat = total > 0 and total <= most
            for j in range(low, high):
                flat = flat and parents[made[j]] == node
            if total > 0 and not flat:
                break
            if flat:
                made[low] = node
                for j in range(high, count):
                    made[low + 1 + j - high], begins[low + 1 + j - high] = made[j], begins[j]
                count -= high - low - 1
            node = parents[node]
    return kept[:rows].copy(), made[:count].copy(), begins[:count].copy()
