"""COLMAP's sparse models: cameras, images and points, as text or binary."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import is_local, local_path, open_reader
from holdall.places import is_file, is_folder
from holdall.splats.camera import Camera
from holdall.splats.posed_photos import Points, size_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MODELS = {  # by the numbers of the binary form: name, count of parameters, and where fx, fy, cx, cy are among them
    0: ("SIMPLE_PINHOLE", 3, (0, 0, 1, 2)), 1: ("PINHOLE", 4, (0, 1, 2, 3)), 2: ("SIMPLE_RADIAL", 4, (0, 0, 1, 2)),
    3: ("RADIAL", 5, (0, 0, 1, 2)), 4: ("OPENCV", 8, (0, 1, 2, 3)),
}  # fmt: skip
_PLACES = ("", "/sparse/0", "/sparse", "/colmap/sparse/0")

Lens = tuple[int, int, tuple[float, float, float, float]]  # width, height, (fx, fy, cx, cy)


def sparse_folder(folder: str) -> tuple[str, str]:
    """(the model's folder, the photographs')."""
    for place in _PLACES:
        model = f"{folder}{place}"
        if any(is_file(f"{model}/cameras.{form}") for form in ("bin", "txt")):
            above = [folder, _parent(folder), _parent(_parent(folder))]
            images = [f"{a}/images" for a in above[: 1 if place else 3]]
            return model, next((i for i in images if is_folder(i)), images[0])
    raise BadInput(
        "photographs",
        folder,
        "a folder with transforms.json or transforms_train.json, or COLMAP's sparse/0 and images",
    )


def _parent(folder: str) -> str:
    return str(local_path(folder).resolve().parent) if is_local(folder) else folder.rpartition("/")[0]


def model_of(folder: str) -> tuple[dict[str, Camera], Points | None]:
    """({name of an image: its camera}, the points if there are any)."""
    form = "bin" if is_file(f"{folder}/cameras.bin") else "txt"
    for needed in (f"{folder}/cameras.{form}", f"{folder}/images.{form}"):
        if not is_file(needed):
            raise BadInput("COLMAP model", f"{folder}, without {needed.rpartition('/')[2]}", "a whole one")
    lenses = dict((_lenses_bin if form == "bin" else _lenses_txt)(f"{folder}/cameras.{form}"))
    views: dict[str, Camera] = {}
    where = f"{folder}/images.{form}"
    for name, quat, move, lens in (_images_bin if form == "bin" else _images_txt)(where):
        if lens not in lenses:
            raise CorruptArtefact(where, f"image {name!r} was taken by camera {lens}, which is not told")
        if not name or name.startswith("/") or ".." in name.split("/") or set(name) & set("\\:\0"):
            raise BadInput(
                "COLMAP model", f"{where}, which names {name[:80]!r}", "files in the folder of images"
            )
        wide, high, (fx, fy, cx, cy) = lenses[lens]
        views[name] = Camera(_rotation(quat, where), np.array(move), fx, fy, cx, cy, wide, high, name)
    where = f"{folder}/points3D.{form}"
    if not is_file(where):
        return views, None
    with np.errstate(over="ignore"):
        points = (_points_bin if form == "bin" else _points_txt)(where)
    if not np.isfinite(points.means).all():
        raise CorruptArtefact(where, "some of its points are at NaN or infinity")
    return views, points


def matched(views: dict[str, Camera]) -> dict[str, Camera]:
    """The views by the paths of their photographs, each there and as large as its camera says."""
    for path, camera in views.items():
        if not is_file(path):
            raise BadInput("photograph", path, "a file that exists, as the COLMAP model names it")
        wide, high = size_of(path)
        if (wide, high) != (camera.width, camera.height):
            told = f"{camera.width} x {camera.height}, as its camera has"
            raise BadInput("photograph", f"{path} of {wide} x {high}", told)
    return views


def _lens(model: str, wide: int, high: int, numbers: tuple[float, ...], where: str) -> Lens:
    known = next((m for m in _MODELS.values() if m[0] == model), None)
    if known is None:
        names = ", ".join(m[0] for m in _MODELS.values())
        raise BadInput(
            "camera", f"{where}, of the model {model[:40]}", f"one of {names}: undistort the photographs"
        )
    _, count, places = known
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise CorruptArtefact(where, f"a {model} camera of {len(numbers)} numbers, not {count}")
    bent = [x for i, x in enumerate(numbers) if i not in places and x != 0]
    if bent:
        raise BadInput(
            "camera",
            f"{where}, whose {model} lens bends ({bent[0]:g})",
            "undistorted photographs (colmap image_undistorter)",
        )
    if not (0 < wide < 1 << 16 and 0 < high < 1 << 16):
        raise CorruptArtefact(where, f"a camera of {wide} x {high}")
    fx, fy, cx, cy = (float(numbers[i]) for i in places)
    return wide, high, (fx, fy, cx, cy)


def _rotation(quat: tuple[float, ...], where: str) -> NDArray[Any]:
    length = float(np.linalg.norm(quat))
    if not np.isfinite(length) or length < 1e-6:
        raise CorruptArtefact(where, f"a rotation of length {length:g}")
    w, x, y, z = (q / length for q in quat)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


class _Bytes:
    """A binary file, from front to back."""

    def __init__(self, url: str):
        with open_reader(url) as file:
            self.raw, self.url, self.at = file.read(0, file.size), url, 0

    def take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        self.skip(size)
        return struct.unpack_from(form, self.raw, self.at - size)

    def skip(self, size: int) -> None:
        if size > len(self.raw) - self.at:
            raise CorruptArtefact(self.url, f"it ends at byte {len(self.raw):,}, inside of what it tells")
        self.at += size

    def text(self) -> str:
        end = self.raw.find(b"\0", self.at)
        if end < 0:
            raise CorruptArtefact(self.url, "a name in it has no end")
        found, self.at = self.raw[self.at : end], end + 1
        return found.decode("utf-8", "surrogateescape")


def _lenses_bin(url: str) -> Iterator[tuple[int, Lens]]:
    file = _Bytes(url)
    for _ in range(file.take("<Q")[0]):
        key, model, wide, high = file.take("<iiQQ")
        name, count, _ = _MODELS.get(model, (str(model), 0, ()))
        yield key, _lens(name, wide, high, file.take(f"<{count}d"), url)


def _images_bin(url: str) -> Iterator[tuple[str, tuple[float, ...], tuple[float, ...], int]]:
    file = _Bytes(url)
    for _ in range(file.take("<Q")[0]):
        _, *pose, lens = file.take("<i7di")
        name = file.text()
        file.skip(24 * file.take("<Q")[0])  # where in it the points were seen
        yield name, tuple(pose[:4]), tuple(pose[4:]), lens


def _points_bin(url: str) -> Points:
    file = _Bytes(url)
    (count,) = file.take("<Q")
    if count > len(file.raw) // 51:
        raise CorruptArtefact(url, f"{count:,} points in {len(file.raw):,} bytes")
    means, colours = np.empty((count, 3), np.float32), np.empty((count, 3), np.uint8)
    for i in range(count):
        _, *mean, r, g, b, _, seen = file.take("<Q3d3BdQ")
        means[i], colours[i] = mean, (r, g, b)
        file.skip(8 * seen)
    return Points(means, colours)


def _lines(url: str) -> list[str]:
    with open_reader(url) as file:
        text = file.read(0, file.size).decode("utf-8", "surrogateescape")
    return [line.strip() for line in text.splitlines() if not line.startswith("#")]


def _lenses_txt(url: str) -> Iterator[tuple[int, Lens]]:
    for line in filter(None, _lines(url)):
        try:
            key, model, wide, high, *numbers = line.split()
            lens = int(key), model, int(wide), int(high), tuple(map(float, numbers))
        except ValueError as fault:
            raise CorruptArtefact(url, f"a line {line[:60]!r} is no camera") from fault
        yield lens[0], _lens(*lens[1:], url)


def _images_txt(url: str) -> Iterator[tuple[str, tuple[float, ...], tuple[float, ...], int]]:
    lines = iter(_lines(url))
    for line in lines:
        if not line:
            continue
        try:
            _, *pose, lens, name = line.split(maxsplit=9)
            numbers, taken_by = tuple(map(float, pose)), int(lens)
        except ValueError as fault:
            raise CorruptArtefact(url, f"a line {line[:60]!r} is no image") from fault
        if len(numbers) != 7:
            raise CorruptArtefact(url, f"a line {line[:60]!r} is no image")
        next(lines, None)  # where in it the points were seen; this line may be empty
        yield name, numbers[:4], numbers[4:], taken_by


def _points_txt(url: str) -> Points:
    lines = [line for line in _lines(url) if line]
    means, colours = np.empty((len(lines), 3), np.float32), np.empty((len(lines), 3), np.uint8)
    for i, line in enumerate(lines):
        try:
            _, x, y, z, r, g, b, *_ = line.split(maxsplit=8)
            means[i], colours[i] = (float(x), float(y), float(z)), (int(r), int(g), int(b))
        except (ValueError, OverflowError) as fault:
            raise CorruptArtefact(url, f"a line {line[:60]!r} is no point") from fault
    return Points(means, colours)
