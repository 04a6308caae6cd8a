"""Compact-3DGS: masks shut what is not missed, books of residuals, colours from a field, and a file that has it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.splats.camera import around
from holdall.splats.compact3dgs import Compact3DGS
from holdall.splats.made import solids
from holdall.splats.quality import held_out, likeness, pictures, same
from holdall.splats.residual import Books, naive_encode
from holdall.splats.scene import Scene

torch = pytest.importorskip("torch")
compact3dgs_bits = pytest.importorskip("holdall.splats.compact3dgs_bits", reason="numba")

from holdall.splats import (  # noqa: E402
    colour_field_file,
    compact3dgs_file,
    compact3dgs_start,
    compact3dgs_turns,
    compact3dgs_work,
)
from holdall.splats.colour_field import ColourField, _Grid, contracted, evenly, naive_features  # noqa: E402
from holdall.splats.compact3dgs_train import CompactLearner, Plan, cut, learnt  # noqa: E402
from holdall.splats.learner import Learner, beginning  # noqa: E402
from holdall.splats.naive_raster import naive_harmonics, naive_render  # noqa: E402
from holdall.splats.raster import significance  # noqa: E402

COUNT, STEPS, SIDE, VIEWS = 2000, 150, 40, 16


GOLDEN = Path(__file__).parent.parent / "golden" / "splats-compact3dgs-v1"


class Photographs:
    """Pictures of a made scene, as `read_photos` gives them."""

    def __init__(self, scene, views, side, points=None):
        self.cameras = tuple(around(scene, views, width=side, height=side))
        self._pictures = [d.colour for d in pictures(scene, self.cameras)]
        self.train, self.held_out = tuple(range(views)), ()
        self.background, self.points = np.ones(3, np.float32), points

    def image(self, i):
        return self._pictures[i]


class Studio:
    """The same training, again and again, of another kind each time."""

    def __init__(self):
        self.truth = solids(1500, degree=2)
        self.photos = Photographs(self.truth, VIEWS, SIDE)
        self.places = np.stack([c.place for c in self.photos.cameras]).astype(np.float32)
        self.held = held_out(self.truth, 6, SIDE, SIDE)
        self.seen = pictures(self.truth, self.held)
        rng = np.random.default_rng(0)
        at = self.truth.means[rng.integers(0, 1500, COUNT)] + 0.05 * rng.standard_normal((COUNT, 3))
        self.start = beginning(at.astype(np.float32), np.full((COUNT, 3), 0.5))

    def trained(self, lambda_mask):
        field = ColourField.fresh(self.start.box(), levels=8, table=9, width=32)
        learner = CompactLearner(self.start, field, lambda_mask=lambda_mask, mask_rate=0.13, steps=STEPS)
        self.run(learner, lambda: learner.quantise(6, 64))
        return learner

    def run(self, learner, quantise=None):
        plan = Plan(STEPS, grow_until=0, grow_each=STEPS // 10)
        view = lambda i: (self.photos.cameras[i], self.photos.image(i))  # noqa: E731
        learnt(learner, view, self.photos.train, plan, quantise=quantise)

    def psnr(self, scene):
        return likeness(self.seen, pictures(scene, self.held))["psnr"]

    def scene(self, learner):
        return learner.compact(self.places).scene()


@pytest.fixture(scope="module")
def studio():
    return Studio()


@pytest.fixture(scope="module")
def unmasked(studio):
    return studio.trained(0.0)


@pytest.fixture(scope="module")
def masked(studio):
    return studio.trained(0.06)


def test_masks_shut_a_third_of_the_gaussians_that_nobody_misses_and_a_lot_does_not(studio, unmasked, masked):
    assert len(unmasked) == COUNT and len(masked) <= 0.7 * COUNT
    whole = studio.scene(unmasked)
    lot = np.random.default_rng(1).permutation(COUNT)[: len(masked)]
    assert studio.psnr(whole) - studio.psnr(studio.scene(masked)) <= 0.3
    assert studio.psnr(whole) - studio.psnr(whole.take(lot)) > 2.0


def test_the_file_is_a_tenth_of_what_plain_training_leaves_and_looks_no_worse(studio, masked):
    plain = Learner(studio.start.with_degree(3), steps=STEPS)
    studio.run(plain)
    stream, parts = compact3dgs_file.write(masked.compact(studio.places), 13, 0.1)
    back = compact3dgs_file.read(stream).scene()
    assert stream.size <= 4 * 62 * len(plain) / 10 and sum(parts.values()) <= stream.size
    assert studio.psnr(back) >= studio.psnr(plain.scene()) - 1.0
    assert studio.psnr(back) >= studio.psnr(studio.scene(masked)) - 0.2


def test_a_mask_scales_size_and_opacity_and_both_pass_its_gradient_on(studio):
    scene = studio.start.take(slice(0, 30))
    scene = Scene(scene.means, scene.scales, scene.quats, np.linspace(-2, 2, 30), scene.sh)
    camera = studio.photos.cameras[0]
    field = ColourField.fresh(scene.box(), levels=3, table=6, width=8)
    learner = CompactLearner(scene, field, lambda_mask=0.0)
    learner.show(camera).square().sum().backward()
    mask = learner.params["mask"].detach()
    there = torch.ones(30, dtype=torch.float64, requires_grad=True)
    columns = [
        torch.from_numpy(getattr(scene, n)).double() for n in ("means", "scales", "quats", "opacities")
    ]
    base = field(torch.from_numpy(scene.means), camera.place).detach().double()[:, None]
    scales = columns[1] + torch.log(there)[:, None]
    opacities = torch.logit(torch.sigmoid(columns[3]) * there)
    ground = torch.ones(3, dtype=torch.float64)
    shown, _ = naive_render(columns[0], scales, columns[2], opacities, base, camera, ground)
    shown.square().sum().backward()
    wanted = there.grad * (torch.sigmoid(mask) * torch.sigmoid(-mask)).double()
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(learner.params["mask"].grad.double(), wanted, rtol=0.02, atol=1e-4)


def test_what_is_shut_is_not_drawn_and_goes_with_its_moments(studio):
    scene = studio.start.take(slice(0, 40))
    camera = studio.photos.cameras[0]
    learner = CompactLearner(
        scene, ColourField.fresh(scene.box(), levels=3, table=6, width=8), lambda_mask=0.1
    )
    learner.step(learner.loss(camera, studio.photos.image(0)))
    with torch.no_grad():
        learner.params["mask"][10:] = -6.0
        before = learner.show(camera)
    moments = learner._moments["means"][0][:10].clone()
    assert moments.abs().sum() > 0 and cut(learner) == 30 and len(learner) == 10
    assert torch.equal(learner._moments["means"][0], moments)
    with torch.no_grad():
        torch.testing.assert_close(learner.show(camera), before)
        learner.params["mask"][:] = -6.0
    cut(learner)
    assert len(learner) == 1


def test_six_books_miss_a_tenth_of_what_one_does_and_are_what_their_slow_truth_is():
    scales, quats, *_ = compact3dgs_turns.nearest_to_none(solids(1500).scales, solids(1500).quats)
    for x in (np.exp(scales), quats):
        six, one = Books.learnt(x, 6, 64), Books.learnt(x, 1, 64)
        codes = six.encode(x)
        assert np.array_equal(codes, naive_encode(six.tables, x))
        assert 10 * ((six.decode(codes) - x) ** 2).mean() < ((one.decode(one.encode(x)) - x) ** 2).mean()
    few = Books.learnt(quats[:5], 2, 64)
    assert (
        few.tables.shape == (2, 5, 4) and np.abs(few.decode(few.encode(quats[:5])) - quats[:5]).max() < 1e-6
    )


def test_books_follow_what_they_stand_for():
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    books = Books.learnt(x, 2, 16)
    moved = 3 * x + 1

    def miss():
        return ((books.decode(books.encode(moved)) - moved) ** 2).mean()

    first = miss()
    taken = books.follow(moved)
    assert np.isclose(((taken - moved) ** 2).mean(), first)
    for _ in range(20):
        books.follow(moved)
    assert miss() < first / 5


def test_axes_are_named_so_that_they_turn_least_and_the_gaussian_is_the_same():
    scene = solids(300)
    scales, quats, *_ = compact3dgs_turns.nearest_to_none(scene.scales, scene.quats)
    assert len(compact3dgs_turns.renamings()[0]) == 24
    assert quats[:, 0].min() > 0.78  # cos of half of 62.8 degrees: no turn is farther from all 24

    def spread(scales, quats):
        unit = quats.astype(float) / np.linalg.norm(quats.astype(float), axis=1, keepdims=True)
        axes = compact3dgs_turns.turned(unit) * np.exp(scales)[:, None]
        return axes @ axes.swapaxes(1, 2)

    assert np.allclose(spread(scales, quats), spread(scene.scales, scene.quats), rtol=1e-4, atol=1e-7)
    renamed = Books.learnt(quats, 3, 64)
    signed = scene.quats / np.linalg.norm(scene.quats, axis=1, keepdims=True)
    plain = Books.learnt(signed, 3, 64)
    error = [((b.decode(b.encode(x)) - x) ** 2).mean() for b, x in ((renamed, quats), (plain, signed))]
    assert error[0] < error[1] / 2


@pytest.mark.parametrize(("levels", "table", "count"), [(1, 4, 1), (5, 13, 7), (9, 8, 5)])
def test_the_grid_and_its_way_back_are_what_their_slow_truth_is(levels, table, count):
    draw = torch.Generator().manual_seed(levels)
    entries = torch.randn(levels, 1 << table, 2, generator=draw, requires_grad=True)
    places = torch.rand(count, 3, generator=draw)
    places[0] = torch.tensor([0.0, 1.0, 1.0])
    fast, slow = _Grid.apply(entries, places), naive_features(entries, places)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    weight = torch.randn(fast.shape, generator=draw)
    grads = [torch.autograd.grad((x * weight).sum(), entries)[0] for x in (fast, slow)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert grads[0].abs().sum() > 0


def test_what_is_far_is_bent_into_the_cube_in_its_order():
    frame = np.array([1, 2, 3, 2], np.float32)
    away = torch.tensor([0.0, 0.5, 1.0, 2.0, 10.0, 1e6])
    at = torch.tensor([1.0, 2.0, 3.0]) + 2 * away[:, None] * torch.tensor([1.0, 0, 0])
    x = contracted(at, frame)
    assert torch.allclose(x[:, 0], torch.tensor([0.5, 0.625, 0.75, 0.875, 0.975, 1.0]), atol=1e-5)
    assert torch.allclose(x[:, 1:], torch.tensor(0.5))


def test_harmonics_stand_for_the_field_and_most_from_where_it_was_seen():
    field = ColourField.fresh(([-1] * 3, [1] * 3), levels=4, table=8, width=32, seed=3)
    with torch.no_grad():
        field.table.uniform_(-3, 3)
    means = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    around_it = 4 * evenly(24)
    above = around_it[around_it[:, 1] > 1]

    def miss(degree, learnt_from, judged=evenly(7) * 4):  # noqa: B008
        """Of the whole, from other places."""
        sh = torch.from_numpy(field.harmonics(means, learnt_from, degree))
        off = all_ = 0.0
        for place in judged:
            way = torch.nn.functional.normalize(torch.from_numpy(means - place), dim=1)
            shown = torch.einsum("nk,nkc->nc", naive_harmonics(way)[:, : sh.shape[1]], sh)
            wanted = 0.28209479 * field(torch.from_numpy(means), place).detach()
            off += float((shown - wanted).square().sum())
            all_ += float(wanted.square().sum())
        return off / all_

    assert miss(0, around_it) > 5 * miss(2, around_it) > 6 * miss(3, around_it) and miss(3, around_it) < 0.01
    judged = above[::2] + 0.3
    assert miss(1, above, judged) < 0.7 * miss(1, around_it, judged)


@pytest.mark.parametrize("shape", [(1, 1), (63, 3), (500, 13)])
def test_columns_come_back_and_cost_less_where_they_repeat(shape):
    rng = np.random.default_rng(shape[0])
    rows = rng.integers(0, 256, shape).astype(np.uint8)
    groups = np.sort(rng.integers(0, 2, shape[0]))
    raw = compact3dgs_bits.written(rows, groups, 2)
    assert np.array_equal(compact3dgs_bits.read(raw, shape, groups, 2), rows)
    like = np.repeat(rows[:, :1] % 4, shape[1], 1)
    assert compact3dgs_bits.written(like, groups, 2).size <= max(8, raw.size // 3)


def test_a_budget_keeps_what_is_seen_most_and_says_the_least():
    scene, recipe = solids(600, degree=1), Compact3DGS(**Compact3DGS.brief)
    packed = recipe.encode(scene, 9000)
    assert 0.9 * 9000 < packed.nbytes <= 9000
    with pytest.raises(BudgetError) as fault:
        recipe.encode(scene, 1000)
    least = recipe.encode(scene, int(fault.value.least))
    assert least.nbytes <= fault.value.least and len(recipe.decode(least)) == 1


def test_what_a_budget_leaves_out_is_what_is_seen_least():
    scene, recipe = solids(400, degree=0), Compact3DGS(**Compact3DGS.brief)
    cameras = around(scene, 3, width=48, height=48)
    field = ColourField.fresh(scene.box(), levels=8, table=7, width=16)
    learner = CompactLearner(scene, field, lambda_mask=0.0)
    whole = compact3dgs_work._within(recipe, learner, cameras, None)
    less = compact3dgs_work._within(recipe, learner, cameras, whole.nbytes - 2000)
    seen, left = (significance(recipe.decode(p), cameras) for p in (whole, less))
    assert 100 < len(left) < 300 and left.sum() > 0.95 * seen.sum()


def test_the_field_learns_the_harmonics_that_a_scene_has():
    scene = solids(300, degree=1)
    cameras = around(scene, 4, width=32, height=32)
    field = ColourField.fresh(scene.box(), levels=8, table=8, width=16)
    compact3dgs_work._taught(field, scene, cameras, 80, 0.01)
    means, place = torch.from_numpy(scene.means), cameras[1].place
    way = torch.nn.functional.normalize(torch.from_numpy(scene.means - place).float(), dim=1)
    wanted = torch.einsum("nk,nkc->nc", naive_harmonics(way)[:, :4], torch.from_numpy(scene.sh)) / 0.28209479
    miss = (field(means, place).detach() - wanted).square().mean()
    assert miss < 0.3 * (wanted - wanted.mean(0)).square().mean()


def test_the_table_is_stored_in_even_steps_and_small_numbers_are_none():
    table = torch.tensor([[[0.05, -0.3], [1.27, -0.101]]])
    codes, step = colour_field_file.table_codes(table, 0.1)
    assert np.isclose(step, 0.01) and codes.tolist() == [[[0, -30], [127, -10]]]


def test_photographs_become_the_same_scene_for_the_same_seed_and_a_budget_is_met(studio):
    recipe = Compact3DGS(steps=30, levels=8, neurons=16, codes=32)
    scene, packed = recipe.fit(studio.photos, start=300, most=500)
    again = recipe.fit(studio.photos, start=300, most=500)[1]
    assert packed.to_bytes() == again.to_bytes()
    assert packed.to_bytes() != recipe.but(seed=1).fit(studio.photos, start=300, most=500)[1].to_bytes()
    assert same(scene, recipe.decode(Packed.from_bytes(packed.to_bytes())))
    assert studio.psnr(scene) > studio.psnr(studio.start.take(slice(0, 300))) + 3
    assert recipe.fit(studio.photos, "8kB", start=300, most=500)[1].nbytes <= 8000
    with pytest.raises(BadInput, match="no share"):
        recipe.fit(studio.photos, "10%")
    with pytest.raises(BudgetError, match="least"):
        recipe.fit(studio.photos, memory=10 << 20)


def test_training_begins_where_photographs_are_not_empty(studio):
    start = compact3dgs_start.from_photos(studio.photos, 400)
    middle, radius = compact3dgs_start.seen_ball(studio.photos.cameras)
    assert len(start) == 400 and np.linalg.norm(middle - studio.truth.means.mean(0)) < 0.5
    off = np.array([np.linalg.norm(studio.truth.means - m, axis=1).min() for m in start.means])
    anywhere = middle + radius * np.random.default_rng(5).uniform(-1, 1, (400, 3))
    lot = np.array([np.linalg.norm(studio.truth.means - m, axis=1).min() for m in anywhere])
    assert np.median(off) < 0.5 * np.median(lot)


def test_a_head_that_cannot_be_is_refused(studio, masked):
    stream, _ = compact3dgs_file.write(masked.compact(studio.places), 13, 0.1)
    for at in range(3, 10):  # the number of Gaussians, then sizes
        bad = stream.copy()
        bad[at] = 255
        if bad[at] != stream[at]:
            with pytest.raises(CorruptArtefact):
                compact3dgs_file.read(bad)
    for end in (0, 30, 150, stream.size // 2, stream.size - 1):
        with pytest.raises(CorruptArtefact):
            compact3dgs_file.read(stream[:end])


def test_a_field_whose_colours_overflow_is_refused_and_places_that_are_no_numbers_read_no_memory(studio):
    places = torch.tensor([[np.nan] * 3, [np.inf] * 3, [-np.inf] * 3])
    assert torch.equal(_Grid.apply(torch.ones(3, 16, 2), places), torch.ones(3, 6))
    scene = studio.start.take(slice(0, 30))
    field = ColourField.fresh(scene.box(), levels=3, table=6, width=8)
    learner = CompactLearner(scene, field, lambda_mask=0.0)
    learner.quantise(2, 8)
    with torch.no_grad():
        for p in field.params():
            p.fill_(6e4)
    stream, _ = compact3dgs_file.write(learner.compact(studio.places), 13, 0.1)
    stream = stream.copy()
    stream[58:62] = np.frombuffer(np.float32(1e29).tobytes(), np.uint8)  # a step of the table
    with pytest.raises(CorruptArtefact, match="no colours"):
        compact3dgs_file.read(stream).scene()


@pytest.mark.parametrize("wild", [{"means": 1e20}, {"scales": 1e30, "opacities": -1e30}, {"quats": 1e30}])
def test_numbers_at_the_edge_of_float32_are_packed_with_the_rest(wild):
    columns = {name: a.copy() for name, a in solids(60, degree=0).arrays().items()}
    for name, value in wild.items():
        columns[name][3] = value
    recipe = Compact3DGS(steps=2, views=2, width=32, levels=4, neurons=8, codes=16)
    back = recipe.decode(recipe.encode(Scene(**columns))).checked()
    assert len(back) > 50 and np.median(back.scales) < 0


def test_knobs_out_of_range_are_one_line():
    with pytest.raises(BadInput, match="codes: got 500; wanted 1 to 128"):
        Compact3DGS(codes=500)
    with pytest.raises(BadInput, match="quantise: got nan"):
        Compact3DGS(quantise=float("nan"))


def test_the_golden_file_decodes_for_ever():
    """To the bit but for colours, which are products of matrices."""
    with Packed.open(f"{GOLDEN}.hold") as packed, np.load(f"{GOLDEN}.npz") as kept:
        back = Compact3DGS.from_dict(packed.meta["method"]).decode(packed).arrays()
        assert set(back) == set(kept.files)
        for name, array in back.items():
            loose = name in ("sh", "features")
            np.testing.assert_allclose(
                array, kept[name], rtol=1e-3 if loose else 1e-6, atol=1e-4 if loose else 1e-6
            )
