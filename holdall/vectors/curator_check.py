"""Whether a tree, its shortlists and its filters are what they have to be: every invariant, looked at one by one."""

from __future__ import annotations

import numpy as np
from numba import njit

from holdall.vectors.curator_filters import Filters
from holdall.vectors.curator_kernels import has
from holdall.vectors.curator_lists import Lists
from holdall.vectors.curator_tree import Tree

_FAULTS = (
    "", "a list begins where it cannot", "lists of a tenant lie below one another", "a row that there is not",
    "rows out of the order of leaves", "a row outside of its node", "a list that should have been pushed down",
    "a filter that does not know a tenant",
)  # fmt: skip


def fault(
    tree: Tree, leaves: np.ndarray, lists: Lists, filters: Filters, tokens: np.ndarray, most: int
) -> str:
    """What is wrong, "" where nothing is. Each row of a tenant is in exactly one list, at its leaf or above."""
    size, nodes = len(leaves), len(tree.ends)
    whole = lists.count == len(tokens) >= 1 and _rises(lists.starts, len(lists.ids))
    whole = whole and _rises(lists.spans, len(lists.nodes)) and len(lists.firsts) == len(lists.nodes)
    if not whole:
        return "its lists contradict each other"
    if size and not (leaves.min() >= 0 and leaves.max() < nodes and (tree.ends[leaves] == leaves + 1).all()):
        return "a leaf that there is not"
    words = np.diff(filters.offsets)
    whole = _rises(filters.offsets, len(filters.words)) and len(words) == nodes == len(filters.held)
    if not whole or words.min() < 1 or (words & (words - 1)).any():
        return "its filters contradict each other"
    there = np.bincount(leaves, minlength=nodes) if size else np.zeros(nodes, np.int64)
    below = np.concatenate([[0], np.cumsum(there)])
    if not np.array_equal(below[tree.ends] - below[:-1], tree.counts):
        return "a node that does not know how many vectors it has"
    if int(lists.starts[1]) != size:
        return "a vector that is in no list"
    known = (filters.words, filters.offsets, filters.hashes)
    return _FAULTS[_odd(lists.arrays, leaves, tree.ends, tree.parents, known, tokens, most)]


def _rises(ends: np.ndarray, last: int) -> bool:
    return bool(len(ends) > 0 and ends[0] == 0 and ends[-1] == last and (np.diff(ends) >= 0).all())


@njit(nogil=True, cache=True)
def _odd(lists, leaves, ends, parents, filters, tokens, most):  # type: ignore[no-untyped-def]
    ids, starts, nodes, firsts, spans = lists
    words, offsets, hashes = filters
    for which in range(len(starts) - 1):
        first, count, last = starts[which], starts[which + 1] - starts[which], -1
        if (count == 0) != (spans[which] == spans[which + 1]):
            return 1
        for i in range(spans[which], spans[which + 1]):
            node, begin = nodes[i], firsts[i]
            end = firsts[i + 1] if i + 1 < spans[which + 1] else count
            if begin < 0 or begin >= end or end > count or (i == spans[which] and begin != 0):
                return 1
            if node < 0 or node >= len(ends) or node < last:
                return 2
            last = ends[node]
            if end - begin > most and ends[node] != node + 1:
                return 6
            for j in range(first + begin, first + end):
                if ids[j] < 0 or ids[j] >= len(leaves):
                    return 3
                if leaves[ids[j]] < node or leaves[ids[j]] >= ends[node]:
                    return 5
                if j > first and (
                    leaves[ids[j - 1]] > leaves[ids[j]]
                    or (leaves[ids[j - 1]] == leaves[ids[j]] and ids[j - 1] >= ids[j])
                ):
                    return 4
            up = node
            while up >= 0:
                if not has(words, offsets, hashes, up, tokens[which]):
                    return 7
                up = parents[up]
    return 0
