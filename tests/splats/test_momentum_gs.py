"""Momentum-GS: blocks in turn, one decoder for all, a teacher that follows it, and blocks that wait on disk."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.splats.camera import looking
from holdall.splats.made import solids
from holdall.splats.momentum_gs import MomentumGS
from holdall.splats.quality import likeness, same
from holdall.splats.scene import Scene

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from holdall.splats import momentum_gs_work  # noqa: E402
from holdall.splats.anchors import NAMES, Decoder, disagreement, took  # noqa: E402
from holdall.splats.learner import beginning  # noqa: E402
from holdall.splats.momentum_gs_block import Block  # noqa: E402
from holdall.splats.momentum_gs_cells import Cells, members  # noqa: E402
from holdall.splats.momentum_gs_shelf import Memory, Shelf  # noqa: E402
from holdall.splats.momentum_gs_start import from_points, taught  # noqa: E402
from holdall.splats.momentum_gs_train import Course, Plan, follow, weight_of  # noqa: E402
from holdall.splats.raster import render  # noqa: E402

SIDE, VIEWS, APART = 32, (8, 6, 4, 3), 3.2
WHITE = (1.0, 1.0, 1.0)
PLAN = Plan(24, interval=6, grow_each=6, most=40, above=1e-4)


class Strip:
    """Four solids in a row; photographs of each, fewer and fewer, as `read_photos` gives them."""

    def __init__(self):
        parts = [solids(250, degree=1, seed=i) for i in range(4)]
        means = [p.means + np.array([APART * i, 0, 0]) for i, p in enumerate(parts)]
        rest = [
            np.concatenate([getattr(p, n) for p in parts]) for n in ("scales", "quats", "opacities", "sh")
        ]
        self.truth = Scene(np.concatenate(means), *rest)
        cameras, self.blocks = [], []
        for i, count in enumerate(VIEWS):
            self.blocks.append(list(range(len(cameras), len(cameras) + count)))
            cameras += [self.around(i, 6.3 * k / count) for k in range(count)]
        self.cameras, self.train, self.held_out = tuple(cameras), tuple(range(len(cameras))), ()
        self.background, self.points = np.ones(3, np.float32), None
        self.pictures = [render(self.truth, c, WHITE).colour for c in cameras]
        self.start = self.begin()
        self.cells = Cells(self.start.anchors["means"].numpy(), 4)

    def begin(self):
        some = np.random.default_rng(0).permutation(1000)[:200]
        return from_points(beginning(self.truth.means[some], np.full((200, 3), 0.5)), 8, 4, 0)

    @staticmethod
    def around(i, angle):
        at = np.array([APART * i, 0.3, 0])
        return looking(
            at + np.array([2.2 * np.sin(angle), 0.8, 2.2 * np.cos(angle)]), at, width=SIDE, height=SIDE
        )

    def image(self, i):
        return self.pictures[i]

    def view(self, i):
        return self.cameras[i], self.pictures[i]

    def course(self, shelf, plan=PLAN, **more):
        start = self.begin()
        decoder = Decoder.fresh(8, 8, 4, start.extent)
        taught(decoder, start, [c.place for c in self.cameras], 20)
        course = Course(
            decoder, shelf, self.blocks, self.view, plan, voxel=start.voxel, background=WHITE, **more
        )
        means = start.anchors["means"].numpy()
        for b in range(4):
            which = members(means, self.cells.of(means), b, 0.2, 0)
            course.start(b, took(start.anchors, torch.from_numpy(which)))
        return course


@pytest.fixture(scope="module")
def strip():
    return Strip()


class Seen:
    """What a run held, and did, step by step."""

    def __init__(self, strip, shelf, plan=PLAN):
        self.course = strip.course(shelf, plan)
        self.live, self.blocks, self.frozen, self.order = [], [], [], []
        self.first = self.course.decoder.copy()
        self.course.heard = self.hear
        self.course.run()
        self.merged = momentum_gs_work.merged(self.course, strip.cells)

    def hear(self, block, learner):
        self.order.append(block)
        self.blocks.append(learner.nbytes)
        self.frozen.append({k: p.detach().clone() for k, p in self.course.decoder.params.items()})
        if len(self.order) in (31, 67):  # another block has just begun
            gc.collect()
            held = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.dim() and len(t) > 15]
            self.live.append(sum({t.data_ptr(): t.nbytes for t in held}.values()))


@pytest.fixture(scope="module")
def swapped(strip):
    with Shelf() as shelf:
        seen = Seen(strip, shelf)
        seen.traffic = shelf.traffic()
        yield seen


@pytest.fixture(scope="module")
def resident(strip):
    return Seen(strip, Memory())


def test_blocks_through_the_disk_end_in_the_same_bits_as_blocks_in_memory(swapped, resident):
    for b in range(4):
        one, two = swapped.course.shelf.get(b), resident.course.shelf.get(b)
        assert one.keys() == two.keys() and len(one) == 18
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert one["feature.1"].abs().sum() > 0 and int(one["steps"][0]) == PLAN.steps
    for name, p in swapped.course.decoder.params.items():
        assert torch.equal(p, resident.course.decoder.params[name])


def test_while_one_block_trains_the_others_take_no_memory(swapped, resident):
    whole = sum(sum(t.nbytes for t in resident.course.shelf.get(b).values()) for b in range(4))
    assert max(swapped.blocks) < 0.4 * whole
    saved = np.median(np.array(resident.live) - np.array(swapped.live))
    assert 0.5 * whole < saved and swapped.traffic["writes"] >= 5 * 4 * 18


def test_blocks_take_turns_and_one_decoder_stands_still_at_the_end(swapped):
    assert swapped.order == [b for _ in range(4) for b in range(4) for _ in range(6)]
    first, last = swapped.frozen[0], swapped.frozen[-1]
    for name in first:
        assert all(torch.equal(f[name], last[name]) for f in swapped.frozen[72:])
        assert not torch.equal(first[name], last[name])
    state = swapped.course.shelf.get(3)
    assert int(state["steps"][0]) == 24  # anchors go on


def test_it_learns_all_rooms_and_each_cell_is_its_blocks_own(strip, swapped):
    stored = momentum_gs_work.Anchored(
        swapped.merged, swapped.course.decoder.copy(), np.stack([c.place for c in strip.cameras])
    )
    scene = stored.scene()
    beginning_ = momentum_gs_work.Anchored(strip.start.anchors, swapped.first, stored.views).scene()

    def psnr(scene):
        shown = [render(scene, c, WHITE) for c in strip.cameras]
        truth = [SimpleNamespace(colour=p, alpha=np.ones((SIDE, SIDE))) for p in strip.pictures]
        return likeness(truth, shown)["psnr"]

    assert psnr(scene) > psnr(beginning_) + 2
    owners = strip.cells.of(swapped.merged["means"].numpy())
    sizes = [len(swapped.course.shelf.get(b, ["means"])["means"]) for b in range(4)]
    assert len(np.unique(owners)) == 4 and len(owners) < sum(sizes)
    assert all((owners == b).sum() <= sizes[b] for b in range(4))


def test_a_teacher_without_momentum_is_the_student_and_costs_nothing(strip):
    decoder = Decoder.fresh(8, 8, 4, 1.0, seed=1)
    teacher, slow = Decoder.fresh(8, 8, 4, 1.0, seed=2), Decoder.fresh(8, 8, 4, 1.0, seed=2)
    first = slow.copy()
    follow(teacher, decoder, 0.0)
    follow(slow, decoder, 0.9)
    a, place = strip.start.anchors, strip.cameras[0].place
    told = [d(a["feature"], a["means"], place) for d in (decoder, teacher, slow, first)]
    costs = [float(disagreement(told[0], t)) for t in told[1:]]
    assert costs[0] == 0 < 0.5 * costs[2] < costs[1] < costs[2]
    for name, p in slow.params.items():
        torch.testing.assert_close(p, 0.9 * first.params[name] + 0.1 * decoder.params[name])


def test_disagreement_is_of_what_the_student_shows_and_teaches_only_the_student(strip):
    decoder, teacher = (Decoder.fresh(8, 8, 4, 1.0, seed=s).asking() for s in (1, 2))
    a, place = strip.start.anchors, strip.cameras[0].place
    one, two = (d(a["feature"], a["means"], place) for d in (decoder, teacher))
    seen = one.opacity > 0
    assert 0 < seen.sum() < seen.numel()
    wanted = sum(((x[seen] - y[seen]) ** 2).mean().item() for x, y in zip(one, two, strict=True))
    loss = disagreement(one, two)
    assert np.isclose(float(loss.detach()), wanted, rtol=1e-5)
    loss.backward()
    assert decoder.params["first"].grad.abs().sum() > 0 and teacher.params["first"].grad is None


def test_what_the_teacher_tells_is_part_of_what_is_learnt(strip):
    """One that never moves holds the decoder where it began."""
    a, place, away = strip.start.anchors, strip.cameras[0].place, []
    for lambda_c in (0.0, 50.0):
        course = strip.course(Memory(), Plan(8, interval=4, momentum=1.0, lambda_c=lambda_c, grow_until=0))
        course.run()
        told = (d(a["feature"], a["means"], place) for d in (course.decoder, course.teacher))
        away.append(float(disagreement(*told).detach()))
    assert 0 < away[1] < 0.5 * away[0]


def test_weights_are_one_for_the_best_block_and_rise_to_two():
    assert weight_of(30, 0.9, 30, 0.9, 1.2) == 1
    assert 1.28 < weight_of(29, 0.9, 30, 0.9, 1.2) < 1.31
    assert np.isclose(weight_of(30, 0.8, 30, 0.9, 1.2), weight_of(29, 0.9, 30, 0.9, 1.2))
    assert 1.99 < weight_of(20, 0.5, 30, 0.9, 1.2) <= 2


def test_blocks_that_lag_weigh_more_and_all_of_their_loss_does(strip, monkeypatch):
    losses: dict[tuple[int, int], float] = {}
    real = Block.step

    def step(self, loss):
        losses[course.now, self.done] = float(loss.detach())
        return real(self, loss)

    def heard(block, learner):
        course.now = block

    monkeypatch.setattr(Block, "step", step)
    found = []
    for sigma in (1.2, 0.0):
        course = strip.course(Memory(), Plan(8, interval=4, weigh_from=0.5, sigma=sigma, grow_until=0))
        course.heard = heard
        course.run()
        found.append((dict(losses), course))
    (weighed, course), (plain, even) = found
    figures = even.figures  # of the end; weights in the second turn are of the first
    assert figures.shape == (4, 2) and even.weights == [1.0] * 4 and max(course.weights) > 1.05
    assert all(weighed[b, i] == plain[b, i] for b in range(4) for i in range(4))
    ratio = [weighed[b, 4] / plain[b, 4] for b in range(4)]
    assert 1 <= min(ratio) < 1.3 < max(ratio) <= 2


def test_weights_help_the_block_that_lags(strip, monkeypatch):
    """Two blocks with the same anchors, one darker and one brighter: what one decoder tells is a compromise, at first
    nearer to the brighter one. Without weights both pull alike."""
    start = took(strip.start.anchors, torch.arange(12))
    start["scaling"] += 2  # they fill the picture
    pictures = [np.full((SIDE, SIDE, 3), v, np.float32) for v in (0.1, 0.6)]
    monkeypatch.setattr(Block, "_rate", lambda self, name: 0.0)

    def lagging(sigma):
        plan = Plan(24, interval=1, sigma=sigma, weigh_from=0.0, lambda_c=0, grow_until=0, volume=0)
        decoder = Decoder.fresh(8, 8, 4, strip.start.extent)
        view = lambda i: (strip.cameras[0], pictures[i])  # noqa: E731
        course = Course(decoder, Memory(), [[0], [1]], view, plan, voxel=1.0, background=(0.35,) * 3)
        for b in range(2):
            course.start(b, start)
        course.run()
        return float(course.figures[:, 0].min())

    weighed, even = lagging(1.2), lagging(0.0)
    assert weighed > even + 0.5


def test_one_decoder_is_stored_however_many_blocks_there_are():
    scene = solids(400, degree=1)
    packed = {b: MomentumGS(blocks=b, steps=8, views=3, width=32).encode(scene) for b in (1, 4)}
    parts = {b: p.notes["parts"] for b, p in packed.items()}
    assert parts[1]["decoder"] == parts[4]["decoder"] == 2 * (36 * 96 + 96 + 33 * 110)
    assert abs(packed[1].nbytes - packed[4].nbytes) < 0.05 * packed[1].nbytes
    assert packed[4].notes["kept"] == 40
    assert packed[1].to_bytes() != packed[4].to_bytes()


def test_photographs_become_the_same_scene_for_the_same_seed_within_a_budget(strip):
    recipe = MomentumGS(steps=24, feature=8, neurons=8, offsets=4, interval=4)
    scene, packed = recipe.fit(strip, start=300, most=800)
    again = recipe.fit(strip, start=300, most=800)[1]
    assert packed.to_bytes() == again.to_bytes()
    assert same(scene, recipe.decode(Packed.from_bytes(packed.to_bytes())))
    small = recipe.fit(strip, "4kB", start=300, most=800)[1]
    assert 0.9 * 4000 < small.nbytes <= 4000
    with pytest.raises(BadInput, match="no share"):
        recipe.fit(strip, "10%")
    with pytest.raises(BudgetError, match="decoder and one anchor"):
        recipe.fit(strip, 1000)
    with pytest.raises(BudgetError, match="least"):
        recipe.fit(strip, memory=10 << 20)


def test_a_block_that_lost_all_of_its_own_gives_one(strip):
    course, anchors = strip.course(Memory()), strip.start.anchors
    others = strip.cells.of(anchors["means"].numpy()) == 0
    for b in range(1, 4):
        course.start(b, took(anchors, torch.from_numpy(others)))
    found = strip.cells.of(momentum_gs_work.merged(course, strip.cells)["means"].numpy())
    assert len(found) == others.sum() + 3 and not found.any()


def test_memory_decides_how_many_blocks_there_are(strip, monkeypatch):
    monkeypatch.setattr("holdall.meter.resident_bytes", lambda: 200 << 20)

    def count(megabytes, most=1_000_000, **more):
        return momentum_gs_work.blocks_for(megabytes << 20, strip.cameras, most, 0.5, **more)

    assert count(8000) == 1 < count(700) < count(600) and count(1400, 4_000_000) > count(1400, 2_000_000)
    with pytest.raises(BudgetError) as fault:
        count(600, asked=2)
    least = int(fault.value.least)
    assert momentum_gs_work.blocks_for(least, strip.cameras, 1_000_000, 0.5, 2) == 2
    assert momentum_gs_work.blocks_for(least, strip.cameras, 1_000_000, 0.5) <= 2
    with pytest.raises(BudgetError):  # the result alone is too large
        count(600, 3_000_000)


RANKS = """
import json, multiprocessing, sys
import torch, torch.distributed as dist
sys.path[:0] = json.loads(sys.argv[2])
from test_momentum_gs import Strip, Memory, Plan, momentum_gs_work
from holdall.splats.momentum_gs_crew import Crew

