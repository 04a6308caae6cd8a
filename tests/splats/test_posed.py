"""Photographs with cameras: the views look where they should, and what does not fit is said."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.camera import looking
from holdall.splats.posed import SIDE, cameras_of, read_photos


def matrix_of(camera):
    """Camera to world with y up and -z forward: what a transforms.json holds."""
    pose = np.eye(4)
    pose[:3, :3] = camera.rotation.T * [1, -1, -1]
    pose[:3, 3] = camera.place
    return pose.tolist()


VIEWS = [
    looking([3 * math.cos(a), 1 + a / 9, 3 * math.sin(a)], [0, 0.2, 0], width=12, height=9) for a in range(10)
]


def table(**more):
    frames = [{"file_path": f"./shots/v_{i}", "transform_matrix": matrix_of(v)} for i, v in enumerate(VIEWS)]
    return {"camera_angle_x": 2 * math.atan(6 / VIEWS[0].fx), "frames": frames} | more


def photographed(folder, size=(12, 9)):
    """One flat colour for each view, half of each picture clear."""
    (folder / "shots").mkdir(exist_ok=True)
    for i in range(len(VIEWS)):
        pixels = np.full((size[1], size[0], 4), (10 * i, 200, 30, 255), np.uint8)
        pixels[:, size[0] // 2 :, 3] = 0
        Image.fromarray(pixels).save(folder / f"shots/v_{i}.png")


@pytest.fixture
def lego(tmp_path):
    photographed(tmp_path)
    (tmp_path / "transforms_train.json").write_text(json.dumps(table()))
    return tmp_path


def same(camera, wanted):
    np.testing.assert_allclose(camera.rotation, wanted.rotation, atol=1e-9)
    np.testing.assert_allclose(camera.translation, wanted.translation, atol=1e-9)
    np.testing.assert_allclose([camera.fx, camera.fy, camera.cx, camera.cy], [wanted.fx, wanted.fy, 6, 4.5])
    assert (camera.width, camera.height) == (12, 9)


def test_times_of_frames_are_kept():
    told = table()
    for i, frame in enumerate(told["frames"][:4]):
        frame["time"] = i / 4
    assert [c.time for c in cameras_of(json.dumps(told))] == [0, 0.25, 0.5, 0.75, *[None] * 6]
    told["frames"][0]["time"] = "noon"
    with pytest.raises(BadInput, match="whose time is noon"):
        cameras_of(json.dumps(told))


def test_a_view_of_nerf_looks_forward_and_down():
    """By hand: at (0, 0, 5), looking along -z with y up. The world's y then points down in the picture."""
    pose = np.eye(4)
    pose[2, 3] = 5
    (camera,) = cameras_of(
        json.dumps({"camera_angle_x": math.pi / 2, "frames": [{"transform_matrix": pose.tolist()}]})
    )
    seen = camera.rotation @ [1, 2, 1] + camera.translation
    np.testing.assert_allclose(seen, [1, -2, 4])  # right, up, and 4 ahead
    assert (camera.width, camera.cx) == (SIDE, SIDE / 2) and camera.fx == pytest.approx(SIDE / 2)


def test_photographs_of_nerf(lego):
    photos = read_photos(str(lego), hold_back=4)
    assert photos.names == tuple(f"shots/v_{i}.png" for i in range(10))
    assert photos.held_out == (0, 4, 8) and photos.train == (1, 2, 3, 5, 6, 7, 9)
    for camera, wanted in zip(photos.cameras, VIEWS, strict=True):
        same(camera, wanted)
    image = photos.image(3)
    assert image.dtype == np.float32 and image.shape == (9, 12, 3)
    np.testing.assert_allclose(image[0, 0], np.array([30, 200, 30]) / 255, atol=1e-6)
    np.testing.assert_allclose(image[0, 11], 1.0)
    over = read_photos(str(lego / "transforms_train.json"), background=(1, 0, 0.5), hold_back=0)
    np.testing.assert_allclose(over.image(3)[0, 11], [1, 0, 128 / 255], atol=1e-6)
    assert over.held_out == () and len(over.train) == 10


def test_a_split_that_is_there_is_kept(lego):
    whole = table()
    (lego / "transforms_train.json").write_text(json.dumps(whole | {"frames": whole["frames"][:7]}))
    (lego / "transforms_test.json").write_text(json.dumps(whole | {"frames": whole["frames"][7:]}))
    photos = read_photos(str(lego))
    assert photos.held_out == (7, 8, 9) and len(photos) == 10


def test_each_frame_may_have_its_own_lens(lego):
    whole = table(w=12, h=9, fl_x=20.0, fl_y=21.0, cx=5.0, cy=4.0, k1=0.0)
    whole["frames"][2] |= {"fl_x": 30.0, "cx": 6.5}
    del whole["camera_angle_x"]
    cameras = cameras_of(json.dumps(whole))
    assert [(c.fx, c.fy, c.cx, c.cy) for c in cameras[1:3]] == [(20, 21, 5, 4), (30, 21, 6.5, 4)]


