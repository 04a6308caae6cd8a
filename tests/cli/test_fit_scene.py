"""holdall fit-scene, as it is called: photographs in, a small scene out, and one line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.processes import Result

from holdall.splats.camera import around
from holdall.splats.made import solids
from holdall.splats.quality import pictures

pytest.importorskip("numba")
pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
Call = Callable[..., Result]
SMALL = ("--steps", 40, "--levels", 6, "--neurons", 16, "--codes", 16, "--start", 300, "--most", 500)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photographs of 40 x 30 with a transforms.json: x right, y up, z backward, as NeRF has them."""
    folder, scene = tmp_path_factory.mktemp("photos"), solids(500, 1)
    cameras, frames = around(scene, 9, width=40, height=30), []
    for i, (camera, drawn) in enumerate(zip(cameras, pictures(scene, cameras), strict=True)):
        back = np.eye(4)
        back[:3, :3], back[:3, 3] = camera.rotation.T * [1, -1, -1], camera.place
        frames.append({"file_path": f"r_{i}.png", "transform_matrix": back.tolist()})
        Image.fromarray(np.rint(255 * np.clip(drawn.colour, 0, 1)).astype(np.uint8)).save(
            folder / f"r_{i}.png"
        )
    told = {
        "w": 40,
        "h": 30,
        "fl_x": cameras[0].fx,
        "fl_y": cameras[0].fy,
        "cx": 20,
        "cy": 15,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(told))
    return folder


def test_photographs_become_a_scene_that_is_unpacked_and_looks_like_them(
    call: Call, photos: Path, tmp_path: Path
) -> None:
    hold, ply = tmp_path / "scene.hold", tmp_path / "scene.ply"
    told = call("fit-scene", photos, "--memory", "4GB", "-o", hold, *SMALL, "--json")
    row = json.loads(told.out)
    assert told.code == 0 and row["bytes"] == hold.stat().st_size and row["method"] == "splats.compact3dgs"
    assert (row["photographs"], row["held_out"]) == (7, 2) and 0 < row["gaussians"] <= 500
    grey = [np.asarray(Image.open(photos / f"r_{i}.png")) / 255 for i in range(9)]
    flat = -10 * np.log10(np.mean([(g - g.mean((0, 1))) ** 2 for g in grey]))
    assert row["psnr"] > flat + 1
    assert call("unpack", hold, "-o", ply).code == 0 and ply.stat().st_size > row["gaussians"] * 200
    assert call("verify", hold).code == 0


def test_photographs_with_times_become_a_scene_that_moves(call: Call, photos: Path, tmp_path: Path) -> None:
    told = json.loads((photos / "transforms.json").read_text())
    for i, frame in enumerate(told["frames"]):
        frame["time"] = i / 8
    (photos / "moving.json").write_text(json.dumps(told))
    hold, ply = tmp_path / "scene.hold", tmp_path / "scene.ply"
    done = call("fit-scene", photos / "moving.json", "-o", hold, *SMALL, "--json")
    row = json.loads(done.out)
    assert done.code == 0 and row["method"] == "splats.compact_moving" and row["psnr"] > 8
    assert call("unpack", hold, "-o", ply).code == 0 and b"trbf_center" in ply.read_bytes()[:600]
    assert (
        call("pack", ply, "-o", tmp_path / "again.hold", "--steps", 2, "--views", 2, "--width", 16).code == 0
    )
    told["frames"][0]["time"] = 1.5
    (photos / "moving.json").write_text(json.dumps(told))
    done = call("fit-scene", photos / "moving.json", "-o", hold, *SMALL)
    assert done.code == 2 and "whose time is 1.5" in done.err and done.err.count("\n") == 1


def test_a_budget_of_the_file_is_kept_and_the_line_tells_it(call: Call, photos: Path, tmp_path: Path) -> None:
    hold = tmp_path / "scene.hold"
    told = call("fit-scene", photos, "-o", hold, "--budget", "6kB", "--hold-back", 0, *SMALL)
    assert told.code == 0 and told.err == "" and hold.stat().st_size <= 6000
    assert "9 photographs" in told.out and "dB" not in told.out


def test_mistakes_are_one_line_and_leave_nothing(call: Call, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "scene.hold"
    for words, wanted in (
        (("--memory", "20MB"), "asked 20 MB"),
        (("--memory", "50%"), "--memory"),
        (("--with", "splats.opacity"), "learns from photographs: splats.compact3dgs"),
        (("--with", "splats.none_such"), "no method"),
        (("--budget", "10%"), "of photographs there is no share"),
        (("--budget", "100"), "asked 100 bytes"),
        (("--codes", "many"), "a whole number"),
        (("--background", "blue"), "--background"),
    ):
        told = call("fit-scene", photos, "-o", out, *SMALL, *words)
        assert told.code == 2 and wanted in told.err and told.err.count("\n") == 1, (words, told)
    told = call("fit-scene", tmp_path, "-o", out)
    assert told.code == 2 and told.err.count("\n") == 1
    told = call("fit-scene", photos, "-o", tmp_path / "no" / "scene.hold")
    assert told.code == 2 and "a folder that exists" in told.err
    assert not out.exists()
