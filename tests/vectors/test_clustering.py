"""Balanced clustering, the tree of vectors, and its heads."""

import numpy as np
import pytest

from holdall.parts.codebook import assigned, kmeans
from holdall.vectors.clustering import Tree, balanced, tree
from holdall.vectors.quality import real


def skewed(n=3000, dim=8, seed=0):
    """A dense middle and a thin cloud."""
    draw = np.random.default_rng(seed)
    wide = np.where(draw.random(n) < 0.8, 0.3, 3.0)[:, None]
    return (draw.normal(size=(n, dim)) * wide).astype(np.float32)


def spread(x, centroids):
    sizes = np.bincount(assigned(x, centroids), minlength=len(centroids))
    return sizes.std() / sizes.mean()


def test_clusters_are_more_even_than_those_of_k_means():
    for x, share in ((skewed(), 0.85), (real()[0], 0.7)):
        plain, even = spread(x, kmeans(x, 32)), spread(x, balanced(x, 32, 0))
        assert even < share * plain
        assert even < share * spread(x, balanced(x, 32, 0, weights=(0.0,)))  # the weight does it
    assert np.array_equal(balanced(x, 32, 0), balanced(x, 32, 0))


@pytest.mark.parametrize(("n", "k"), [(1, 4), (5, 5), (40, 3)])
def test_few_vectors_or_all_the_same(n, k):
    assert balanced(np.ones((n, 3), np.float32), k, 0).shape == (min(n, k), 3)
    made = tree(np.ones((n, 3), np.float32), branches=k, leaf=2)
    assert sorted(made.order) == list(range(n)) and (made.parents == -1).sum() == 1


def test_every_vector_is_a_node_below_its_own_middle():
    x, _ = real()
    made = tree(x, branches=8, leaf=6)
    assert sorted(made.order) == list(range(len(x)))
    place = np.empty(len(x), int)
    place[made.order] = np.arange(len(x))
    inner = made.parents >= 0
    assert inner.sum() == len(x) - 1 and (place[made.parents[inner]] < place[inner]).all()
    root = made.order[0]
    assert np.square(x - x.mean(0)).sum(1).argmin() == root
    near = np.linalg.norm(x - x[made.parents], axis=1)[inner]
    far = np.linalg.norm(x[inner] - x[np.random.default_rng(0).permutation(len(x))[: inner.sum()]], axis=1)
    assert np.median(near) < 0.75 * np.median(far)


def naive_heads(parents, order, select, split, factor):
    """The rule, node by node, as the card tells it."""
    children = {i: [j for j in range(len(parents)) if parents[j] == i] for i in range(len(parents))}
    size, heads = {}, set()
    for node in reversed(order.tolist()):
        size[node] = 1 + sum(size[c] for c in children[node] if size[c] < select)
        if size[node] >= select:
            heads.add(node)
            if size[node] > split:
                largest = sorted(children[node], key=lambda c: (-size[c], c))
                heads |= set(largest[: -(-size[node] // factor)])
    return sorted(heads)


@pytest.mark.parametrize(("select", "split"), [(2, 5), (6, 25), (4, 10_000)])
def test_heads_are_those_of_the_rule(select, split):
    x = skewed(400)
    made = tree(x, branches=5, leaf=4)
    assert made.heads(0, select=select, split=split).tolist() == naive_heads(
        made.parents, made.order, select, split, 5
    )


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.16, 0.3])
def test_thresholds_are_searched_for_a_ratio(ratio):
    x, _ = real()
    heads = tree(x).heads(ratio)
    assert 0.75 * ratio < len(heads) / len(x) < 1.3 * ratio
    assert len(np.unique(heads)) == len(heads)


def test_one_vector_is_its_own_head():
    assert Tree(np.array([-1]), np.array([0])).heads(0.5, select=1, split=5).tolist() == [0]
