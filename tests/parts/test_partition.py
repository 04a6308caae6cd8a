"""Every element has one owner and one place, whatever the sizes; slices of n are those of m, sent around."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.errors import BadInput
from holdall.parts import partition
from holdall.parts.partition import Move, Piece, buckets, moves, pieces, runs, share, views

SIZES = st.lists(st.integers(0, 9), max_size=8)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 5), st.integers(1, 11))
def test_every_element_has_one_owner_in_one_bucket(sizes, owners, capacity):
    tensors = [np.arange(s) + 100 * i for i, s in enumerate(sizes)]
    whole = np.concatenate([*tensors, np.empty(0, int)])
    if capacity < owners:
        with pytest.raises(BadInput):
            buckets(len(whole), capacity, owners)
        return
    seen = np.full(len(whole), -1)
    for start, stop in buckets(len(whole), capacity, owners):
        assert stop - start <= capacity and (stop == len(whole) or (stop - start) % owners == 0)
        each = partition.padded(stop - start, owners) // owners
        for owner in range(owners):
            a, b = share(stop - start, owners, owner)
            assert b - a <= each and (a == owner * each or a == b)
            assert (seen[start + a : start + b] == -1).all()
            seen[start + a : start + b] = partition.gather_into(
                np.empty(b - a, int), tensors, pieces(sizes, (start + a, start + b))
            )
    assert (seen == whole).all()


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_pieces_say_where_each_tensor_lies_and_lead_back(sizes, data):
    total = sum(sizes)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total + 3))
    tensors = [np.arange(s) + 100 * i for i, s in enumerate(sizes)]
    found = pieces(sizes, (start, stop))
    assert all(p.stop > p.start for p in found)
    got = partition.gather_into(np.full(stop - start, -7), tensors, found)
    whole = np.concatenate([*tensors, np.full(3, -7)])
    assert (got == whole[start:stop]).all()
    empty = [np.full_like(t, -1) for t in tensors]
    partition.scatter_from(got, empty, found)
    back = np.concatenate([*empty, np.empty(0, int)])
    inside = slice(start, min(stop, total))
    assert (back[inside] == whole[inside]).all() and (back == -1).sum() == total - len(back[inside])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 5))
def test_slices_of_n_become_slices_of_m(count, before, after):
    have = [share(count, before, o) for o in range(before)]
    want = [share(count, after, o) for o in range(after)]
    got = [np.full(b - a, -1) for a, b in want]
    for source, target, start, stop in moves(have, want):
        assert have[source][0] <= start < stop <= have[source][1]
        got[target][start - want[target][0] : stop - want[target][0]] = np.arange(start, stop)
    assert all((g == np.arange(a, b)).all() for g, (a, b) in zip(got, want, strict=True))


def test_moves_name_what_nobody_has():
    with pytest.raises(BadInput, match="none with element 4"):
        moves([(0, 4), (5, 9)], [(0, 9)])
    assert moves([(0, 6), (3, 9)], [(0, 9)]) == [Move(0, 0, 0, 6), Move(1, 0, 6, 9)]


def test_runs_are_as_long_as_they_can_be_and_large_items_are_alone():
    assert runs([3, 3, 9, 1, 1, 1, 4], 6) == [(0, 2), (2, 3), (3, 6), (6, 7)]
    assert runs([], 6) == []


def test_views_share_the_memory_of_torch_and_numpy():
    torch = pytest.importorskip("torch")
    for vector in (np.arange(7.0), torch.arange(7.0)):
        a, scalar, b = views(vector, [(2, 2), (), (1, 2)])
        b[0, 1] = -1
        assert a.tolist() == [[0, 1], [2, 3]] and float(scalar) == 4 and float(vector[6]) == -1


@pytest.mark.parametrize(
    "act",
    [
        lambda: partition.offsets([1, -1]),
        lambda: partition.padded(3, 0),
        lambda: share(3, 2, 2),
        lambda: pieces([3], (2, 1)),
    ],
)
def test_nonsense_is_refused(act):
    with pytest.raises(BadInput):
        act()


def test_a_piece_is_what_it_says():
    assert pieces([3, 0, 4], (2, 5)) == [Piece(0, 2, 3, 0), Piece(2, 0, 2, 1)]
