"""Compact spacetime Gaussians: they follow what moves, masks shut what is not missed, books learn, one file has all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.splats.compact_moving import CompactMoving
from holdall.splats.made_moving import BODIES, filmed, held_out, moving_solids, ring_of
from holdall.splats.moving import likeness
from holdall.splats.scene import C0

torch = pytest.importorskip("torch")
pytest.importorskip("holdall.splats.compact3dgs_bits", reason="numba")

from holdall.splats import (  # noqa: E402
    compact3dgs_turns,
    compact_moving_file,
    compact_moving_work,
    spacetime,
    spacetime_from,
)
from holdall.splats.compact3dgs_train import Plan, learnt  # noqa: E402
from holdall.splats.formats import known  # noqa: E402
from holdall.splats.likeness import photometric  # noqa: E402
from holdall.splats.raster import render  # noqa: E402
from holdall.splats.residual import naive_encode  # noqa: E402
from holdall.splats.residual_learnt import LearntBooks  # noqa: E402
from holdall.splats.spacetime_train import CompactSpacetimeLearner, SpacetimeLearner  # noqa: E402

COUNT, STEPS = 900, 120


GOLDEN = Path(__file__).parent.parent / "golden" / "splats-compact_moving-v1"


class Photographs:
    """A made scene as `read_photos` gives frames with times."""

    def __init__(self, shots):
        self.cameras = tuple(replace(s.camera, time=s.time) for s in shots)
        self._pictures = [s.picture for s in shots]
        self.train, self.held_out = tuple(range(len(shots))), ()
        self.background, self.points = np.ones(3, np.float32), None

    def image(self, i):
        return self._pictures[i]


class Studio:
    def __init__(self):
        self.truth = moving_solids(COUNT)
        self.photos = Photographs(filmed(self.truth, 6, 8, 40))
        self.held = held_out(self.truth, 6, 8, 40)
        self.start = spacetime_from.followed(self.truth)

    def trained(self, lambda_mask):
        field = compact_moving_work._field(CompactMoving(), self.start, COUNT)
        compact_moving_work._taught(field, self.start, 100, 0.01)
        learner = CompactSpacetimeLearner(
            self.start, field, lambda_mask=lambda_mask, mask_rate=0.15, steps=STEPS
        )
        view = lambda i: (self.photos.cameras[i], self.photos.image(i))  # noqa: E731
        plan = Plan(STEPS, grow_until=0, grow_each=STEPS // 10)
        learnt(learner, view, self.photos.train, plan, quantise=lambda: learner.quantise((3, 2), 64))
        return learner

    def psnr(self, moving):
        return likeness(moving, self.held)


@pytest.fixture(scope="module")
def studio():
    return Studio()


@pytest.fixture(scope="module")
def unmasked(studio):
    return studio.trained(0.0)


@pytest.fixture(scope="module")
def masked(studio):
    return studio.trained(0.08)


def test_masks_shut_a_third_that_nobody_misses_and_a_lot_does_not(studio, unmasked, masked):
    assert len(unmasked) == COUNT and len(masked) <= 0.7 * COUNT
    whole = unmasked.moving()
    lot = np.random.default_rng(1).permutation(COUNT)[: len(masked)]
    assert studio.psnr(whole) - studio.psnr(masked.moving()) <= 0.3
    assert studio.psnr(whole) - studio.psnr(whole.take(lot)) > 2.0


def test_the_file_is_a_fifth_of_the_same_gaussians_as_float32_and_looks_the_same(studio, masked):
    stream, parts = compact_moving_file.write(compact_moving_work.compact(masked), 12, 16, 0.1)
    back = compact_moving_file.read(stream)
    assert stream.size <= 4 * 35 * COUNT / 5 and sum(parts.values()) <= stream.size
    assert studio.psnr(back) >= studio.psnr(masked.moving()) - 0.1
    assert studio.psnr(back) > studio.psnr(studio.start) + 3


def test_each_thing_that_time_changes_is_learnt_and_missed(studio, masked):
    whole = masked.moving()
    best = studio.psnr(whole)
    assert best - studio.psnr(replace(whole, motion=0 * whole.motion)) > 3
    assert best - studio.psnr(replace(whole, spans=0 * whole.spans + 3)) > 3
    assert best - studio.psnr(replace(whole, spins=0 * whole.spins)) > 0.2
    blind = (whole.decoder[0] * (np.arange(9) < 6)[:, None], whole.decoder[1])
    assert best - studio.psnr(replace(whole, decoder=blind)) > 0.1


def test_colours_that_change_are_learnt_where_they_do():
    """Of a floor whose colours turn around, the last three features tell the most."""
    truth = moving_solids(200, degree=0)
    floor = truth.take(truth.body == 0)
    turned = replace(floor.scene, sh=-floor.scene.sh)
    (camera,) = ring_of(1, width=32)
    views = [
        (replace(camera, time=t), render(scene, camera, (1, 1, 1)).colour)
        for t, scene in ((0.0, floor.scene), (1.0, turned))
    ]
    learner = SpacetimeLearner(spacetime_from.followed(floor), steps=150, rates={"features": 0.05})
    learner._decode.param_groups[0]["lr"] = 0.02
    learnt(learner, lambda i: views[i], (0, 1), Plan(150, grow_until=0))
    found = learner.moving()
    plain = replace(found, features=found.features * (np.arange(9) < 6))

    def miss(x):
        shown = [render(x.at(view.time), view, (1, 1, 1)).colour for view, _ in views]
        return np.mean([(a - b) ** 2 for a, (_, b) in zip(shown, views, strict=True)])

    assert miss(found) < miss(plain) / 3


def naive_at(x, i, t):
    """Place, quaternion and opacity of one Gaussian, in plain numbers."""
    off = float(t) - float(x.times[i])
    place = [
        float(x.means[i, a]) + sum(float(x.motion[i, k, a]) * off ** (k + 1) for k in range(3))
        for a in range(3)
    ]
    quat = x.quats[i].astype(float) + off * x.spins[i].astype(float)
    opacity = 1 / (1 + np.exp(-float(x.opacities[i]))) * np.exp(-((off / np.exp(float(x.spans[i]))) ** 2))
    return place, quat / np.linalg.norm(quat), opacity


def test_a_moment_is_what_its_slow_truth_is(studio):
    rng = np.random.default_rng(2)
    n = 7
    x = replace(
        studio.start.take(slice(0, n)),
        motion=rng.standard_normal((n, 3, 3)), spins=rng.standard_normal((n, 4)), times=rng.random(n),
        spans=rng.normal(-1, 1, n), features=rng.standard_normal((n, 9)),
    )  # fmt: skip
    for t in (0.0, 0.37, 1.0):
        now = x.at(t)
        for i in range(n):
            place, quat, opacity = naive_at(x, i, t)
            np.testing.assert_allclose(now.means[i], place, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(now.quats[i], quat, rtol=1e-4, atol=1e-5)
            shown = 1 / (1 + np.exp(-float(now.opacities[i])))
            np.testing.assert_allclose(shown, min(max(opacity, 1e-13), 1 - 1e-6), rtol=1e-3, atol=1e-9)
    with pytest.raises(BadInput, match="0 to 1"):
        x.at(1.5)


def test_a_moment_has_harmonics_that_stand_for_the_decoder(masked):
    from holdall.splats.colour_field import evenly
    from holdall.splats.naive_raster import naive_harmonics

    x, ways = masked.moving(), torch.from_numpy(evenly(17))
    off = torch.from_numpy(0.8 - x.times)[:, None]
    layers = [torch.from_numpy(a) for a in x.decoder]
    features = torch.from_numpy(x.features)[:, None].expand(-1, 17, -1)
    wanted = C0 * spacetime.coloured(features, off, ways.expand(len(x), -1, -1), layers)
    shown = torch.einsum("wk,nkc->nwc", naive_harmonics(ways)[:, :9], torch.from_numpy(x.at(0.8).sh))
    varied = (wanted - wanted.mean(1, keepdim=True)).square().mean()
    assert varied > 1e-5 and (shown - wanted).square().mean() < 0.1 * varied


def test_what_moves_is_followed_before_anything_is_learnt(studio):
    start, truth = studio.start, studio.truth
    for name, near in (("floor", 1e-3), ("ball", 1e-3), ("ring", 0.02)):
        some = truth.body == BODIES.index(name)
        for t in (0.1, 0.9):
            away = np.linalg.norm((start.at(t).means - truth.at(t).means)[some], axis=1)
            assert away.max() < near, name
    late = truth.body == BODIES.index("late")
    shows = 1 / (1 + np.exp(-start.at(0.2).opacities[late]))
    whole = 1 / (1 + np.exp(-start.at(1.0).opacities[late]))
    assert shows.max() < 0.1 and np.median(whole) > 0.5
    turned, wanted = (
        compact3dgs_turns.turned(q / np.linalg.norm(q, axis=1, keepdims=True))
        for q in (x.at(0.9).quats.astype(float)[truth.body == 1] for x in (start, truth))
    )
    assert np.abs(turned - wanted).max() < 0.1
    assert spacetime_from.followed(start) is start


def test_axes_are_renamed_and_turn_on_as_before(studio):
    x = studio.start
    unit = x.quats / np.linalg.norm(x.quats, axis=1, keepdims=True)
    scales, quats, spins = compact3dgs_turns.nearest_to_none(x.scales, unit, x.spins)

    def spread(scales, quats):
        axes = compact3dgs_turns.turned(quats.astype(float) / np.linalg.norm(quats, axis=1, keepdims=True))
        axes = axes * np.exp(scales)[:, None]
        return axes @ axes.swapaxes(1, 2)

    assert np.abs(x.spins).max() > 0.1
    for off in (-0.5, 0.5):
        wanted = spread(x.scales, unit + off * x.spins)
        assert np.allclose(spread(scales, quats + off * spins), wanted, rtol=1e-3, atol=1e-6)


def test_books_are_taught_by_gradients_and_pass_them_on():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    books = LearntBooks(x, 2, 16, rate=0.05)
    taken = books(x)
    tables, codes = (
        books.tables.detach().numpy(),
        naive_encode(books.tables.detach().numpy(), x.detach().numpy()),
    )
    assert np.allclose(
        taken.detach().numpy(), sum(t[c] for t, c in zip(tables, codes.T, strict=True)), atol=1e-6
    )
    wanted = 2 * x.detach() + 1
    (taken - wanted).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * (taken - wanted).detach())  # straight through
    with torch.no_grad():
        books.tables += torch.randn(books.tables.shape, generator=torch.Generator().manual_seed(1))
    misses = []
    for _ in range(40):
        books.tables.grad = None
        books(x.detach())
        misses.append(float(books.missed.detach()))
        books.missed.backward()
        books.step()
    assert misses[-1] < misses[0] / 2


def test_what_books_miss_is_part_of_the_loss(studio):
    learner = CompactSpacetimeLearner(
        studio.start, compact_moving_work._field(CompactMoving(), studio.start, COUNT), lambda_mask=0.0
    )
    learner.quantise((3, 2), 16)
    camera, wanted = studio.photos.cameras[0], torch.as_tensor(studio.photos.image(0))
    loss = float(learner.loss(camera, wanted).detach())
    missed = sum(float(books.missed.detach()) for books in learner.books.values())
    seen = float(photometric(learner.show(camera), wanted).detach())
    assert missed > 0 and loss == pytest.approx(seen + missed, rel=1e-5)


@pytest.mark.parametrize("count", [1, 63])
def test_ways_are_stored_in_even_steps_or_as_halves(count):
    ways = np.random.default_rng(count).normal(0, 0.3, (count, 9)).astype(np.float32)
    ways[0, :3] = 0, 1e4, -1e4
    for step in (0.01, 0.0):
        codes = compact_moving_file._ways(ways, step)
        raw = compact_moving_file._columns_written(codes)
        assert np.array_equal(compact_moving_file._columns_read(raw, count), codes)
        back = compact_moving_file._ways_of(codes, step)
        if step:
            assert np.abs(back - ways)[ways < 300][3:].max(initial=0) <= step / 2 + 1e-6
            assert np.allclose(back[0, :3], [0, 327.67, -327.67])
        else:
            assert np.array_equal(back, ways.astype(np.float16).astype(np.float32))


def test_photographs_with_times_become_the_same_scene_for_the_same_seed_within_a_budget(studio):
    recipe = CompactMoving(steps=30, levels=4, neurons=16, codes=16)
    scene, packed = recipe.fit(studio.photos, start=300, most=400)
    assert packed.to_bytes() == recipe.fit(studio.photos, start=300, most=400)[1].to_bytes()
    back = recipe.decode(Packed.from_bytes(packed.to_bytes()))
    assert all(np.array_equal(a, back.arrays()[k]) for k, a in scene.arrays().items())
    _, small = recipe.fit(studio.photos, "6kB", start=300, most=400)
    assert 4500 < small.nbytes <= 6000 < packed.nbytes
    with pytest.raises(BudgetError, match="least"):
        recipe.fit(studio.photos, 1000)
    studio.photos.cameras, kept = (
        tuple(replace(c, time=None) for c in studio.photos.cameras),
        studio.photos.cameras,
    )
    with pytest.raises(BadInput, match="without a time"):
        recipe.fit(studio.photos)
    studio.photos.cameras = kept


def test_what_a_budget_leaves_out_is_what_is_seen_least(studio, masked):
    whole = compact_moving_work.compact(masked)
    packed = compact_moving_work._within(CompactMoving(), whole, list(studio.photos.cameras), None)
    less = compact_moving_work._within(
        CompactMoving(), whole, list(studio.photos.cameras), packed.nbytes - 3000
    )
    kept = CompactMoving().decode(less)
    lot = masked.moving().take(np.random.default_rng(3).permutation(len(masked))[: len(kept)])
    assert 200 < len(kept) < 0.9 * len(masked)
    assert studio.psnr(kept) > studio.psnr(lot) + 2


def test_heads_that_cannot_be_are_refused(masked):
    stream, _ = compact_moving_file.write(compact_moving_work.compact(masked), 12, 16, 0.1)
    for at in (3, 4, 5, 6, 8, 9, 10, 11, 14):
        bad = stream.copy()
        bad[at] = 255
        with pytest.raises(CorruptArtefact):
            compact_moving_file.read(bad)
    for end in (0, 30, 150, stream.size // 2, stream.size - 1):
        with pytest.raises(CorruptArtefact):
            compact_moving_file.read(stream[:end])


def test_a_ply_of_spacetime_gaussians_comes_back_and_is_no_still_scene(masked, tmp_path):
    x, url = masked.moving(), str(tmp_path / "scene.ply")
    CompactMoving.write_output(x, url)
    back = CompactMoving.read_input(url)
    assert all(np.array_equal(a, back.arrays()[k]) for k, a in x.arrays().items())
    head = (tmp_path / "scene.ply").read_bytes()
    assert CompactMoving.sniff(url, head) and known(url, head) is None
    lite = b"property float f_way_0\n", b"property float old_way_0\n"
    (tmp_path / "lite.ply").write_bytes(head.replace(*lite).replace(b"element decoder", b"element ignored"))
    plain = CompactMoving.read_input(str(tmp_path / "lite.ply"))
    assert np.array_equal(plain.features[:, :3], x.features[:, :3]) and not plain.features[:, 3:].any()
    assert not plain.decoder[0].any() and np.array_equal(plain.motion, x.motion)
    for bad, wanted in (
        (head.replace(b"omega_3", b"omegaX3"), "no omega_3"),
        (head[: len(head) // 2], "bytes"),
        (head.replace(b"trbf_scale", b"trbf_wrong"), "no trbf_scale"),
    ):
        (tmp_path / "bad.ply").write_bytes(bad)
        with pytest.raises((BadInput, CorruptArtefact), match=wanted):
            CompactMoving.read_input(str(tmp_path / "bad.ply"))
    with pytest.raises(BadInput, match="ply"):
        CompactMoving.write_output(x, str(tmp_path / "scene.spz"))


@pytest.mark.parametrize(
    "wild", [{"means": 1e20}, {"scales": 1e30, "opacities": -1e30}, {"quats": 1e30, "spins": 1e30}, {"spans": -1e30},
             {"motion": 1e20, "features": 1e20}]
)  # fmt: skip
def test_numbers_at_the_edge_of_float32_are_packed_with_the_rest(studio, wild):
    columns = {name: a[:60].copy() for name, a in studio.start.columns().items()}
    for name, value in wild.items():
        columns[name][3] = value
    x = spacetime.SpacetimeScene(**columns, decoder=studio.start.decoder)
    recipe = CompactMoving(steps=2, views=2, moments=2, width=24, levels=2, neurons=4, codes=8)
    back = recipe.decode(recipe.encode(x)).checked()
    assert len(back) > 50 and np.median(back.scales) < 0 and back.at(0.3).checked()


def test_a_still_scene_is_another_methods():
    with pytest.raises(BadInput, match="compact3dgs"):
        CompactMoving().encode(moving_solids(20).scene)
    with pytest.raises(BadInput, match="codes: got 500; wanted 1 to 256"):
        CompactMoving(codes=500)


def test_the_golden_file_decodes_for_ever():
    """To the bit but for colours, which are products of matrices."""
    with Packed.open(f"{GOLDEN}.hold") as packed, np.load(f"{GOLDEN}.npz") as kept:
        back = CompactMoving.from_dict(packed.meta["method"]).decode(packed).arrays()
        assert set(back) == set(kept.files)
        for name, array in back.items():
            loose = name in ("sh", "features")
            np.testing.assert_allclose(
                array, kept[name], rtol=1e-3 if loose else 1e-6, atol=1e-4 if loose else 1e-6
            )
