"""Tensors laid end to end in one vector, and who owns which part of it: plain arithmetic, then copies.

A vector is known by the sizes of its tensors, in order. Owners have equal, contiguous slices of it, the last ones
reaching into padding. Copies work on torch tensors and on numpy arrays alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

from holdall.errors import BadInput

Span = tuple[int, int]  # from the first element to the one after the last


class Piece(NamedTuple):
    """Elements `start` to `stop` of tensor number `tensor`; they lie at `at` of whatever was asked about."""

    tensor: int
    start: int
    stop: int
    at: int


class Move(NamedTuple):
    """Elements `start` to `stop` of the vector, from one owner to another."""

    source: int
    target: int
    start: int
    stop: int


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each tensor begins, and at last where the vector ends."""
    if any(s < 0 for s in sizes):
        raise BadInput("sizes", list(sizes), "numbers of elements, none below 0")
    return [0, *accumulate(sizes)]


def padded(count: int, owners: int) -> int:
    """The smallest multiple of `owners` that holds `count` elements."""
    if owners < 1 or count < 0:
        raise BadInput("owners", owners, "at least one, of at least no element")
    return -(-count // owners) * owners


def share(count: int, owners: int, owner: int) -> Span:
    """The owner's slice of `count` elements, without the padding: shares are equal, the last ones may be short."""
    if not 0 <= owner < owners:
        raise BadInput("owner", owner, f"0 to {owners - 1}")
    each = padded(count, owners) // owners
    return min(owner * each, count), min((owner + 1) * each, count)


def pieces(sizes: Sequence[int], span: Span) -> list[Piece]:
    """What lies in a span of the vector, tensor by tensor; what reaches over its end is padding and is left out."""
    begins, (start, stop) = offsets(sizes), span
    if not 0 <= start <= stop:
        raise BadInput("span", span, "a start, and a stop that is not before it")
    found = []
    for tensor in range(max(bisect_right(begins, start) - 1, 0), len(sizes)):
        first, last = max(start, begins[tensor]), min(stop, begins[tensor + 1])
        if begins[tensor] >= stop:
            break
        if first < last:
            found.append(Piece(tensor, first - begins[tensor], last - begins[tensor], first - start))
    return found


def buckets(count: int, capacity: int, owners: int = 1) -> list[Span]:
    """Spans of one size that cover the vector: `capacity`, less what does not divide by the owners. The last may be
    shorter; only that one then needs padding."""
    size = capacity // owners * owners
    if size < 1:
        raise BadInput("bucket", capacity, f"at least one element for each of {owners} owners")
    return [(at, min(at + size, count)) for at in range(0, count, size)]


def runs(sizes: Sequence[int], capacity: int) -> list[Span]:
    """Spans of neighbouring *items* that are at most `capacity` together, as long as they can be; a larger item is
    alone."""
    found: list[Span] = []
    held = 0
    for i, size in enumerate(sizes):
        if found and held + size <= capacity:
            found[-1] = (found[-1][0], i + 1)
            held += size
        else:
            found.append((i, i + 1))
            held = size
    return found


def moves(have: Sequence[Span], want: Sequence[Span]) -> list[Move]:
    """Who has to send what to whom, so that who has `have` gets `want`. Where several have it the first sends it.

    BadInput where nobody has an element that is wanted.
    """
    order = sorted(range(len(have)), key=lambda i: have[i])
    found = []
    for target, (start, stop) in enumerate(want):
        at = start
        for source in order:
            first, last = have[source]
            if first <= at < last and at < stop:
                found.append(Move(source, target, at, min(last, stop)))
                at = min(last, stop)
        if at < stop:
            raise BadInput("slices", f"none with element {at}", f"slices that cover {start} to {stop}")
    return found


def gather_into(out: Any, tensors: Sequence[Any], parts: Sequence[Piece]) -> Any:
    """Copy pieces of tensors to where they lie in `out`; the rest of it stays as it is."""
    for p in parts:
        out[p.at : p.at + p.stop - p.start] = tensors[p.tensor].reshape(-1)[p.start : p.stop]
    return out


def scatter_from(vector: Any, tensors: Sequence[Any], parts: Sequence[Piece]) -> None:
    """Copy a vector's pieces back into tensors, which are changed in place and have to be contiguous."""
    for p in parts:
        flat = tensors[p.tensor].reshape(-1)
        flat[p.start : p.stop] = vector[p.at : p.at + p.stop - p.start]


def views(vector: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
    """The tensors that lie in a vector, in order; they share its memory."""
    begins = offsets([prod(s) for s in shapes])
    return [vector[a:b].reshape(tuple(s)) for a, b, s in zip(begins, begins[1:], shapes, strict=False)]
