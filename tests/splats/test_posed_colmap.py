"""Photographs with cameras of COLMAP's sparse models."""

import struct

import numpy as np
import pytest
from PIL import Image

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.posed import read_photos

QUATS = [(1, 0, 0, 0), (0.5, 0.5, 0.5, 0.5), (0.9, 0.1, -0.3, 0.2)]
MOVES = [(0, 0, 4), (1, 2, 3), (-1, 0.5, 6)]
NAMES = ["b one.png", "a.png", "c.png"]
POINTS = [((1, 2, 3), (10, 20, 30)), ((-1, 0.5, 0), (255, 0, 7))]


def colmap(folder, form, model="PINHOLE", numbers=(20.0, 21.0, 6.5, 4.5)):
    """A sparse model of three photographs and two points, written from the format's description."""
    sparse = folder / "sparse/0"
    sparse.mkdir(parents=True)
    (folder / "images").mkdir()
    for name in NAMES:
        Image.fromarray(np.full((9, 12, 3), 50, np.uint8)).save(folder / "images" / name)
    if form == "txt":
        (sparse / "cameras.txt").write_text(f"# list\n3 {model} 12 9 {' '.join(map(str, numbers))}\n")
        lines = ["# list", "# two lines an image"]
        for i, (quat, move, name) in enumerate(zip(QUATS, MOVES, NAMES, strict=True)):
            lines += [
                f"{i + 1} {' '.join(map(str, quat + move))} 3 {name}",
                "" if i else "5.0 6.0 -1 7.0 8.0 1",
            ]
        (sparse / "images.txt").write_text("\n".join(lines))
        rows = [f"{i} {' '.join(map(str, p + c))} 0.5 1 0 2 1" for i, (p, c) in enumerate(POINTS)]
        (sparse / "points3D.txt").write_text("\n".join(["# list", *rows, ""]))
        return
    kind = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV_FISHEYE": 5}[model]
    (sparse / "cameras.bin").write_bytes(struct.pack(f"<QiiQQ{len(numbers)}d", 1, 3, kind, 12, 9, *numbers))
    raw = struct.pack("<Q", 3)
    for i, (quat, move, name) in enumerate(zip(QUATS, MOVES, NAMES, strict=True)):
        raw += struct.pack("<i7di", i, *quat, *move, 3) + name.encode() + b"\0"
        raw += struct.pack("<Q", i) + struct.pack("<ddq", 1.0, 2.0, 3) * i
    (sparse / "images.bin").write_bytes(raw)
    raw = struct.pack("<Q", 2)
    for i, (place, colour) in enumerate(POINTS):
        raw += struct.pack("<Q3d3BdQ", i, *place, *colour, 0.5, 2) + struct.pack("<4i", 1, 0, 2, 1)
    (sparse / "points3D.bin").write_bytes(raw)


@pytest.mark.parametrize("form", ["txt", "bin"])
@pytest.mark.parametrize("below", ["", "sparse/0"])
def test_colmap(tmp_path, form, below):
    colmap(tmp_path, form)
    photos = read_photos(str(tmp_path / below), hold_back=2)
    assert [n.rpartition("/")[2] for n in photos.names] == sorted(NAMES) and photos.held_out == (0, 2)
    by_name = dict(zip((n.rpartition("/")[2] for n in photos.names), photos.cameras, strict=True))
    for quat, move, name in zip(QUATS, MOVES, NAMES, strict=True):
        camera = by_name[name]
        np.testing.assert_allclose(
            camera.rotation @ [1, 2, 3] + camera.translation, turned(quat, [1, 2, 3]) + move
        )
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (20, 21, 6.5, 4.5)
    np.testing.assert_allclose(photos.points.means, [p for p, _ in POINTS])
    assert photos.points.colours.tolist() == [list(c) for _, c in POINTS]
    assert photos.image(0).shape == (9, 12, 3)


def turned(quat, v):
    """v turned by a quaternion, through the product of Hamilton."""
    quat = np.array(quat) / np.linalg.norm(quat)

    def times(a, b):
        return np.array(
            [a[0] * b[0] - a[1:] @ b[1:], *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))]
        )

    return times(times(quat, np.array([0.0, *v])), quat * [1, -1, -1, -1])[1:]


@pytest.mark.parametrize("form", ["txt", "bin"])
def test_lenses_of_colmap(tmp_path, form):
    for i, (model, numbers) in enumerate(
        [("SIMPLE_PINHOLE", (20.0, 6.0, 4.0)), ("SIMPLE_RADIAL", (20.0, 6.0, 4.0, 0.0))]
    ):
        colmap(tmp_path / str(i), form, model, numbers)
        camera = read_photos(str(tmp_path / str(i))).cameras[0]
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (20, 20, 6, 4)
    colmap(tmp_path / "bent", form, "SIMPLE_RADIAL", (20.0, 6.0, 4.0, 0.01))
    with pytest.raises(BadInput, match="SIMPLE_RADIAL lens bends"):
        read_photos(str(tmp_path / "bent"))
    colmap(tmp_path / "fish", form, "OPENCV_FISHEYE", (1.0,) * 8)
    with pytest.raises(BadInput, match="undistort"):
        read_photos(str(tmp_path / "fish"))


def test_photographs_that_colmap_names_must_be_there(tmp_path):
    colmap(tmp_path, "bin")
    Image.fromarray(np.zeros((9, 13, 3), np.uint8)).save(tmp_path / "images/a.png")
    with pytest.raises(BadInput, match="13 x 9; wanted 12 x 9"):
        read_photos(str(tmp_path))
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(BadInput, match="a file that exists"):
        read_photos(str(tmp_path))


@pytest.mark.parametrize("form", ["txt", "bin"])
def test_damaged_models_are_told(tmp_path, form):
    """Cut at any place, or with any byte changed, each file gives photographs or one line."""
    colmap(tmp_path, form)
    rng = np.random.default_rng(0)
    refused = 0
    for name in ("cameras", "images", "points3D"):
        path = tmp_path / f"sparse/0/{name}.{form}"
        whole = path.read_bytes()
        for k in range(60):
            raw = bytearray(whole[: rng.integers(len(whole))] if k % 2 else whole)
            if raw:
                raw[rng.integers(len(raw))] = rng.integers(256)
            path.write_bytes(raw)
            try:
                read_photos(str(tmp_path))
            except (BadInput, CorruptArtefact) as told:
                refused += 1
                assert "\n" not in str(told)
        path.write_bytes(whole)
    assert refused > 60
    if form == "bin":
        (tmp_path / "sparse/0/points3D.bin").write_bytes(struct.pack("<Q", 1 << 62) + bytes(100))
        with pytest.raises(CorruptArtefact, match="points in 108 bytes"):
            read_photos(str(tmp_path))
