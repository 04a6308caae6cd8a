"""What is said about inner products, against the kernels' own hashes and drawn masks."""

import numpy as np
import pytest

from holdall.errors import BadInput
from holdall.weights import sharing_theory as theory
from holdall.weights.sharing_kernels import scatter, spot
from holdall.weights.sharing_map import Map, Segment

N, M, DRAWS = 96, 24, 12000
NONE = np.zeros(0, np.float32)


def vectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=N) * np.arange(1, N + 1) ** -0.5
    return x.astype(np.float32), (0.6 * x + 0.4 * rng.normal(size=N)).astype(np.float32)


def drawn(kind, chunk):
    """<Sx, Sy> over many seeds."""
    (x, y), found = vectors(), np.empty(DRAWS)
    segment = Segment("x", (N,), 0, 1.0, 0, M)
    for seed in range(DRAWS):
        at = spot(Map(kind, M, chunk, seed), segment)
        sketches = np.zeros((2, M), np.float32)
        scatter(at, sketches[0], NONE, np.float32(1), 0, x)
        scatter(at, sketches[1], NONE, np.float32(1), 0, y)
        found[seed] = np.dot(sketches[0].astype(float), sketches[1])
    return found


@pytest.mark.parametrize(
    ("kind", "chunk", "said"),
    [
        ("hashed", 1, theory.sharing_variance),
        ("permute", 1, theory.fold_variance),
        ("permute", 4, lambda x, y, m: theory.fold_variance(x, y, m, 4)),
    ],
)
def test_sharing_is_unbiased_and_varies_as_told(kind, chunk, said):
    x, y = vectors()
    found, variance = drawn(kind, chunk), said(x, y, M)
    assert abs(found.mean() - np.dot(x, y)) < 4 * np.sqrt(variance / DRAWS)
    assert found.var() == pytest.approx(variance, rel=0.05)


def test_pruning_at_random_varies_as_told():
    x, y = (v.astype(float) for v in vectors())
    masks = np.random.default_rng(1).random((40000, N)) < M / N
    found = masks @ (x * y) * N / M
    assert found.var() == pytest.approx(theory.pruning_variance(x, y, M), rel=0.05)
    assert abs(found.mean() - np.dot(x, y)) < 4 * np.sqrt(found.var() / len(found))


def test_pruning_by_size_errs_by_what_it_drops():
    x, y = np.array([3.0, -1.0, 2.0]), np.array([1.0, 10.0, 1.0])
    assert theory.magnitude_error(x, y, 2) == 100 and theory.magnitude_error(x, y, 3) == 0


def test_slices_spare_collisions():
    """No two of a slice meet, so a fold never varies more where signs of x and y agree, and not at all at m = n."""
    x = np.abs(vectors()[0])
    assert theory.fold_variance(x, x, M) < theory.sharing_variance(x, x, M)
    assert theory.fold_variance(x, x, N) == 0 < theory.sharing_variance(x, x, N)


def test_flat_vectors_are_shared_and_peaked_ones_pruned():
    """The crossover moves down with the peak, and is where the errors cross."""
    ends = []
    for power in (0.0, 0.3, 0.6, 2.0):
        x = np.arange(1, 1025) ** -power
        least, most = theory.crossover(x, x)
        ends.append(most)
        for m, sharing_wins in ((most, True), (most + 1, False), (least, True)) if most else ():
            assert (theory.sharing_variance(x, x, m) < theory.magnitude_error(x, x, m)) == sharing_wins
    assert ends[0] > 900 and ends == sorted(ends, reverse=True) and ends[-1] == 0


def test_wrong_sizes_are_named():
    with pytest.raises(BadInput):
        theory.sharing_variance(np.ones(3), np.ones(4), 2)
    with pytest.raises(BadInput):
        theory.fold_variance(np.ones(8), np.ones(8), 4, 3)
