"""Boxes: axis-aligned parts of a tensor, and how a range of a flattened tensor is a few of them.

ZeRO and FSDP cut flattened parameters, so that a rank holds elements [a, b) of a tensor in row-major order. That is no
box, but at most 2 * ndim - 1 of them: rests of a row at both ends, at each level but the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """Part of a tensor: where it begins and how long it is, along each axis."""

    offset: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.lengths)

    def moved(self, by: Iterable[int]) -> Box:
        return Box(tuple(o + b for o, b in zip(self.offset, by, strict=True)), self.lengths)

    def slices(self, inside: Box | None = None) -> tuple[slice, ...]:
        """Of an array that holds `inside` (the whole tensor, where it is None)."""
        base = (0,) * len(self.offset) if inside is None else inside.offset
        return tuple(slice(o - b, o - b + n) for o, n, b in zip(self.offset, self.lengths, base, strict=True))


def whole(shape: Iterable[int]) -> Box:
    lengths = tuple(shape)
    return Box((0,) * len(lengths), lengths)


def of_range(shape: Iterable[int], start: int, stop: int) -> list[Box]:
    """Elements [start, stop) in row-major order as boxes, which follow each other in that same order."""
    shape = tuple(shape)
    if not 0 <= start <= stop <= math.prod(shape):
        raise ValueError(f"range [{start}, {stop}) of {math.prod(shape)} elements")
    return list(_cut(shape, start, stop)) if start < stop else []


def _cut(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    first, into = divmod(start, row)
    last, over = divmod(stop, row)
    if into and first == last:  # both ends in one row
        yield from _row(first, _cut(shape[1:], into, over))
        return
    if into:
        yield from _row(first, _cut(shape[1:], into, row))
        first += 1
    if first < last:
        yield Box((first, *(0,) * len(shape[1:])), (last - first, *shape[1:]))
    if over:
        yield from _row(last, _cut(shape[1:], 0, over))


def _row(index: int, boxes: Iterable[Box]) -> Iterator[Box]:
    for box in boxes:
        yield Box((index, *box.offset), (1, *box.lengths))


def meet(a: Box, b: Box) -> Box | None:
    """What both have; None where that is nothing."""
    low = tuple(map(max, a.offset, b.offset))
    high = tuple(
        min(p + m, q + n) for p, m, q, n in zip(a.offset, a.lengths, b.offset, b.lengths, strict=True)
    )
    if any(h <= o for o, h in zip(low, high, strict=True)):
        return None
    return Box(low, tuple(h - o for o, h in zip(low, high, strict=True)))


def minus(a: Box, b: Box) -> list[Box]:
    """What is in `a` and not in `b`, as at most 2 * ndim boxes that do not overlap."""
    both = meet(a, b)
    if both is None:
        return [a]
    rest, offset, lengths = [], list(a.offset), list(a.lengths)
    for axis, (o, n) in enumerate(zip(both.offset, both.lengths, strict=True)):
        before, after = o - offset[axis], offset[axis] + lengths[axis] - (o + n)
        if before:
            rest.append(Box(tuple(offset), (*lengths[:axis], before, *lengths[axis + 1 :])))
        if after:
            from_here = (*offset[:axis], o + n, *offset[axis + 1 :])
            rest.append(Box(from_here, (*lengths[:axis], after, *lengths[axis + 1 :])))
        offset[axis], lengths[axis] = o, n
    return rest


def uncovered(wanted: Box, have: Iterable[Box]) -> list[Box]:
    """Parts of `wanted` that none of `have` holds."""
    left = [wanted]
    for box in have:
        left = [rest for part in left for rest in minus(part, box)]
    return left


def rows(box: Box, most: int) -> list[Box]:
    """The box cut along its leading axes into parts of at most `most` elements (one at least), in row-major order."""
    if box.elements <= max(most, 1) or not box.lengths:
        return [box]
    row = math.prod(box.lengths[1:])
    if row > most:
        inner = rows(Box(box.offset[1:], box.lengths[1:]), most)
        return [
            Box((box.offset[0] + i, *part.offset), (1, *part.lengths))
            for i in range(box.lengths[0])
            for part in inner
        ]
    step = max(1, most // row)
    return [
        Box((box.offset[0] + i, *box.offset[1:]), (min(step, box.lengths[0] - i), *box.lengths[1:]))
        for i in range(0, box.lengths[0], step)
    ]


def span(part: Box, stored: Box) -> tuple[int, int, tuple[int, ...]]:
    """Where `part` lies in the row-major elements of `stored`: first, last + 1, and the strides between them.

    An array of the elements [first, last + 1) is seen as `part` by these strides, so that one read is one slice.
    """
    strides, step = [], 1
    for n in reversed(stored.lengths):
        strides.append(step)
        step *= n
    strides.reverse()
    first = sum((o - s) * k for o, s, k in zip(part.offset, stored.offset, strides, strict=True))
    last = first + sum((n - 1) * k for n, k in zip(part.lengths, strides, strict=True))
    return first, last + 1, tuple(strides)


def pieces(part: Box, stored: Box, waste: int) -> list[Box]:
    """`part` in as few reads of `stored` as leave out each gap of more than `waste` elements."""
    first, stop, strides = span(part, stored)
    if stop - first == part.elements:
        return [part]
    for axis, stride in enumerate(strides):
        if part.lengths[axis] > 1:
            inner = part.lengths[axis + 1 :]
            reach = 1 + sum((n - 1) * k for n, k in zip(inner, strides[axis + 1 :], strict=True))
            if stride - reach > waste:
                ones = [_at(part, axis, i) for i in range(part.lengths[axis])]
                return [piece for one in ones for piece in pieces(one, stored, waste)]
    return [part]


def _at(part: Box, axis: int, i: int) -> Box:
    offset, lengths = list(part.offset), list(part.lengths)
    offset[axis], lengths[axis] = offset[axis] + i, 1
    return Box(tuple(offset), tuple(lengths))
