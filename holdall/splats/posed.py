"""Photographs with known cameras: NeRF's `transforms.json` and COLMAP's sparse models.

photos = read_photos("lego/")                  # a folder with transforms_train.json, or with sparse/0 and images
photos.cameras[3], photos.image(3)             # float32 [height, width, 3], decoded when it is asked for
photos.train, photos.held_out                  # which ones to learn from, and which to be judged on
photos.cameras[3].time                         # 0 to 1, where frames have times, else None
cameras_of(text)                               # of a transforms.json, without the photographs
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.files import open_reader
from holdall.places import is_file, is_folder
from holdall.splats.camera import Camera
from holdall.splats.formats.bounded import brief
from holdall.splats.posed_colmap import matched, model_of, sparse_folder
from holdall.splats.posed_photos import Photos, Points, size_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Photos", "Points", "cameras_of", "read_photos"]

SIDE = 800  # pixels of a view whose file tells only its angle, and has no photograph to ask
_TABLES = ("transforms_train.json", "transforms.json")
_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")  # files of the first NeRFs are named without theirs
_BENT = ("k1", "k2", "k3", "k4", "p1", "p2")
_MODELS = (
    "PINHOLE",
    "SIMPLE_PINHOLE",
    "OPENCV",
)  # names that transforms.json uses for a lens that may be straight
_MOST = 256 << 20  # bytes of a table
_FAR = 1e9  # from here on numbers are no places and no pixels

Size = Callable[[str], tuple[int, int]]  # (name of a photograph) -> its width and height


def cameras_of(text: str, size: Size | None = None) -> list[Camera]:
    """The cameras of a transforms.json, in its order. size: of a photograph, where the table does not tell it."""
    table, frames = _table(text)
    return [
        _camera({**table, **frame}, str(frame.get("file_path", f"frame {i}")), size)
        for i, frame in enumerate(frames)
    ]


def read_photos(
    where: str,
    hold_back: int = 8,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    memory: int = 256 << 20,
) -> Photos:
    """Photographs and cameras of a folder (NeRF's or COLMAP's) or a transforms.json; a path or URL.

    hold_back: of the photographs in the order of their names, the first and then each of so many is held out; 0: none.
    A photograph that is the only one is learnt from.
    A folder with transforms_train.json and transforms_test.json has its split already, and that is kept.
    background: what shows behind pictures that are partly clear, red, green and blue from 0 to 1.
    memory: bytes of decoded pictures that are kept, at 3 bytes a pixel; the longest unused ones go first.
    """
    if hold_back < 0 or hold_back == 1:
        raise BadInput("hold_back", hold_back, "0, or 2 and more: one of so many is held out")
    folder, table = _found(where)
    test = f"{folder}/transforms_test.json"
    points, apart = None, {}
    if table is None:
        model, images = sparse_folder(folder)
        views, points = model_of(model)
        views = matched({f"{images}/{name}": camera for name, camera in views.items()})
    else:
        views = _views(folder, table)
        if table.endswith("_train.json") and is_file(test):
            apart = {path: c for path, c in _views(folder, test).items() if path not in views}
    views |= apart
    if not views:
        raise BadInput("photographs", f"{where}, with no views", "at least one")
    paths = sorted(views)
    if apart:
        held_out = [i for i, path in enumerate(paths) if path in apart]
    else:
        held_out = list(range(0, len(paths), hold_back)) if hold_back and len(paths) > 1 else []
    return Photos(folder, paths, [views[p] for p in paths], held_out, background, memory, points)


def _found(where: str) -> tuple[str, str | None]:
    """(folder, its table or None for a COLMAP model)."""
    if not is_folder(where):
        if not where.lower().endswith(".json"):
            raise BadInput("photographs", where, "a folder of posed photographs, or a transforms.json")
        return where.replace("\\", "/").rpartition("/")[0] or ".", where
    folder = where.rstrip("/") or "/"
    return folder, next((f"{folder}/{t}" for t in _TABLES if is_file(f"{folder}/{t}")), None)


def _views(folder: str, url: str) -> dict[str, Camera]:
    """{path of a photograph: its camera} of a transforms.json; sizes that it does not tell are read from the files."""
    with open_reader(url) as file:
        if file.size > _MOST:
            raise BadInput("transforms.json", f"{url} of {file.size:,} bytes", f"at most {_MOST:,}")
        raw = file.read(0, file.size)
    try:
        table, frames = _table(raw.decode())
    except UnicodeDecodeError as fault:
        raise BadInput("transforms.json", url, "a UTF-8 text file") from fault
    views: dict[str, Camera] = {}
    for i, frame in enumerate(frames):
        path = _path(folder, frame.get("file_path"), f"frame {i} of {url}")
        camera = _camera({**table, **frame}, path, size_of)
        if (camera.width, camera.height) != (found := size_of(path)):
            raise BadInput(
                "photograph",
                f"{path} of {found[0]} x {found[1]}",
                f"{camera.width} x {camera.height}, as its camera has",
            )
        if path in views:
            raise BadInput("transforms.json", f"{path} twice", "each photograph once")
        views[path] = camera
    return views


def _path(folder: str, told: Any, where: str) -> str:
    """The file of a frame, which must lie in the table's folder or below."""
    if not isinstance(told, str) or not told or len(told) > 1000:
        raise BadInput("transforms.json", f"{where}, without a file_path", "the name of a photograph")
    parts = [p for p in told.split("/") if p not in ("", ".")]
    if told.startswith("/") or ".." in parts or set(told) & set("\\:\0") or not parts:
        raise BadInput(
            "transforms.json", f"{where}, whose photograph is {told[:80]!r}", "a file beside it or below"
        )
    path = "/".join([folder, *parts])
    found = next((path + e for e in _ENDINGS if is_file(path + e)), None)
    if found is None:
        raise BadInput("photograph", f"{path}, named by {where}", "a file that exists")
    return found


