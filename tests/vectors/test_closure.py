"""Closure assignment, against its definition, and what it does to lists."""

import numpy as np
import pytest

from holdall.parts.codebook import kmeans
from holdall.vectors.closure import closure, naive_closure
from holdall.vectors.metrics import nearest
from holdall.vectors.quality import real


def lists(x, heads, replicas, slack=10.0, apart=True, candidates=64):
    _, near = nearest(x, heads, min(candidates, len(heads)), "l2")
    out = np.empty((len(x), replicas), np.int32)
    closure(x, heads, near, replicas, np.float32(slack), apart, out, 0, len(x))
    return out, near


@pytest.mark.parametrize(
    ("replicas", "slack", "apart"), [(8, 10.0, True), (3, 0.3, True), (8, 10.0, False), (1, 0.0, True)]
)
def test_it_is_the_rule(replicas, slack, apart):
    x, _ = real()
    heads = kmeans(x, 90)
    out, near = lists(x[:300], heads, replicas, slack, apart)
    found = [[h for h in row if h >= 0] for row in out.tolist()]
    assert found == naive_closure(x[:300], heads, near, replicas, slack, apart)
    assert all(row[0] == n[0] for row, n in zip(found, near, strict=True))


def test_heads_behind_others_are_left_out_and_fewer_lists_find_as_much():
    """At equal lists read more is found with replicas than without; the rule takes off replicas that are of no use."""
    x, queries = real()
    heads = kmeans(x, 160)
    _, wanted = nearest(queries, x, 10, "l2")
    _, read = nearest(queries, heads, 2, "l2")
    shares, sizes = {}, {}
    for name, replicas, apart in (("one", 1, True), ("apart", 8, True), ("all", 8, False)):
        out, _ = lists(x, heads, replicas, apart=apart)
        inside = (out[wanted][:, :, :, None] == read[:, None, None, :]).any((2, 3))
        shares[name], sizes[name] = inside.mean(), (out >= 0).sum() / len(x)
    print(shares, sizes)
    assert shares["apart"] > shares["one"] + 0.1 and sizes["apart"] < 0.75 * sizes["all"]


def test_a_vector_that_is_a_head_goes_there_alone():
    x, _ = real()
    out, _ = lists(x[:50], x[:50].copy(), 4)
    assert np.array_equal(out[:, 0], np.arange(50)) and (out[:, 1:] == -1).all()


def test_few_heads():
    out, _ = lists(np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32), 4)
    assert out.tolist() == [[0, -1, -1, -1]] * 2
    near = np.full((1, 3), -1)
    closure(
        np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32), near, 2, np.float32(1), True, out, 0, 1
    )
    assert out[0, 0] == -1
