"""Light4GS: who shows only briefly stays; planes come back to the bit; each context saves bits; what is at rest costs
next to nothing; bits are what was expected; and nobody's bytes are refused in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from holdall.errors import BadInput, CorruptArtefact
from holdall.packed import Packed
from holdall.splats.hexplane_learn import Course, fit_moving
from holdall.splats.light4gs import Light4GS
from holdall.splats.light4gs_file import read, scene_of, write
from holdall.splats.light4gs_gauss import Getter, Putter
from holdall.splats.light4gs_hex import PlaneModel
from holdall.splats.light4gs_learn import spatio_temporal
from holdall.splats.light4gs_net import cost
from holdall.splats.light4gs_planes import step_of
from holdall.splats.light4gs_work import priced_learner, stored_of
from holdall.splats.made_moving import BODIES, filmed, held_out, moving_solids, ring_of
from holdall.splats.moving import likeness
from holdall.splats.moving_random import MovingRandom
from holdall.splats.quality_moving import real, waving
from holdall.splats.scene import C0
from holdall.splats.significance import significance

GOLDEN = Path(__file__).parent.parent / "golden" / "splats-light4gs-v1"
RECIPE = Light4GS(prune=0.3, lambda_planes=0.0005, lambda_sh=0.0005, steps=60, rounds=30, hidden=8, moments=6)


@pytest.fixture(scope="module")
def learnt():
    """(truth, a scene that was trained on pictures of it)."""
    truth = moving_solids(300)
    colours = np.clip(0.5 + C0 * truth.scene.sh[:, 0], 0, 1)
    shape = {"features": 4, "base": 12, "times": 6, "width": 16}
    course = Course(steps=110, still=0.05, grow_until=0.0)
    return truth, fit_moving(filmed(truth, 6, 6, 32), truth.scene.means, colours, course, **shape)


@pytest.fixture(scope="module")
def packed(learnt):
    return RECIPE.encode(learnt[1])


@pytest.fixture(scope="module")
def stored(packed):
    return read(packed.arrays["scene"])


def test_what_moves_is_learnt(learnt):
    """Better at held-out times than the same scene without its motion."""
    truth, x = learnt
    apart = held_out(truth, 6, 6, 32)
    still = replace(x, layers={k: v * 0 for k, v in x.layers.items()})
    assert likeness(x, apart) > likeness(still, apart) + 1.5


def test_what_shows_only_late_is_not_pruned():
    """By the first moment alone the solid that comes late would go; over all times it stays, and what hides goes."""
    truth = moving_solids(600)
    cameras = ring_of(6, width=32)
    late = truth.body == BODIES.index("late")
    seen = spatio_temporal(truth, cameras, np.linspace(0, 1, 6).tolist())
    first = significance(truth.at(0.0), cameras)
    assert first[late].sum() < 1e-3 * first.sum()
    kept = {n: np.argsort(-s)[:300] for n, s in (("all", seen), ("first", first))}
    kept["lot"] = np.random.default_rng(0).permutation(600)[:300]
    share = {n: late[k].sum() / late.sum() for n, k in kept.items()}
    assert share["all"] > 0.3 > share["first"]
    apart = [shot for shot in held_out(truth, 12, 6, 32) if shot.time > 0.6]
    by = {n: likeness(truth.take(k), apart) for n, k in kept.items()}
    assert by["all"] > by["first"] + 2 and by["all"] > by["lot"] + 3, by


def test_a_scene_is_many_times_smaller_and_looks_as_before(learnt, packed):
    truth, x = learnt
    back = RECIPE.decode(Packed.from_bytes(packed.to_bytes()))
    apart = held_out(truth, 6, 6, 32)
    assert packed.nbytes < x.nbytes / 9
    assert len(back) == round(0.7 * len(x))
    assert likeness(back, apart) > likeness(x, apart) - 0.5
    lot = MovingRandom().decode(MovingRandom().encode(x))
    assert likeness(back, apart) > likeness(lot, apart) + 2


def test_planes_come_back_to_the_bit(learnt):
    """What the packing side had in whole numbers is what is read, planes and all, and decoding twice is the same."""
    recipe = RECIPE.but(steps=2, rounds=4)
    learner = priced_learner(recipe, learnt[1])
    mine = stored_of(recipe, learner)
    back = read(write(mine)[0])
    for plane, values in mine.planes.items():
        assert torch.equal(back.planes[plane], values.double())
        assert torch.equal(back.plane(plane), mine.plane(plane))
    assert torch.equal(back.sh, mine.sh.double())
    one, two = mine.scene().arrays(), scene_of(back).arrays()
    for name in one:
        wanted = one[name].astype(np.float16).astype(np.float32) if name.startswith("layer") else one[name]
        assert np.array_equal(wanted, two[name]), name


def test_noise_is_as_wide_as_a_step_and_becomes_rounding(learnt):
    learner = priced_learner(RECIPE.but(steps=10), learnt[1])
    x = torch.linspace(-30, 30, 4001)
    away = learner._noisy(x) - x
    assert away.abs().max() <= 0.5 and abs(away.mean()) < 0.02 and abs(away.std() - 12**-0.5) < 0.01
    learner.done = 7
    assert torch.equal(learner._noisy(x), x.round())


def test_bits_are_what_the_tables_expect_to_the_last_words(packed):
    parts, by_tables = packed.notes["parts"], packed.notes["bits"]
    for name, bits in zip(("planes", "harmonics"), by_tables, strict=True):
        assert -8 < 8 * parts[name] - bits < 96 + 0.01 * bits, name
    assert abs(sum(packed.notes["planes"].values()) - by_tables[0]) < 1


def ladder(stored):
    """Bytes of the same planes with more and more contexts."""
    steps = {k: step_of(v) for k, v in stored.steps.items()}
    values = {k: v.float() for k, v in stored.planes.items()}
    found = []
    for count in (0, 1, 2, 4):
        order = ("intra", "inter", "coarse", "hyper")
        model = PlaneModel(2, frozenset(order[count:]), 8)
        model.fit(values, steps, 30, 0.03)
        put, _ = model.write(values, steps)
        expected = float(sum(v.detach() for v in model.bits(values, steps).values()))
        found.append((put.stream().size, expected / 8))
    return found


def test_contexts_save_bits_and_expectation_is_within_3_percent(stored):
    found = ladder(stored)
    sizes = [real for real, _ in found]
    assert sizes[1] < 0.93 * sizes[0], sizes
    assert sizes[2] < 0.99 * sizes[1] and sizes[3] < 0.99 * sizes[2], sizes
    for real_size, expected in found:
        assert abs(real_size - expected) < 0.03 * real_size + 16, found


def test_what_is_at_rest_costs_a_tenth_of_what_moves():
    moving = waving(real().still, 2, ((12, 12, 12, 12),), size=0.5)
    rest = replace(moving, planes=tuple(tuple(p if i not in (2, 4, 5) else p * 0 + 1 for i, p in enumerate(six))
                                        for six in moving.planes))  # fmt: skip
    recipe = Light4GS(**{**Light4GS.brief, "rounds": 15})
    spent = []
    for x in (moving, rest):
        learner = priced_learner(recipe, x)
        notes = __import__("holdall.splats.light4gs_file", fromlist=["write"]).write(
            stored_of(recipe, learner)
        )[1]
        spent.append(sum(notes["planes"][f"0/{i}"] for i in (2, 4, 5)))
    assert spent[1] < 0.1 * spent[0], spent


def test_numbers_of_any_size_come_back_and_cost_what_they_should():
    rng = np.random.default_rng(0)
    widths, middles = rng.integers(0, 65, 4000), rng.integers(-900, 900, 4000)
    values = np.rint(middles / 16 + 2.0 ** (widths / 8 - 4) * rng.standard_normal(4000)).astype(np.int64)
    values[::499] += rng.integers(-100_000, 100_000, len(values[::499]))
    put = Putter()
    put.put(values[:1500], middles[:1500], widths[:1500])
    put.put(values[1500:], middles[1500:], widths[1500:])
    raw = put.stream()
    get = Getter(raw)
    assert (
        np.concatenate([get.get(middles[:1500], widths[:1500]), get.get(middles[1500:], widths[1500:])])
        == values
    ).all()
    get.close()
    usual = np.flatnonzero((np.arange(4000) % 499 > 0) & (widths < 48))
    put = Putter()
    put.put(values[usual], middles[usual], widths[usual])
    told = [torch.from_numpy(a[usual]).double() for a in (values, middles, widths)]
    expected = float(cost(*told).sum())
    assert abs(put.bits - expected) < 0.02 * expected and abs(8 * put.stream().size - put.bits) < 96
    with pytest.raises(CorruptArtefact):
        Getter(raw).close()
    with pytest.raises(CorruptArtefact):
        Getter(raw[:-1])


def test_a_budget_coarsens_and_then_prunes():
    recipe, x = Light4GS(**Light4GS.brief), real()
    free = recipe.encode(x)
    coarse, few = (recipe.encode(x, int(free.nbytes * share)) for share in (0.9, 0.55))
    assert coarse.notes["kept"] == free.notes["kept"] > few.notes["kept"]
    steps = [read(p.arrays["scene"]).steps[0, 0] for p in (free, coarse)]
    assert (steps[1] > steps[0]).all() and few.nbytes <= free.nbytes * 0.55


def test_hostile_streams_are_refused_in_one_line():
    raw = Light4GS(**Light4GS.brief).encode(real()).arrays["scene"]
    rng = np.random.default_rng(0)
    seen = 0
    for trial in range(24):
        bad = raw.copy()
        if trial % 3 == 0:
            bad = bad[: rng.integers(0, bad.size)]
        elif trial % 3 == 1:
            bad[rng.integers(0, 180)] ^= 1 << rng.integers(0, 8)
        else:
            bad[rng.integers(180, bad.size, 3)] ^= 255
        try:
            scene_of(read(bad))
        except CorruptArtefact as fault:
            seen += 1
            assert "\n" not in str(fault)
    assert seen > 10


def test_scenes_that_cannot_be_drawn_are_refused(learnt):
    x = learnt[1]
    planes = tuple(tuple(p * np.nan for p in six) for six in x.planes)
    with pytest.raises(BadInput, match="NaN"):
        RECIPE.encode(replace(x, planes=planes))
    with pytest.raises(BadInput, match="HexScene"):
        RECIPE.encode(x.still)
    with pytest.raises(BadInput, match="share"):
        Light4GS(prune=1.0)


def test_the_golden_file_decodes_for_ever():
    back = Light4GS().decode(Packed.open(f"{GOLDEN}.hold")).arrays()
    with np.load(f"{GOLDEN}.npz") as wanted:
        assert {k.replace("/", ".") for k in back} == set(wanted.files)
        for name, found in back.items():
            assert np.array_equal(found, wanted[name.replace("/", ".")]), name
