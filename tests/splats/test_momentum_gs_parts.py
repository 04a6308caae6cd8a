"""Parts of Momentum-GS: what anchors tell, what is culled, grown and baked, the shelf, cells, and the file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from holdall.errors import CorruptArtefact
from holdall.splats.camera import around, looking
from holdall.splats.made import solids
from holdall.splats.scene import C0, Scene

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from holdall.parts import paging  # noqa: E402
from holdall.splats import momentum_gs_file  # noqa: E402
from holdall.splats.anchors import NAMES, Decoder, fresh_anchors, gaussians, visible  # noqa: E402
from holdall.splats.learner import beginning  # noqa: E402
from holdall.splats.momentum_gs_block import Block  # noqa: E402
from holdall.splats.momentum_gs_cells import Cells, looks, members, views_of  # noqa: E402
from holdall.splats.momentum_gs_file import Anchored, read, write  # noqa: E402
from holdall.splats.momentum_gs_grow import SIZES, wanted_anchors  # noqa: E402
from holdall.splats.momentum_gs_shelf import Shelf  # noqa: E402
from holdall.splats.momentum_gs_start import from_gaussians, from_points, taught  # noqa: E402
from holdall.splats.raster import render  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def anchors():
    found = fresh_anchors(RNG.uniform(-1, 1, (63, 3)), 0.4, 7, 3, seed=1)
    found["feature"] = found["feature"] * 10
    found["scaling"] = found["scaling"] + 0.3 * torch.randn(found["scaling"].shape)
    return found


@pytest.fixture(scope="module")
def decoder():
    return Decoder.fresh(7, 5, 3, 2.0, seed=1)


def naive_gaussians(anchors, decoder, place):
    """One Gaussian after the other, in float64, as numpy."""
    p = {k: v.numpy().astype(np.float64) for k, v in decoder.params.items()}
    a = {k: v.numpy().astype(np.float64) for k, v in anchors.items()}
    rows = []
    for i in range(len(a["means"])):
        way = a["means"][i] - place
        far = np.linalg.norm(way)
        hidden = np.maximum(
            [*a["feature"][i], *(way / far), far / decoder.extent] @ p["first"] + p["first_bias"], 0
        )
        out = {}
        for j, head in enumerate(("opacity", "colour", "form")):
            part = hidden[5 * j : 5 * j + 5]
            out[head] = (part @ p[head] + p[f"{head}_bias"]).reshape(3, -1)
        for k in range(3):
            mean = a["means"][i] + a["offsets"][i, k] * np.exp(a["scaling"][i, :3])
            size = np.exp(a["scaling"][i, 3:]) / (1 + np.exp(-out["form"][k, :3]))
            colour = 1 / (1 + np.exp(-out["colour"][k]))
            turn = out["form"][k, 3:] / np.linalg.norm(out["form"][k, 3:])
            rows.append((mean, size, turn, np.tanh(out["opacity"][k, 0]), colour))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_anchors_tell_what_their_slow_truth_does(anchors, decoder):
    place = np.array([0.3, 2.0, -1.0])
    columns = gaussians(decoder(anchors["feature"], anchors["means"], place), anchors)
    means, sizes, turns, opacity, colour = naive_gaussians(anchors, decoder, place)
    means_, scales, quats, logits, sh = (c.numpy() for c in columns)
    assert np.allclose(means_, means, atol=1e-5) and np.allclose(np.exp(scales), sizes, rtol=1e-4)
    assert np.allclose(quats, turns, atol=1e-5) and np.allclose(0.5 + C0 * sh[:, 0], colour, atol=1e-5)
    shown = opacity > 0
    assert 5 < shown.sum() < len(shown) - 5 and (logits[~shown] < -20).all()
    assert np.allclose(1 / (1 + np.exp(-logits[shown])), opacity[shown], atol=1e-4)


def test_what_is_not_decoded_is_not_in_the_picture(anchors, decoder):
    anchors, left_out = {**anchors, "scaling": anchors["scaling"] - 1.5}, 0
    for place in ([0, 0, 2.5], [0.2, 0.1, 0.3], [3, 0, 0]):
        camera = looking(place, [0.9, 0.4, 0], width=33, height=21, degrees=40)
        which = visible(anchors["means"], anchors["scaling"], camera)
        left_out += len(anchors["means"]) - len(which)
        pictures = []
        for some in (which, torch.arange(len(anchors["means"]))):
            part = {k: v[some] for k, v in anchors.items()}
            columns = gaussians(decoder(part["feature"], part["means"], camera.place), part)
            pictures.append(render(Scene(*(c.numpy() for c in columns)), camera).colour)
        assert np.abs(pictures[0] - pictures[1]).max() < 2e-3
    assert left_out > 20


def test_what_is_decoded_is_drawn_for_each_camera_and_baked_nearly_so(anchors, decoder):
    cameras = around(Scene(anchors["means"], *_rest(len(anchors["means"]))), 12, width=40, height=40)
    scene = Anchored(anchors, decoder, np.stack([c.place for c in cameras])).scene(3)
    for camera in cameras[:3]:
        columns = gaussians(decoder(anchors["feature"], anchors["means"], camera.place), anchors)
        exact = render(Scene(*(c.numpy() for c in columns)), camera).colour
        shown, baked = render(scene, camera).colour, render(scene.plain(), camera).colour
        assert np.abs(shown - exact).max() < 0.02 and exact.max() > 0.3
        assert ((shown - exact) ** 2).mean() < ((baked - exact) ** 2).mean() < 0.1 * (exact**2).mean()
    assert len(scene.seen_from(cameras[0])) == len(scene) <= 3 * len(anchors["means"])
    assert type(scene.take([0])) is Scene and scene.with_degree(1).degree == 1
    flat = Anchored(anchors, decoder, np.stack([c.place for c in cameras])).scene(0)
    camera = cameras[0]
    error = [
        ((render(s.plain(), camera).colour - render(scene, camera).colour) ** 2).mean() for s in (scene, flat)
    ]
    assert error[0] < error[1]


def _rest(n):
    return np.full((n, 3), -2.0), np.tile([1.0, 0, 0, 0], (n, 1)), np.ones(n), np.zeros((n, 1, 3))


def test_anchors_grow_where_gaussians_want_to_move_and_cells_are_empty(anchors):
    draw = torch.Generator().manual_seed(0)
    n = len(anchors["means"])
    p = {**anchors, "offsets": 3 * anchors["offsets"]}
    want = torch.zeros(3 * n)
    assert wanted_anchors(p, want, 0.1, 2e-4, draw, 100) is None
    want[: 3 * n // 2] = 1.0
    new = wanted_anchors(p, want, 0.1, 2e-4, draw, 1000)
    places = (p["means"][:, None] + p["offsets"] * p["scaling"][:, None, :3].exp()).reshape(-1, 3)[
        : 3 * n // 2
    ]
    sizes = new["scaling"][:, 0].exp()
    for size in SIZES:
        side = 0.1 * size
        mine = new["means"][torch.isclose(sizes, torch.tensor(side))]
        assert len(mine)
        cells = {tuple(c) for c in torch.floor(mine / side).long().tolist()}
        asked = {tuple(c) for c in torch.floor(places / side).long().tolist()}
        there = {tuple(c) for c in torch.floor(p["means"] / side).long().tolist()}
        assert len(cells) == len(mine) and cells <= asked and not cells & there
    assert torch.isfinite(new["feature"]).all()
    few = wanted_anchors(p, want, 0.1, 2e-4, draw, 5)
    assert len(few["means"]) == 5


def test_blocks_prune_what_never_showed_and_the_others_keep_their_moments(anchors, decoder):
    block = Block(anchors, decoder.copy().asking(), voxel=0.4, steps=10)
    camera = looking([0, 0, 4], [0, 0, 0], width=24, height=24)
    wanted = np.full((24, 24, 3), 0.5, np.float32)
    for _ in range(3):
        block.step(block.loss_of(camera, wanted)[0])
    n, moments = len(block), block._moments["feature"][0].clone()
    assert moments.abs().sum() > 0 and int(block.asked.max()) == 3 and block.seen.max() == 3
    block.shown[:5] = 0.0
    block.shown[5:] = 3.0
    block.adjust(above=1e9)
    assert len(block) == n - 5 and torch.equal(block._moments["feature"][0], moments[5:])
    block.shown[:], block.asked[:] = 0.0, 3.0
    block.adjust(above=1e9)
    assert len(block) == 1 and block.moved.shape == (3,)


def test_states_come_back_bit_for_bit_and_torn_ones_are_named(tmp_path):
    odd = {
        "a": torch.tensor([np.nan, -0.0, 1e-42, np.inf]), "b": torch.arange(63).view(7, 9), "c": torch.zeros(0, 3),
        "d": torch.randn(5000)[::2], "e": torch.tensor([7, 255], dtype=torch.uint8),
    }  # fmt: skip
    with Shelf(tmp_path, name="blocks") as shelf:
        for block in range(3):
            shelf.put(block, odd)
        shelf.put(1, {"a": torch.ones(100_000)})
        shelf.put(1, odd)
        back = shelf.get(1)
        assert back.keys() == odd.keys()
        for name, t in odd.items():
            assert back[name].dtype == t.dtype and back[name].shape == t.shape
            assert back[name].numpy().tobytes() == t.contiguous().numpy().tobytes()
        assert list(shelf.get(2, ["b"])) == ["b"]
        first = shelf._kept[2]["d"].span.start
        with Path(shelf.path).open("r+b") as f:
            f.seek(first + 17)
            f.write(b"?")
        with pytest.raises(CorruptArtefact, match="d of block 2"):
            shelf.get(2)
        assert shelf.get(0).keys() == odd.keys()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    old, new = ({"a": torch.full((9000,), v), "b": torch.full((50,), v)} for v in (1.0, 2.0))
    with Shelf(tmp_path) as shelf:
        shelf.put(0, old)
        used, real = shelf._arena.nbytes, paging.BlockFile.move
        for n in range(2):
            calls = []

            def move(self, *given, n=n, calls=calls):
                calls.append(1)
                if len(calls) == n + 1:
                    raise OSError(28, "No space left on device")
                return real(self, *given)

            monkeypatch.setattr(paging.BlockFile, "move", move)
            with pytest.raises(OSError, match="No space"):
                shelf.put(0, new)
            monkeypatch.setattr(paging.BlockFile, "move", real)
            assert torch.equal(shelf.get(0)["b"], old["b"]) and shelf._arena.nbytes == used
        shelf.put(0, new)
        assert torch.equal(shelf.get(0)["a"], new["a"]) and shelf._arena.nbytes == used


def test_a_killed_process_leaves_no_file(tmp_path):
    child = os.fork()
    if not child:
        with Shelf(tmp_path) as shelf:
            for _ in range(3):
                shelf.put(0, {"a": torch.ones(1 << 12)})
            (tmp_path / "there").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_cells_have_about_as_many_and_are_planes_of_space(count):
    means = RNG.standard_normal((500, 3)) * [5, 1, 1]
    cells = Cells(means, count)
    block = cells.of(means)
    sizes = np.bincount(block, minlength=count)
    assert len(sizes) == count and sizes.min() > 0.7 * 500 / count
    assert np.array_equal(cells.of(means[::-1]), block[::-1])
    if count == 3:  # cut across the longest side
        assert means[block == 0, 0].max() < means[block == 2, 0].min()


def test_a_block_trains_its_own_those_close_by_and_some_others():
    means = np.stack([np.arange(200.0), np.zeros(200), np.zeros(200)], 1)
    block = (means[:, 0] // 50).astype(int)
    mine = members(means, block, 1, 0.2, seed=0)
    assert set(range(46, 104)) <= set(mine.tolist()) and 50 + 8 < len(mine) <= 50 + 10 + 10
    assert len(members(means, block, 1, 0.0, seed=0)) in range(58, 62)


def test_cameras_are_of_blocks_that_they_stand_in_or_see_much_of():
    means = RNG.uniform(-1, 1, (400, 3)) * [4, 0.5, 0.5]
    block = Cells(means, 2).of(means)
    ahead = looking([-4, 0, 0.01], [-2, 0, 0], width=32, height=32)  # sees both, the other one far away
    aside = looking([2, 0, 3], [2, 0, 0], width=32, height=32)
    parts = looks(means, block, [ahead, aside], 2)
    assert parts[0, 0] > 3 * parts[0, 1] > 0 and parts[1, 0] == 0 < parts[1, 1]
    assert views_of(parts, np.array([0, 1]), 0.5) == [[0], [1]]
    assert views_of(parts, np.array([0, 1]), 0.0) == [[0, 1], [0, 1]]
    assert views_of(np.array([[3.0, 1.0], [5.0, 0.0]]), np.array([0, 0]), 0.9) == [[0, 1], [0]]


def test_a_scenes_gaussians_all_have_a_place_and_are_told_after_a_while():
    scene = solids(203, degree=1)
    start = from_gaussians(scene, 16, 10, seed=0)
    a = start.anchors
    means = (a["means"][:, None] + a["offsets"] * a["scaling"][:, None, :3].exp()).reshape(-1, 3).numpy()
    away = np.abs(means[:, None] - scene.means).max(2)
    assert len(a["means"]) == 21 and away.min(0).max() < 1e-4
    decoder, places = Decoder.fresh(16, 16, 10, start.extent), [[3.0, 1, 0], [0, 1, 3.0]]

    def miss():
        told = decoder(a["feature"], a["means"], places[0])
        return (told.opacity - start.opacity).abs().mean().item()

    first = miss()
    taught(decoder, start, places, 120)
    assert miss() < 0.5 * first


def test_points_become_anchors_on_a_grid():
    points = RNG.uniform(-1, 1, (300, 3)).astype(np.float32)
    start = from_points(beginning(points, np.full((300, 3), 0.7)), 8, 4, seed=0)
    cells = np.floor(start.anchors["means"].numpy() / start.voxel)
    assert len(np.unique(cells, axis=0)) == len(cells) <= 300
    assert np.allclose(start.anchors["means"].numpy(), (cells + 0.5) * start.voxel, atol=1e-4)
    assert np.allclose(0.5 + C0 * start.sh.numpy(), 0.7, atol=1e-5) and start.scales is None


@pytest.mark.parametrize("count", [1, 3, 63])
def test_the_file_has_what_was_stored_within_its_steps(anchors, decoder, count):
    few = {k: v[torch.arange(count) % len(anchors["means"])] for k, v in anchors.items()}
    stream, parts = write(Anchored(few, decoder, np.eye(3)), 8, 16)
    back = read(stream)
    assert sum(parts.values()) <= stream.size and parts["decoder"] == 2 * sum(
        p.numel() for p in decoder.params.values()
    )
    order = [np.lexsort(x["means"].numpy().round(2).T) for x in (few, back.anchors)]
    for name in NAMES:
        one, two = (x[name].numpy()[o] for x, o in zip((few, back.anchors), order, strict=True))
        span = max(np.ptp(one), 1e-3)
        assert np.quantile(np.abs(one - two), 0.98) < 0.01 * span
    for name, p in decoder.params.items():
        torch.testing.assert_close(back.decoder.params[name], p, rtol=1e-3, atol=1e-4)
    assert np.array_equal(back.views, np.eye(3))


def test_fewer_bits_are_fewer_bytes_and_rougher(anchors, decoder):
    size, off = [], []
    for bits in (8, 5, 2):
        stream, parts = write(Anchored(anchors, decoder, np.eye(3)), bits, 13)
        back = read(stream).anchors["feature"].numpy()
        size.append(parts["codes"])
        off.append(np.abs(np.sort(back, 0) - np.sort(anchors["feature"].numpy(), 0)).mean())
    assert size == sorted(size, reverse=True) and off == sorted(off) and off[0] > 0


def test_a_head_that_cannot_be_is_refused(anchors, decoder):
    stream, _ = write(Anchored(anchors, decoder, np.eye(3)), 6, 13)
    for at in (3, 4, 5, 6, 7, 9, 11):
        bad = stream.copy()
        bad[at] = 255
        with pytest.raises(CorruptArtefact):
            read(bad)
    for cut in (0, 20, 90, stream.size // 2, stream.size - 1):
        with pytest.raises(CorruptArtefact):
            read(stream[:cut])
    assert momentum_gs_file.PARTS[0] == "places"
