"""The parts of a light scene: books, their entries as bits, streams that are not believed, budgets that are met."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.splats.camera import around
from holdall.splats.lightgaussian import LightGaussian
from holdall.splats.made import solids
from holdall.splats.quality import same

pytest.importorskip("torch")
pytest.importorskip("numba")

from holdall.splats import coded_file, lightgaussian_codes, lightgaussian_file
from holdall.splats.coded_form import prepared
from holdall.splats.coded_layout import Near
from holdall.splats.coded_near import keys
from holdall.splats.lightgaussian_books import codes_for, learnt, nearest, ordered, split

QUICK = LightGaussian(steps=2, views=3, width=48)
GOLDEN = Path(__file__).parent.parent / "golden" / "splats-lightgaussian-v1"
LEARNING = {"rounds": 30, "chunk": 1 << 14, "seed": 0}


def formed(scene, share=0.6, plain=3):
    form = prepared(scene, np.tile([4.0, 2.0], (len(scene), 1)))
    score = np.random.default_rng(0).random(len(scene))
    return form, split(form.colours[:, plain:], score, share=share, codes=0, **LEARNING)


@pytest.mark.parametrize("count", [1, 3, 63, 5000])
def test_nearest_is_what_all_distances_say(count):
    rng = np.random.default_rng(count)
    x, book = (
        rng.standard_normal((count, 5)).astype(np.float32),
        rng.standard_normal((7, 5)).astype(np.float32),
    )
    assert np.array_equal(nearest(x, book), ((x[:, None] - book) ** 2).sum(2).argmin(1))


def test_what_weighs_more_is_missed_by_less():
    """Two clouds: the few that weigh most get most of the entries."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (3000, 4)), rng.normal(8, 1, (300, 4))]).astype(np.float32)
    heavy = np.where(np.arange(3300) < 3000, 1.0, 100.0)

    def missed(book):
        off = ((x - book[nearest(x, book)]) ** 2).sum(1)
        return off[:3000].mean(), off[3000:].mean()

    flat, weighed = missed(learnt(x, np.ones(3300), 32, **LEARNING)), missed(learnt(x, heavy, 32, **LEARNING))
    assert weighed[1] < 0.6 * flat[1] and weighed[0] > flat[0]


def test_entries_that_nobody_uses_move_to_where_they_are_missed():
    """Sixteen clouds of which the first draw, seeing only one, knows nothing."""
    rng = np.random.default_rng(1)
    x = np.concatenate([np.zeros((5000, 2)), 50 * rng.standard_normal((15, 2)).repeat(40, 0)])
    x = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    book = learnt(x, np.ones(len(x)), 32, rounds=60, chunk=2048, seed=0)
    assert ((x - book[nearest(x, book)]) ** 2).sum(1).max() < 4


def test_the_share_that_scores_least_shares():
    scene = solids(700, degree=2)
    vectors, score = scene.sh[:, 1:].reshape(700, -1), np.random.default_rng(0).random(700)
    cut = split(vectors, score, share=0.6, codes=0, **LEARNING)
    assert (~cut.top).sum() == 420 and score[~cut.top].max() < score[cut.top].min()
    assert (cut.owner[cut.top] == -1).all() and len(cut.book) <= codes_for(420) == 16
    assert set(cut.owner[~cut.top]) == set(range(len(cut.book)))  # nobody's entries are not stored
    assert split(vectors, score, share=0.0, codes=0, **LEARNING).top.all()


@pytest.mark.parametrize(("count", "bits"), [(1, 1), (63, 5), (700, 13)])
def test_entries_come_back(count, bits):
    rng = np.random.default_rng(count)
    at = rng.integers(0, 1000, (count, 3))
    near, side = Near.of(at[np.argsort(keys(at))]).who, rng.integers(0, 32, count)
    codes = rng.integers(0, 1 << bits, count)
    raw = lightgaussian_codes.written(codes, bits, near, side)
    assert np.array_equal(lightgaussian_codes.read(raw, bits, near, side), codes)


def test_an_ordered_book_and_like_neighbours_save_bits():
    """Colours that go on from neighbour to neighbour: entries in the order of likeness cost less than by lot."""
    rng = np.random.default_rng(0)
    at = rng.integers(0, 4000, (3000, 3))
    at = at[np.argsort(keys(at))]
    x = np.stack([np.sin(at[:, 0] / 900), np.cos(at[:, 1] / 700)], 1) + 0.05 * rng.standard_normal((3000, 2))
    book = learnt(x, np.ones(3000), 64, **LEARNING)
    near, side = Near.of(at).who, np.zeros(3000, np.int64)
    sizes = [
        lightgaussian_codes.written(nearest(x.astype(np.float32), book[order]), 6, near, side).size
        for order in (ordered(book), rng.permutation(64))
    ]
    assert sizes[0] < 0.9 * sizes[1] and sizes[0] < 0.75 * 3000 * 6 / 8
    assert sorted(ordered(book)) == list(range(64))


