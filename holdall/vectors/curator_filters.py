"""Bloom filters: one a node, of the tenants that have lists there or below.

A filter has a power of two of bits, some `bits` for each of its tenants, and cannot forget: where a tenant has gone, a
node's filter is made again from the lists. One that its tenants have outgrown is made anew with all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit

from holdall.vectors.curator_kernels import place, put
from holdall.vectors.curator_lists import Lists


@dataclass
class Filters:
    """words uint64 [W]; offsets int64 [V + 1], where each node's begin; held int32 [V], tenants; bits for each."""

    words: np.ndarray
    offsets: np.ndarray
    held: np.ndarray
    bits: float

    @classmethod
    def of(cls, lists: Lists, tokens: np.ndarray, parents: np.ndarray, bits: float) -> Self:
        held = np.zeros(len(parents), np.int32)
        none = np.zeros(0, np.uint64)
        _walk(lists.arrays, tokens, parents, held, none, np.zeros(1, np.int64), 0)
        wanted = np.maximum(np.ceil(bits * held / 64), 1)
        offsets = np.concatenate([[0], np.cumsum(2 ** np.ceil(np.log2(wanted)))]).astype(np.int64)
        made = cls(np.zeros(offsets[-1], np.uint64), offsets, held, bits)
        _walk(lists.arrays, tokens, parents, held.copy(), made.words, offsets, made.hashes)
        return made

    @property
    def hashes(self) -> int:
        return max(1, round(self.bits * 0.69))

    @property
    def nbytes(self) -> int:
        return int(self.words.nbytes + self.offsets.nbytes)

    @property
    def outgrown(self) -> bool:
        return bool((self.held * self.bits > 64 * np.diff(self.offsets)).any())

    def copy(self) -> Self:
        return type(self)(self.words.copy(), self.offsets, self.held.copy(), self.bits)

    def put(self, nodes: np.ndarray, token: np.uint64) -> None:
        """One tenant more, at nodes where it was not."""
        self.held[nodes] += 1
        _put(nodes, token, self.words, self.offsets, self.hashes)

    def again(self, nodes: np.ndarray, lists: Lists, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Make those of some nodes again, from all lists at them and below."""
        _again(lists.arrays, tokens, ends, nodes, self.words, self.offsets, self.hashes, self.held)


@njit(nogil=True, cache=True)
def _walk(lists, tokens, parents, held, words, offsets, hashes):  # type: ignore[no-untyped-def]
    """Count each tenant once at every node on the way to its lists, and put it into their filters where there are."""
    _, _, nodes, _, spans = lists
    seen = np.full(len(parents), -1, np.int32)
    for which in range(len(spans) - 1):
        for i in range(spans[which], spans[which + 1]):
            node = nodes[i]
            while node >= 0 and seen[node] != which:
                seen[node] = which
                held[node] += 1
                if hashes:
                    put(words, offsets, hashes, node, tokens[which])
                node = parents[node]


@njit(nogil=True, cache=True)
def _put(nodes, token, words, offsets, hashes):  # type: ignore[no-untyped-def]
    for node in nodes:
        put(words, offsets, hashes, node, token)


@njit(nogil=True, cache=True)
def _again(lists, tokens, ends, nodes, words, offsets, hashes, held):  # type: ignore[no-untyped-def]
    _, _, there, _, spans = lists
    for node in nodes:
        words[offsets[node] : offsets[node + 1]] = 0
        held[node] = 0
        for which in range(len(spans) - 1):
            at = place(there, spans[which], spans[which + 1], node)
            if at < spans[which + 1] and there[at] < ends[node]:
                held[node] += 1
                put(words, offsets, hashes, node, tokens[which])