def _table(text: str) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BadInput("transforms.json", text[:40], f"JSON ({brief(fault)})") from fault
    frames = table.get("frames") if isinstance(table, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise BadInput("transforms.json", text[:40], 'a table with "frames" of cameras')
    return {k: v for k, v in table.items() if k != "frames"}, frames


def _camera(told: Mapping[str, Any], name: str, size: Size | None) -> Camera:
    """From a frame's entries over the table's own."""
    bent = [k for k in _BENT if told.get(k) not in (None, 0)]
    model = told.get("camera_model", "OPENCV")
    if bent or model not in _MODELS:
        why = f"{bent[0]} = {told[bent[0]]}" if bent else f"the model {model}"
        raise BadInput(
            "camera",
            f"{name}, whose lens bends ({why})",
            "undistorted photographs (colmap image_undistorter)",
        )
    wide, high = _number(told, "w", name), _number(told, "h", name)
    if wide is None or high is None:
        wide, high = size(name) if size else (SIDE, SIDE)
    if not (1 <= wide <= 1 << 16 and 1 <= high <= 1 << 16) or int(wide) != wide or int(high) != high:
        raise BadInput("camera", f"{name}, of {wide} x {high}", "a width and a height in whole pixels")
    fx = _number(told, "fl_x", name) or _focal(told, "camera_angle_x", wide, name)
    fy = _number(told, "fl_y", name) or _focal(told, "camera_angle_y", high, name) or fx
    fx = fx or fy
    if fx is None or fy is None:
        raise BadInput("camera", f"{name}, without fl_x or camera_angle_x", "a focal length")
    cx, cy = _number(told, "cx", name), _number(told, "cy", name)
    rotation, translation = _inverse(told.get("transform_matrix"), name)
    return Camera(
        rotation, translation, fx, fy, wide / 2 if cx is None else cx, high / 2 if cy is None else cy,
        int(wide), int(high), name, _time(told, name),
    )  # fmt: skip


def _time(told: Mapping[str, Any], name: str) -> float | None:
    """Of frames of what moves: from 0, the first moment, to 1, the last."""
    time = _number(told, "time", name)
    if time is not None and not 0 <= time <= 1:
        raise BadInput("camera", f"{name}, whose time is {time:g}", "0 to 1: the first moment to the last")
    return time


def _number(told: Mapping[str, Any], key: str, name: str) -> float | None:
    found = told.get(key)
    if found is None:
        return None
    if type(found) not in (int, float) or not abs(found) < _FAR:
        raise BadInput("camera", f"{name}, whose {key} is {str(found)[:40]}", "a number")
    return float(found)


def _focal(told: Mapping[str, Any], key: str, pixels: float, name: str) -> float | None:
    """In pixels, from the angle that they span."""
    angle = _number(told, key, name)
    if angle is None:
        return None
    if not 0 < angle < math.pi:
        raise BadInput("camera", f"{name}, whose {key} is {angle}", "radians above 0 and below pi")
    return pixels / 2 / math.tan(angle / 2)


def _inverse(matrix: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """World to camera, from camera to world. There, y is up and the view is along -z; here, y is down and it is z."""
    try:
        pose = np.array(matrix, dtype=np.float64)[:3, :4]
    except (TypeError, ValueError, IndexError, OverflowError) as fault:
        raise BadInput("camera", f"{name}, with no transform_matrix of numbers", "one of 4 x 4") from fault
    if pose.shape != (3, 4) or not (np.abs(pose) < _FAR).all():
        raise BadInput(
            "camera", f"{name}, with a transform_matrix of {pose.shape}", f"numbers below {_FAR:g}, 4 x 4"
        )
    turn = pose[:, :3] * [1, -1, -1]
    if np.abs(turn.T @ turn - np.eye(3)).max() > 1e-3 or np.linalg.det(turn) < 0:
        raise BadInput(
            "camera", f"{name}, whose transform_matrix does not turn but stretch or mirror", "a rotation"
        )
    return turn.T, -turn.T @ pose[:, 3]
