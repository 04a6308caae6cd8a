"""holdall pack, unpack and render of a moving scene: a folder of 4DGaussians, as they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.processes import Result

from holdall.packed import Packed
from holdall.splats.hexplane_folder import read, write
from holdall.splats.light4gs import Light4GS
from holdall.splats.made import solids
from holdall.splats.quality_moving import waving

Image = pytest.importorskip("PIL.Image")
Call = Callable[..., Result]
FEW = ("--steps", 2, "--rounds", 2, "--views", 2, "--width", 16, "--moments", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = str(tmp_path_factory.mktemp("moving") / "iteration_1")
    write(waving(solids(60, degree=1), 2, ((6, 6, 6, 4),), size=1.0), where)
    return where


def test_a_folder_is_packed_drawn_at_a_time_and_unpacked(call: Call, folder: str, tmp_path: Path) -> None:
    hold = tmp_path / "a.hold"
    assert call("pack", folder, "--with", "splats.light4gs", *FEW, "-o", hold).code == 0
    pictures = []
    for t in (0, 1):
        png = tmp_path / f"{t}.png"
        told = call("render", hold, "--time", t, "-o", png, "--size", "48x32", "--background", "white")
        assert told.code == 0, told.err
        with Image.open(png) as found:
            pictures.append(np.asarray(found).astype(float))
    assert np.abs(pictures[0] - pictures[1]).mean() > 1
    assert call("unpack", hold, "-o", tmp_path / "back").code == 0
    shown = Light4GS().decode(Packed.open(str(hold)))
    assert np.allclose(read(str(tmp_path / "back")).at(0.7).means, shown.at(0.7).means, atol=1e-4)


def test_mistakes_are_one_line(call: Call, folder: str, tmp_path: Path) -> None:
    hold, png = tmp_path / "a.hold", tmp_path / "a.png"
    assert call("pack", folder, *FEW, "-o", hold).code == 0  # sniffed
    for words, says in (
        (("render", hold, "-o", png), "stands still"),
        (("render", hold, "--time", 1.5, "-o", png), "0 to 1"),
        (("render", f"{folder}/point_cloud.ply", "--time", 0.5, "-o", png), "no packed scene that moves"),
        (("unpack", hold, "-o", folder), "does not exist yet"),
        (("pack", tmp_path, "--with", "splats.light4gs", "-o", tmp_path / "b.hold"), "deformation.pth"),
    ):
        told = call(*words)
        assert told.code == 2 and says in told.one_line(), told.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hold"]