def test_only_so_many_bytes_of_pictures_are_kept(lego):
    one = 9 * 12 * 3
    photos = read_photos(str(lego), memory=3 * one)
    for i in range(10):
        photos.image(i)
    assert photos.kept_bytes == 3 * one and photos.decoded == 10
    photos.image(7), photos.image(8), photos.image(7)
    assert photos.decoded == 10  # all three were there
    photos.image(0)  # pushes out 9, the longest unused
    photos.image(8), photos.image(7)
    assert photos.decoded == 11
    photos.image(9)
    assert photos.decoded == 12
    none = read_photos(str(lego), memory=0)
    none.image(0), none.image(0)
    assert none.decoded == 2 and none.kept_bytes == 0


BAD = {
    "no JSON": ("{", "JSON"),
    "no frames": ('{"frames": []}', "frames"),
    "deep": ("[" * 100_000, "JSON"),
    "bent lens": (json.dumps(table(k1=0.1)), "lens bends"),
    "fisheye": (json.dumps(table(camera_model="OPENCV_FISHEYE")), "OPENCV_FISHEYE"),
    "no focal length": (json.dumps(table(camera_angle_x=None)), "focal length"),
    "angle": (json.dumps(table(camera_angle_x=4)), "radians"),
    "half a pixel": (json.dumps(table(w=12.5, h=9)), "whole pixels"),
    "word": (json.dumps(table(fl_x="a")), "a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_told_in_one_line(name):
    text, wanted = BAD[name]
    with pytest.raises(BadInput, match=wanted) as told:
        cameras_of(text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("pose", [
    None, [[1]], "ab", [[math.nan] * 4] * 4, np.diag([1, 1, -1, 1]).tolist(), np.diag([2, 2, 2, 1]).tolist(),
    [[1, 0], 3],
])  # fmt: skip
def test_a_pose_that_is_none(pose):
    with pytest.raises(BadInput, match="transform_matrix"):
        cameras_of(json.dumps({"camera_angle_x": 1, "frames": [{"transform_matrix": pose}]}))


@pytest.mark.parametrize(
    "path", ["../shots/v_0", "/etc/passwd", "shots/../../v", "s3://b/v", "..\\v", "", 7, "a\0b", "."]
)
def test_photographs_lie_beside_their_table(lego, path):
    whole = table()
    whole["frames"][0]["file_path"] = path
    (lego / "transforms.json").write_text(json.dumps(whole))
    with pytest.raises(BadInput, match=r"file_path|beside it"):
        read_photos(str(lego / "transforms.json"))


def test_photographs_that_do_not_fit(lego, tmp_path):
    (lego / "transforms.json").write_text(json.dumps(table(w=24, h=18)))
    with pytest.raises(BadInput, match="12 x 9; wanted 24 x 18"):
        read_photos(str(lego / "transforms.json"))
    (lego / "shots/v_4.png").write_bytes((lego / "shots/v_4.png").read_bytes()[:60])
    photos = read_photos(str(lego))
    with pytest.raises(CorruptArtefact, match="v_4"):
        photos.image(4)
    (lego / "shots/v_4.png").write_bytes(b"no picture")
    with pytest.raises(CorruptArtefact, match="v_4"):
        read_photos(str(lego))
    (lego / "shots/v_4.png").unlink()
    with pytest.raises(BadInput, match="v_4, named by frame 4"):
        read_photos(str(lego))
    with pytest.raises(BadInput, match="sparse/0"):
        read_photos(str(lego / "shots"))


def test_an_altered_table_is_cameras_or_one_line():
    """Characters of a table replaced, and values of other sorts put into it."""
    rng, refused, text = np.random.default_rng(0), 0, json.dumps(table(w=12, h=9, fl_x=20.0, k1=0))
    odd = [None, True, [], {}, "x", -1, 0, 10**400, 1e-320, math.nan, math.inf, [[1]], [1e308] * 4]
    for k in range(400):
        if k % 2:
            whole = json.loads(text)
            into = (whole, whole["frames"][2], whole["frames"][0]["transform_matrix"])[k // 2 % 3]
            keys = list(into) if isinstance(into, dict) else range(4)
            into[keys[rng.integers(len(keys))]] = odd[rng.integers(len(odd))]
            made = json.dumps(whole)
        else:
            letters = list(text)
            for at in rng.integers(0, len(text), 2):
                letters[at] = '0123456789.-eE{}[],:nt "'[rng.integers(24)]
            made = "".join(letters)
        try:
            assert cameras_of(made)
        except BadInput as told:
            refused += 1
            assert "\n" not in str(told) and len(str(told)) < 500
    assert 100 < refused < 400


def test_one_photograph_alone_is_learnt_from(lego):
    (lego / "transforms.json").write_text(json.dumps(table() | {"frames": table()["frames"][:1]}))
    assert read_photos(str(lego / "transforms.json")).train == (0,)
