"""holdall view and holdall render, as they are called."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.processes import COMMAND, ENV, Result

from holdall.splats.camera import looking
from holdall.splats.formats import write
from holdall.splats.made import solids

pytest.importorskip("numba")
Image = pytest.importorskip("PIL.Image")
Call = Callable[..., Result]


@pytest.fixture(scope="module")
def ply(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scenes") / "solids.ply"
    write(solids(200, 1), str(path))
    return str(path)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A transforms.json of two views of 40 x 30: x right, y up, z backward, as NeRF has them."""
    frames = []
    for place in ([0, 0.5, 4], [4, 0.5, 0]):
        camera = looking(place, [0, 0, 0], width=40, height=30)
        back = np.eye(4)
        back[:3, :3], back[:3, 3] = camera.rotation.T * [1, -1, -1], camera.place
        frames.append({"file_path": f"r_{len(frames)}", "transform_matrix": back.tolist()})
    told = {"w": 40, "h": 30, "fl_x": camera.fx, "fl_y": camera.fy, "cx": 20, "cy": 15, "frames": frames}
    path = tmp_path_factory.mktemp("views") / "transforms.json"
    path.write_text(json.dumps(told))
    return str(path)


def test_a_picture_and_a_film_of_a_turn(call: Call, ply: str, tmp_path: Path) -> None:
    png, gif = tmp_path / "view.png", tmp_path / "turn.gif"
    told = call("render", ply, "-o", png, "--size", "48x32", "--up", "y", "--json")
    row = json.loads(told.out)
    assert told.code == 0 and (row["width"], row["height"], row["pictures"]) == (48, 32, 1)
    assert row["bytes"] == png.stat().st_size
    with Image.open(png) as first:
        assert first.size == (48, 32) and np.asarray(first).std() > 20
        upright = np.asarray(first).astype(float)
    told = call("render", ply, "-o", gif, "--size", "48x32", "--frames", 3, "--background", "white")
    assert told.code == 0 and "3 of 48x32" in told.out and told.err == ""
    with Image.open(gif) as found:
        assert found.n_frames == 3 and found.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    call("render", ply, "-o", png, "--size", "48x32", "--up=-y")
    with Image.open(png) as other:
        assert np.abs(np.asarray(other).astype(float) - upright).mean() > 3


def test_what_is_packed_is_drawn_as_what_it_was(call: Call, ply: str, tmp_path: Path) -> None:
    hold = tmp_path / "scene.hold"
    assert call("pack", ply, "--with", "splats.none", "-o", hold).code == 0
    pictures = []
    for source in (ply, hold):
        png = tmp_path / "view.png"
        assert call("render", source, "-o", png, "--size", "48x32").code == 0
        with Image.open(png) as found:
            pictures.append(np.asarray(found).astype(float))
    assert pictures[0].std() > 10 and np.abs(pictures[0] - pictures[1]).mean() < 0.5


def test_views_of_photographs(call: Call, ply: str, views: str, tmp_path: Path) -> None:
    pictures = []
    for i in (0, 1):
        told = call("render", ply, "--views", views, "--camera", i, "-o", tmp_path / f"{i}.png")
        assert told.code == 0 and "40x30" in told.out
        with Image.open(tmp_path / f"{i}.png") as found:
            pictures.append(np.asarray(found).astype(float))
    assert np.abs(pictures[0] - pictures[1]).mean() > 3
    told = call("render", ply, "--views", views, "-o", tmp_path / "all.webp", "--json")
    assert json.loads(told.out)["pictures"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "a.jpg"], ".png"),
        (["-o", "a.png", "--size", "0x5"], "640x480"),
        (["-o", "a.png", "--size", "99999x99999"], "at most"),
        (["-o", "a.mp4", "--size", "33x32"], "even"),
        (["-o", "a.png", "--camera", "3"], "--views"),
        (["-o", "a.png", "--camera", "-1"], "number of a view"),
        (["-o", "a.png", "--up", "w"], "-z"),
        (["-o", "a.png", "--background", "red"], "black"),
        (["-o", "a.png", "--background", "0,nan,0"], "black"),
        (["-o", "a.png", "--views", "none.json"], "none.json"),
        (["-o", "none/a.png"], "none"),
    ],
)
def test_a_mistake_is_one_line(
    call: Call, ply: str, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = call("render", ply, *words)
    assert told.code == 2 and says in told.one_line() and told.out == "" and list(tmp_path.iterdir()) == []


def test_what_is_no_scene_is_one_line(call: Call, ply: str, log: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ply"
    cut.write_bytes(Path(ply).read_bytes()[:-9])
    assert call("pack", log, "--with", "logs.none", "-o", tmp_path / "log.hold").code == 0
    given = {
        cut: "damaged",
        tmp_path / "none.ply": "exists",
        log: "scene",
        tmp_path / "log.hold": "room logs",
    }
    for path, says in given.items():
        for words in (
            ["view", "--no-open", path],
            ["view", "--no-open", ply, path],
            ["render", path, "-o", "a.png"],
        ):
            told = call(*words)
            assert told.code == 2 and says in told.one_line() and told.out == ""
    assert "one or two" in call("view", "--no-open", ply, ply, ply).one_line()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = call("view", "--no-open", ply, "--port", taken.getsockname()[1])
    assert "free" in told.one_line()


def test_a_page_is_served_until_it_is_stopped(ply: str) -> None:
    words = [*COMMAND, "view", ply, ply, "--no-open", "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}scenes.json", timeout=10) as answer:
            facts = json.load(answer)
        assert [s["count"] for s in facts["scenes"]] == [200, 200]
        assert facts["scenes"][0]["bytes"] == Path(ply).stat().st_size
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err