@pytest.mark.parametrize("plain", [0, 3])
@pytest.mark.parametrize(("count", "degree"), [(1, 2), (63, 1), (400, 2), (63, 0)])
def test_packing_and_unpacking_agree_to_the_bit(count, degree, plain):
    form, cut = formed(solids(max(8, count), degree=degree).take(slice(0, count)), plain=plain)
    for dial in (0.3, 0.004):
        stream, seen, parts, order = lightgaussian_file.write(form, cut, dial, 1.3)
        assert same(lightgaussian_file.read(stream), seen)
        assert sum(parts.values()) <= stream.size
        assert sorted(order) == list(range(count))


def test_a_stream_is_not_believed():
    stream, _, _, _ = lightgaussian_file.write(*formed(solids(300, degree=1)), 0.02)
    head = coded_file._head(lightgaussian_file.PARTS)
    told = head.unpack(stream[: head.size].tobytes())
    for at, value in (
        (0, 2**31),
        (0, 0),
        (1, 5),
        (2, 60),
        (8, float("inf")),
        (8, -1.0),
        (-1, 2**31),
        (-12, 3),
    ):
        fields = list(told)
        fields[at] = value
        raw = head.pack(*fields) + stream[head.size :].tobytes()
        with pytest.raises(CorruptArtefact):
            lightgaussian_file.read(np.frombuffer(raw, np.uint8))
    book = lightgaussian_file._TOLD
    for fields in (
        (9000, 3, 0.1, 1.0),
        (16, 2, 0.1, 1.0),
        (16, 3, np.nan, 1.0),
        (16, 3, 0.1, 0.0),
        (0, 3, 0.1, 1.0),
    ):
        raw = stream[: head.size].tobytes() + book.pack(*fields) + stream[head.size + book.size :].tobytes()
        with pytest.raises(CorruptArtefact):
            lightgaussian_file.read(np.frombuffer(raw, np.uint8))
    for size in (0, 5, head.size, stream.size // 2, stream.size - 1):
        with pytest.raises(CorruptArtefact):
            lightgaussian_file.read(stream[:size])


def test_flipped_bits_give_a_scene_or_a_clear_no():
    stream, _, _, _ = lightgaussian_file.write(*formed(solids(150, degree=1)), 0.02)
    rng = np.random.default_rng(0)
    for _ in range(25):
        bad = stream.copy()
        bad[rng.integers(4, bad.size, 3)] ^= rng.integers(1, 255, 3).astype(np.uint8)
        try:
            back = lightgaussian_file.read(bad)
        except CorruptArtefact:
            continue
        assert len(back) == 150


@pytest.mark.parametrize("budget", ["4%"])
def test_a_budget_is_met_within_two_per_cent(budget):
    scene = solids(900, degree=2)
    limit = QUICK.allowed(scene, budget)
    assert 0.98 * limit <= len(QUICK.encode(scene, budget).to_bytes()) <= limit


def test_the_least_that_it_names_works():
    scene = solids(300, degree=3)
    with pytest.raises(BudgetError) as fault:
        QUICK.encode(scene, 100)
    assert QUICK.encode(scene, fault.value.least).nbytes <= fault.value.least
    with pytest.raises(BudgetError):
        QUICK.encode(scene, fault.value.least - 1)


def test_cameras_of_the_scene_are_what_it_learns_from_and_bad_knobs_are_refused():
    scene = solids(300, degree=1)
    alone = QUICK.encode(scene, "8%").to_bytes()
    known = replace(scene, cameras=tuple(around(scene, 3, width=40, height=40, turn=0.4)))
    assert QUICK.encode(known, "8%").to_bytes() != alone
    for knobs in ({"prune": 1.0}, {"vq": 1.5}, {"codes": 9000}, {"degree": 4}, {"views": 0}, {"dial": 0.0}):
        with pytest.raises(BadInput):
            LightGaussian(**knobs)


def test_the_golden_file_decodes_for_ever():
    """To the bit but for what numpy's own functions round at the end: opacities, and means."""
    with Packed.open(f"{GOLDEN}.hold") as packed, np.load(f"{GOLDEN}.npz") as kept:
        back = LightGaussian().decode(packed)
        for name, array in back.arrays().items():
            np.testing.assert_allclose(array, kept[name], rtol=1e-6, atol=1e-6)
