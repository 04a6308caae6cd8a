"""Rows by number and numbers by row, against numpy."""

import numpy as np
import pytest

from holdall.vectors.bits import Bits


@pytest.mark.parametrize("size", [1, 7, 8, 9, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_rank_and_select_are_those_of_a_list(size, share):
    flags = np.random.default_rng(size).random(size) < share
    flags[-1] = True
    bits, rows = Bits(flags), np.arange(size)
    assert np.array_equal(bits.rank(rows), np.cumsum(flags) - flags)
    assert np.array_equal(bits.select(np.arange(flags.sum())), np.flatnonzero(flags))
    assert np.array_equal(bits.has(rows), flags) and np.array_equal(bits.flags, flags)
    assert bits.count == flags.sum() and bits.nbytes == Bits.bytes_of(size) < size / 8 + 20 + size / 500
    assert np.array_equal(Bits.of(bits.packed, size).flags, flags)


def test_shapes_are_kept_and_nothing_is_something():
    assert Bits(np.zeros(0, bool)).count == 0
    bits = Bits(np.arange(30) % 3 == 0)
    assert bits.select(np.array([[0, 1], [9, 2]])).tolist() == [[0, 3], [27, 6]]
    assert bits.rank(np.array([[1]])).tolist() == [[1]]
