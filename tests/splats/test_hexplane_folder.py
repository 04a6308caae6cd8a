"""Folders of 4DGaussians: its own network moves the Gaussians as we do; what is written is read; others are refused."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

import holdall
from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats import write as write_scene
from holdall.splats.hexplane_folder import read, write
from holdall.splats.light4gs import Light4GS
from holdall.splats.made import solids
from holdall.splats.quality_moving import same, waving

SIDES, WIDTH, FEATURES = (6, 5, 4, 7), 9, 3


def theirs(folder, flags="", times=7):
    """A folder with the names and shapes of 4DGaussians, and what its network gives for (places, time): by its
    published definition, as torch computes it."""
    draw = torch.Generator().manual_seed(0)
    state = {"deformation_net.grid.aabb": torch.tensor([[1.5, 1.2, 1.4], [-1.5, -1.0, -1.3]])}
    pairs = list(itertools.combinations(range(4), 2))
    for s, by in enumerate((1, 2)):
        sides = [n * by for n in SIDES[:3]] + [times]
        for i, (a, b) in enumerate(pairs):
            state[f"deformation_net.grid.grids.{s}.{i}"] = (
                torch.rand(1, FEATURES, sides[b], sides[a], generator=draw) + 0.5
            )
    sizes = {"feature_out.0": (WIDTH, 2 * FEATURES)}
    for name, out in (("pos", 3), ("scales", 3), ("rotations", 4), ("opacity", 1), ("shs", 48)):
        sizes |= {f"{name}_deform.1": (WIDTH, WIDTH), f"{name}_deform.3": (out, WIDTH)}
    for name, shape in sizes.items():
        state[f"deformation_net.{name}.weight"] = torch.randn(shape, generator=draw) * 0.3
        state[f"deformation_net.{name}.bias"] = torch.randn(shape[0], generator=draw) * 0.1
    state["timenet.0.weight"] = torch.zeros(4, 9)
    folder.mkdir(parents=True)
    write_scene(solids(40, degree=3), str(folder / "point_cloud.ply"))
    torch.save(state, folder / "deformation.pth")
    if flags:
        (folder.parents[1] / "cfg_args").write_text(f"Namespace({flags})")

    def moved(places, t):
        box = state["deformation_net.grid.aabb"]
        at = (places - box[0]) * (2 / (box[1] - box[0])) - 1
        at = torch.cat([at, torch.full_like(at[:, :1], t)], 1)
        found = []
        for s in (0, 1):
            product = 1
            for i, pair in enumerate(pairs):
                grid = state[f"deformation_net.grid.grids.{s}.{i}"]
                got = grid_sample(grid, at[None, None][..., pair], align_corners=True, padding_mode="border")
                product = product * got[0, :, 0].T
            found.append(product)

        def layer(x, name):
            return x @ state[f"deformation_net.{name}.weight"].T + state[f"deformation_net.{name}.bias"]

        hidden = layer(torch.cat(found, 1), "feature_out.0")
        return {
            n: layer(layer(hidden.relu(), f"{n}_deform.1").relu(), f"{n}_deform.3")
            for n in ("pos", "opacity")
        }

    return moved


@pytest.mark.parametrize("times", [7, 6, 1])
def test_its_network_moves_gaussians_as_we_do(tmp_path, times):
    folder = tmp_path / "model" / "point_cloud" / "iteration_9"
    moved = theirs(folder, "no_do=False, no_dshs=True, sh_degree=3", times)
    x = read(str(folder))
    places = torch.from_numpy(x.still.means)
    for t in (0.0, 0.31, 1.0):
        wanted, shown = moved(places, t), x.at(t)
        assert np.abs(shown.means - x.still.means - wanted["pos"].numpy()).max() < 1e-4
        assert np.abs(shown.opacities - x.still.opacities - wanted["opacity"][:, 0].numpy()).max() < 1e-4
        assert (shown.sh == x.still.sh).all()
    assert all(six[2].shape[1] == times - (times - 1) // 2 for six in x.planes)


def test_without_flags_the_defaults_of_the_repository_hold(tmp_path):
    theirs(tmp_path / "a")
    x = read(str(tmp_path / "a"))
    assert (x.at(0.5).opacities == x.still.opacities).all() and (x.at(0.5).means != x.still.means).any()


def test_what_is_written_is_read_again(tmp_path):
    x = waving(solids(30, degree=3), 2, ((4, 5, 6, 3), (8, 10, 12, 3)))
    for clock in ((-1.0, 1.0), (-0.5, 1.0)):
        y = replace(x, clock=clock)
        where = str(tmp_path / f"b{clock[0]}")
        write(y, where)
        back = read(where)
        assert np.allclose(back.clock, clock) and all(
            np.allclose(a.at(t).means, b.at(t).means, atol=1e-5)
            for a, b in [(y, back)]
            for t in (0.0, 0.6, 1.0)
        )
    assert same(replace(x, clock=(-1.0, 1.0)), read(str(tmp_path / "b-1.0")))
    with pytest.raises(BadInput, match="does not exist yet"):
        write(x, where)
    turned = x.frame.copy()
    turned[3:12] = [0, 1, 0, 1, 0, 0, 0, 0, 1]
    with pytest.raises(BadInput, match="axes of their own"):
        write(replace(x, frame=turned), str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_folder_is_packed_and_unpacked(tmp_path):
    theirs(tmp_path / "a")
    method = Light4GS(**Light4GS.brief)
    holdall.pack(str(tmp_path / "a"), method, to=str(tmp_path / "a.hold"))
    from holdall.verbs import codec_for

    assert isinstance(codec_for(str(tmp_path / "a")), Light4GS)
    holdall.unpack(str(tmp_path / "a.hold"), to=str(tmp_path / "back"))
    x = holdall.unpack(str(tmp_path / "a.hold"))
    assert np.allclose(read(str(tmp_path / "back")).at(0.5).means, x.at(0.5).means, atol=1e-4)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(BadInput, match="as 4DGaussians writes it"):
        read(str(tmp_path))
    theirs(tmp_path / "m" / "p" / "a", "no_grid=True")
    with pytest.raises(BadInput, match="no_grid"):
        read(str(tmp_path / "m" / "p" / "a"))
    theirs(tmp_path / "a")
    path = tmp_path / "a" / "deformation.pth"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises((BadInput, CorruptArtefact)):
        read(str(tmp_path / "a"))
    torch.save({"deformation_net.grid.aabb": torch.zeros(2, 3)}, path)
    with pytest.raises(BadInput, match="no planes"):
        read(str(tmp_path / "a"))
    torch.save([1, 2], path)
    with pytest.raises(BadInput, match="tensors by name"):
        read(str(tmp_path / "a"))
