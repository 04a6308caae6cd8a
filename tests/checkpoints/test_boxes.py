"""Ranges of flattened tensors as boxes, and what two boxes share; against masks of every element."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.checkpoints import boxes
from holdall.checkpoints.boxes import Box

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@st.composite
def ranges(draw):
    shape = draw(shapes)
    stop = draw(st.integers(0, math.prod(shape)))
    return shape, draw(st.integers(0, stop)), stop


@st.composite
def parts(draw, shape):
    lengths = tuple(draw(st.integers(1, n)) for n in shape)
    return Box(tuple(draw(st.integers(0, n - m)) for n, m in zip(shape, lengths, strict=True)), lengths)


@st.composite
def two_parts(draw):
    shape = draw(shapes)
    return shape, draw(parts(shape)), draw(parts(shape))


def mask(shape, *found):
    counts = np.zeros(shape, int)
    for box in found:
        counts[box.slices()] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(ranges())
def test_a_flat_range_is_few_boxes_that_cover_it_once(case):
    shape, start, stop = case
    found = boxes.of_range(shape, start, stop)
    flat = np.zeros(math.prod(shape), int)
    flat[start:stop] = 1
    assert np.array_equal(mask(shape, *found).ravel(), flat)
    assert len(found) <= 2 * len(shape) - 1
    numbers = np.arange(math.prod(shape)).reshape(shape)  # in order: a rank's slice is its boxes end to end
    told = [numbers[b.slices()].ravel() for b in found]
    assert np.array_equal(np.concatenate([*told, np.empty(0, int)]), np.arange(start, stop))


def test_the_bound_is_reached():
    for ndim in (1, 2, 3, 4):
        shape = (4,) * ndim
        assert len(boxes.of_range(shape, 1, 4**ndim - 1)) == 2 * ndim - 1


def test_scalars_empty_tensors_and_wrong_ranges():
    assert boxes.of_range((), 0, 1) == [Box((), ())]
    assert boxes.of_range((0, 3), 0, 0) == boxes.of_range((3, 3), 4, 4) == []
    with pytest.raises(ValueError, match="range"):
        boxes.of_range((2, 2), 1, 5)
    assert boxes.meet(Box((), ()), Box((), ())) == Box((), ())


@settings(max_examples=100, deadline=None)
@given(two_parts())
def test_meeting_and_difference_are_those_of_sets(case):
    shape, a, b = case
    both = boxes.meet(a, b)
    assert np.array_equal(mask(shape, *([both] if both else [])), mask(shape, a) * mask(shape, b))
    rest = boxes.minus(a, b)
    assert np.array_equal(mask(shape, *rest), mask(shape, a) * (1 - mask(shape, b)))
    assert len(rest) <= 2 * len(shape)


@settings(max_examples=100, deadline=None)
@given(two_parts(), st.integers(0, 40))
def test_reads_of_a_stored_box_give_the_part(case, waste):
    shape, stored, other = case
    part = boxes.meet(stored, other)
    if part is None:
        return
    whole = np.arange(math.prod(shape)).reshape(shape)
    held, got, read = whole[stored.slices()].ravel(), np.full(part.lengths, -1), 0
    for piece in boxes.pieces(part, stored, waste):
        first, stop, strides = boxes.span(piece, stored)
        raw = held[first:stop].copy()
        view = np.ndarray(piece.lengths, raw.dtype, raw, 0, [s * raw.itemsize for s in strides])
        got[piece.slices(part)] = view
        read += stop - first
    assert np.array_equal(got, whole[part.slices()])
    if waste == 0:
        assert read == part.elements


@settings(max_examples=60, deadline=None)
@given(two_parts(), st.integers(1, 50))
def test_rows_are_the_box_in_order(case, most):
    shape, box, _ = case
    numbers = np.arange(math.prod(shape)).reshape(shape)
    cut = boxes.rows(box, most)
    assert max(c.elements for c in cut) <= most
    assert np.array_equal(
        np.concatenate([numbers[c.slices()].ravel() for c in cut]), numbers[box.slices()].ravel()
    )


def test_what_nobody_holds_is_told():
    wanted = boxes.whole((4, 4))
    assert boxes.uncovered(wanted, [Box((0, 0), (4, 2)), Box((0, 2), (4, 2))]) == []
    left = boxes.uncovered(wanted, [Box((0, 0), (4, 2)), Box((1, 2), (3, 2))])
    assert left == [Box((0, 2), (1, 2))]
