"""Pictures and films of scenes: what is in their files, and that mistakes leave none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdall.errors import BadInput, NeedsExtra
from holdall.splats import film
from holdall.splats.camera import around, looking
from holdall.splats.made import solids
from holdall.splats.page_opened import UPS, places, upwards
from holdall.splats.scene import Scene

pytest.importorskip("numba")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return solids(300, 1)


@pytest.fixture(scope="module")
def drawn(scene: Scene) -> list[Any]:
    """Four pictures of one turn, as they must come back."""
    return [film.drawn(scene, camera) for camera in film.turning(scene, 4, 64, 48, "y")]


def test_a_turn_goes_round_once_and_sees_the_whole_scene(scene: Scene) -> None:
    cameras = film.turning(scene, 8, 640, 480, "y")
    seen = scene.means[((scene.means >= scene.box()[0]) & (scene.means <= scene.box()[1])).all(1)]
    for camera in cameras:
        at = seen @ camera.rotation.T + camera.translation
        across = camera.fx * at[:, 0] / at[:, 2] + camera.cx
        down = camera.fy * at[:, 1] / at[:, 2] + camera.cy
        assert (
            (at[:, 2] > 0).all()
            and across.min() > 0
            and across.max() < 640
            and down.min() > 0
            and down.max() < 480
        )
        assert camera.rotation[1] @ [0, 1, 0] < -0.9  # what is up in the scene is up in the picture
    steps = [
        np.linalg.norm(a.place - b.place) for a, b in zip(cameras, cameras[1:] + cameras[:1], strict=True)
    ]
    np.testing.assert_allclose(steps, steps[0])


@pytest.mark.parametrize("up", UPS)
def test_up_is_where_it_is_said_to_be(scene: Scene, up: str) -> None:
    above = upwards(scene, up)
    assert np.abs(above).sum() == 1 and above["xyz".index(up[-1])] == (-1 if up[0] == "-" else 1)
    assert np.linalg.matrix_rank(np.stack(places(scene, 5, above)) - places(scene, 1, above)[0]) == 2


def test_up_is_as_cameras_were_held_or_as_most_scenes_have_it(scene: Scene) -> None:
    held = replace(
        scene, cameras=tuple(looking(p, [0, 0, 0], [0, 0, 1]) for p in ([3, 0, 1], [-3, 0, 1], [0, 3, 1]))
    )
    assert upwards(held) @ [0, 0, 1] > 0.99
    assert (upwards(scene) == [0, -1, 0]).all()
    everywhere = replace(
        scene, cameras=tuple(looking([0, 0, 3], [0, 0, 0], up) for up in ([0, 1, 0], [0, -1, 0]))
    )
    assert (upwards(everywhere) == [0, -1, 0]).all()  # they do not agree
    with pytest.raises(BadInput, match="--up"):
        upwards(scene, "sideways")


def test_a_picture_is_what_was_drawn(scene: Scene, drawn: list[Any], tmp_path: Path) -> None:
    camera = film.turning(scene, 1, 64, 48, "y")[0]
    film.picture(scene, camera, str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as found:
        assert found.format == "PNG" and (np.asarray(found) == drawn[0]).all()
    film.picture(scene, camera, str(tmp_path / "white.png"), (1, 1, 1))
    with Image.open(tmp_path / "white.png") as found:
        assert (np.asarray(found)[0, 0] == 255).all() and (drawn[0][0, 0] == 0).all()


@pytest.mark.parametrize(("kind", "most"), [("gif", 6), ("webp", 6)])
def test_a_film_without_more_packages(
    scene: Scene, drawn: list[Any], kind: str, most: float, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    path = tmp_path / f"turn.{kind}"
    film.film(
        scene, film.turning(scene, 4, 64, 48, "y"), str(path), rate=20, told=lambda *now: told.append(now)
    )
    with Image.open(path) as found:
        assert found.n_frames == 4 and found.info["loop"] == 0
        for i, wanted in enumerate(drawn):
            found.seek(i)
            found.load()
            assert found.info["duration"] == 50
            check(np.asarray(found.convert("RGB")), drawn, i, most)
            assert wanted.std() > 20
    assert told == [(i, 4) for i in range(1, 5)] and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_film_as_h264(scene: Scene, drawn: list[Any], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "turn.mp4"
    film.film(scene, film.turning(scene, 4, 64, 48, "y"), str(path), rate=12)
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == 12
        frames = [f.to_ndarray(format="rgb24") for f in box.decode(stream)]
    assert len(frames) == 4
    for i, frame in enumerate(frames):
        check(frame, drawn, i, 12)


def check(frame: Any, drawn: list[Any], i: int, most: float) -> None:
    """Near to its own picture, and nearer than to any other of the turn."""
    far = [float(np.abs(frame.astype(float) - other).mean()) for other in drawn]
    assert far[i] < most and far[i] == min(far) and sorted(far)[1] > 1.5 * far[i]


def test_a_view_of_another_shape_is_seen_whole() -> None:
    camera = looking([0, 0, -3], [0, 0, 0], width=100, height=50)
    for width, height in ((200, 100), (100, 100), (50, 100)):
        found = film.sized(camera, width, height)
        edges = np.array(
            [[-camera.cx / camera.fx, -camera.cy / camera.fy], [camera.cx / camera.fx, camera.cy / camera.fy]]
        )
        pixels = edges * [found.fx, found.fy] + [found.cx, found.cy]
        assert (pixels >= -1e-9).all() and (pixels <= np.array([width, height]) + 1e-9).all()
        np.testing.assert_allclose(pixels.mean(0), [width / 2, height / 2])
        assert found.fx == found.fy and (found.width, found.height) == (width, height)


def test_mistakes_leave_nothing(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = around(scene, 2, width=64, height=48)
    mixed = [cameras[0], film.sized(cameras[1], 32, 32)]
    odd = [film.sized(c, 33, 32) for c in cameras]
    for given, name, says in (
        (mixed, "a.gif", "one size"),
        (odd, "a.mp4", "even"),
        (cameras, "a.txt", "ends with"),
    ):
        with pytest.raises(BadInput, match=says):
            film.film(scene, given, str(tmp_path / name))
    with pytest.raises(BadInput, match="a film"):
        film.film(scene, cameras, str(tmp_path / "a.png"))

    def broken(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(film, "drawn", broken)
    for name in ("a.gif", "a.mp4"):
        with pytest.raises(OSError, match="No space"):
            film.film(scene, cameras, str(tmp_path / name))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(NeedsExtra, match=r"holdall\[film\]"):
        film.film(scene, cameras, str(tmp_path / "a.mp4"))
    assert list(tmp_path.iterdir()) == []
