"""k-means and product quantisers, against their definitions."""

import numpy as np
import pytest

from holdall.errors import CorruptArtefact
from holdall.parts.codebook import ProductQuantiser, assigned, kmeans


def blobs(n=600, dim=6, k=5, seed=0):
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(k, dim)) * 10
    return (middles[draw.integers(0, k, n)] + draw.normal(size=(n, dim))).astype(np.float32), middles


def test_kmeans_finds_blobs_and_is_the_same_again():
    x, middles = blobs()
    found = kmeans(x, 12, rounds=25)
    away = np.linalg.norm(middles[:, None] - found, axis=2).min(1)
    assert away.max() < 2 and np.array_equal(found, kmeans(x, 12, rounds=25))
    assert not np.array_equal(found, kmeans(x, 12, seed=1, rounds=25))
    near = np.square(x[:, None] - found).sum(2).argmin(1)
    assert np.array_equal(assigned(x, found), near)
    sizes = np.linalg.norm(kmeans(x, 4, spherical=True), axis=1)
    np.testing.assert_allclose(sizes, 1, rtol=1e-5)


def test_few_vectors_are_their_own_centroids():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = kmeans(x, 5)
    assert found.shape == (5, 2) and {tuple(r) for r in found} == {tuple(r) for r in x}
    assert assigned(x[:0], found).shape == (0,)


@pytest.mark.parametrize(("parts", "bits"), [(1, 4), (3, 8), (6, 2)])
def test_codes_are_of_the_nearest_entries(parts, bits):
    x, _ = blobs()
    made = ProductQuantiser.learn(x, parts, bits=bits)
    codes = made.encode(x)
    cut = x.reshape(len(x), parts, -1)
    for m in range(parts):
        squares = np.square(cut[:, m, None] - made.tables[m]).sum(2)
        best = squares.min(1)
        np.testing.assert_allclose(squares[np.arange(len(x)), codes[:, m]], best, rtol=1e-3, atol=1e-3)
    back = made.decode(codes)
    assert back.shape == x.shape and np.array_equal(
        back[7].reshape(parts, -1)[0], made.tables[0][codes[7, 0]]
    )


def test_more_parts_lose_less():
    x = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    errors = [
        float(np.square(x - (q := ProductQuantiser.learn(x, parts, bits=4)).decode(q.encode(x))).mean())
        for parts in (1, 2, 6)
    ]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_tables_of_a_file_are_looked_at():
    tables = np.zeros((3, 16, 2), np.float32)
    assert ProductQuantiser.of(tables, 6).parts == 3
    for wrong in (tables[:, :15], tables[:2], tables.astype(np.float64), tables[0], None, tables + np.nan):
        with pytest.raises(CorruptArtefact):
            ProductQuantiser.of(wrong, 6)
