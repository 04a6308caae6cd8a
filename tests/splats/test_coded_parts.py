"""The pieces of the coded scene, each against a slow truth."""

import numpy as np
import pytest

from holdall.splats import coded_bits, coded_near, coded_places, coded_tree, coded_turns
from holdall.splats.coded_near import NEAR


def on_a_surface(count, bits, seed=0):
    """int64 [count, 3] along Morton's curve, on a wavy sheet."""
    rng = np.random.default_rng(seed)
    xy = rng.random((count, 2))
    z = 0.5 + 0.2 * np.sin(6 * xy[:, 0]) * np.cos(5 * xy[:, 1])
    places = (np.column_stack([xy, z]) * ((1 << bits) - 1)).astype(np.int64)
    return places[np.argsort(coded_near.keys(places), kind="stable")]


def naive_key(x, y, z):
    return int("".join(a + b + c for a, b, c in zip(*(f"{v:021b}" for v in (x, y, z)), strict=True)), 2)


def test_keys_interleave_the_bits():
    places = np.random.default_rng(0).integers(0, 1 << 21, (20, 3))
    assert coded_near.keys(places).tolist() == [naive_key(*p) for p in places.tolist()]


@pytest.mark.parametrize("count", [1, 2, 63, 400])
def test_neighbours_are_near_and_earlier(count):
    places = on_a_surface(count, 9)
    near, far, around = coded_near.neighbours(places)
    square = ((places[:, None] - places[None]) ** 2).sum(2)
    for i in range(count):
        found = near[i][near[i] >= 0]
        assert (found < i).all() and len(set(found.tolist())) == len(found)
        assert [square[i, j] for j in found] == far[i, : len(found)].tolist()
    if count == 400:  # cells of three places in a box of 27 hold nearly all of the truly nearest
        true = np.sort(np.where(np.tri(count, k=-1, dtype=bool), square, 1 << 40), 1)[NEAR:, :NEAR]
        assert np.mean(true == far[NEAR:]) > 0.7
        assert np.mean(np.sort(square + (1 << 40) * np.eye(count, dtype=int), 1)[:, 3] == around) > 0.9


@pytest.mark.parametrize(("count", "bits"), [(1, 1), (3, 5), (63, 7), (500, 9), (40, 21)])
def test_the_tree_gives_places_back(count, bits):
    places = on_a_surface(count, bits)
    raw = coded_tree.written(places, bits)
    assert np.array_equal(coded_tree.read(raw, count, bits), places)


def test_the_tree_learns_surfaces_and_pays_for_no_order():
    count, bits = 12_000, 8
    sheet = 8 * coded_tree.written(on_a_surface(count, bits), bits).size / count
    rng = np.random.default_rng(0)
    cloud = rng.integers(0, 1 << bits, (count, 3))
    cloud = cloud[np.argsort(coded_near.keys(cloud), kind="stable")]
    free = 8 * coded_tree.written(cloud, bits).size / count
    unordered = 3 * bits - np.log2(np.arange(1, count + 1)).mean()  # what a set of even places holds
    assert unordered - 0.1 < free < unordered + 0.5
    assert sheet < 0.7 * free


def test_same_places_many_times_and_outliers():
    places = np.concatenate([np.full((70, 3), 5), np.full((9, 3), (1 << 21) - 1)]).astype(np.int64)
    assert np.array_equal(coded_tree.read(coded_tree.written(places, 21), 79, 21), places)


def test_bits_below_the_grid():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 21, 200)
    low = (rng.random((200, 3)) * (1 << bits)[:, None]).astype(np.int64)
    raw = coded_places.written(low, bits)
    assert np.array_equal(coded_places.read(raw, bits), low)
    assert 3 * bits.sum() / 8 - 8 < raw.size <= 3 * bits.sum() / 8 + 8


def test_numbers_of_any_size_come_back():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(300) * 10.0 ** rng.integers(0, 12, 300)).astype(np.int64)
    where = np.zeros(coded_bits.CONTEXTS, np.int64)
    coder, data = coded_bits.started(None, 9000)
    tables = coded_bits.fresh(1, 1)
    for v in values:
        coded_bits.number(coder, data, *tables, where, 0, v)
    coder, data = coded_bits.started(coded_bits.finished(coder, data))
    tables = coded_bits.fresh(1, 1)
    assert [coded_bits.number(coder, data, *tables, where, 0, np.int64(0)) for _ in values] == values.tolist()


def test_decisions_that_are_foreseen_cost_little():
    coder, data = coded_bits.started(None, 9000)
    tables, where = coded_bits.fresh(1, 1), np.zeros(coded_bits.CONTEXTS, np.int64)
    bits = np.random.default_rng(0).random(8000) < 0.05
    for bit in bits:
        coded_bits.decide(coder, data, *tables, where, 0, 0, np.int64(bit))
    share = bits.mean()
    least = -8000 * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    assert least < coded_bits.finished(coder, data).size < 1.05 * least + 8


def frames(count, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, 3, 3)))
    return q * np.sign(np.linalg.det(q))[:, None, None]


@pytest.mark.parametrize("needle", [True, False])
def test_turns_are_within_their_steps(needle):
    n = 63
    true, steps = frames(n), np.stack([np.geomspace(0.001, 0.3, n), np.geomspace(0.2, 0.002, n)], 1)
    near = np.arange(n)[:, None] - np.arange(1, NEAR + 1)
    near = np.maximum(near, -1)
    known = near, np.ones((n, NEAR)), np.full(n, needle), steps, np.zeros((n, 2), np.int64)
    raw, back = coded_turns.written(true, *known)
    assert np.array_equal(coded_turns.read(raw, *known), back)
    assert np.allclose(back @ back.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    main = 0 if needle else 2
    off = np.arccos(np.clip(np.abs((back[:, main] * true[:, main]).sum(1)), 0, 1))
    assert (
        off <= 1.01 * steps[:, 0]
    ).all()  # half a step each way in a disc stretched by up to 1.42 at its rim
    minor = 2 - main
    off = np.arccos(np.clip(np.abs((back[:, minor] * true[:, minor]).sum(1)), 0, 1))
    assert (off <= 1.5 * steps[:, 0] + steps[:, 1]).all()