def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    strip, crew = Strip(), Crew()
    grad = torch.full((3,), float(rank + 1))
    crew.mean([grad])
    course = strip.course(Memory(), Plan(4, interval=2, grow_until=0), crew=crew)
    steps = []
    course.heard = lambda *_: steps.append(course.decoder.params["first"].double().square().sum().item())
    course.run()
    merged = momentum_gs_work.merged(course, strip.cells)
    told = {"steps": steps}
    told |= {"mean": grad.tolist(), "mine": course.mine, "weights": course.weights, "count": len(merged["means"])}
    told["decoder"] = [p.double().sum().item() for p in course.decoder.params.values()]
    told["merged"] = [v.double().sum().item() for v in merged.values()]
    open(f"{folder}/{rank}.json", "w").write(json.dumps(told))
    dist.destroy_process_group()

fork = multiprocessing.get_context("fork")
ranks = [fork.Process(target=work, args=(r, sys.argv[1])) for r in range(2)]
for r in ranks: r.start()
for r in ranks: r.join()
"""


@pytest.mark.slow
def test_two_processes_share_the_blocks_and_have_one_decoder(tmp_path):
    paths = json.dumps([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", RANKS, str(tmp_path), paths], env=env, check=True, timeout=300)
    one, two = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert one["mean"] == [1.5] * 3 and (one.pop("mine"), two.pop("mine")) == ([0, 2], [1, 3])
    assert one == two and one["count"] >= 20
    assert len(set(one["steps"])) > 2  # in the middle of a turn, too, where only gradients are told


def test_processes_must_divide_the_blocks(monkeypatch):
    from holdall.splats.momentum_gs_crew import Crew

    crew = Crew()
    assert crew.share(4) == [0, 1, 2, 3]
    crew.world = 3
    with pytest.raises(BadInput, match="divides 4 blocks"):
        crew.share(4)


def test_knobs_out_of_range_are_one_line():
    with pytest.raises(BadInput, match="momentum: got 2; wanted 0 to 1"):
        MomentumGS(momentum=2)


def test_state_names_are_what_anchors_have(strip):
    block = Block(strip.start.anchors, Decoder.fresh(8, 8, 4, 1.0), voxel=1.0)
    assert set(NAMES) < set(block.state())
