"""Photographs of a scene, decoded when they are asked for, with a bounded memory of the last ones."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import open_reader
from holdall.splats.formats.bounded import brief

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.camera import Camera

_PIXELS = 1 << 26  # of one photograph
_HEAD = 256 << 10  # bytes that tell the size of a picture, in nearly every file
_FORMS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # eight bits a channel


@dataclass(frozen=True, eq=False)
class Points:
    """Of a sparse model: means float32 [M, 3] in the world, colours uint8 [M, 3]."""

    means: NDArray[Any]
    colours: NDArray[Any]

    def __len__(self) -> int:
        return len(self.means)


class Photos:
    """Photographs with their cameras, in the order of their names; train and held_out are places in that order.

    image(i) is float32 [height, width, 3] from 0 to 1, over `background` where the picture is clear. Of what was
    decoded, at most `memory` bytes are kept; a photograph that is larger than that is decoded each time.
    """

    def __init__(
        self,
        folder: str,
        paths: Sequence[str],
        cameras: Sequence[Camera],
        held_out: Sequence[int],
        background: Sequence[float],
        memory: int,
        points: Points | None = None,
    ):
        self.names = tuple(p.removeprefix(f"{folder}/") for p in paths)
        self.cameras, self.points = tuple(cameras), points
        self.held_out = tuple(held_out)
        self.train = tuple(i for i in range(len(paths)) if i not in set(held_out))
        self.background = np.array(background, np.float32)
        if self.background.shape != (3,) or not ((self.background >= 0) & (self.background <= 1)).all():
            raise BadInput("background", list(background), "red, green and blue from 0 to 1")
        self._paths, self._memory, self._lock = tuple(paths), memory, threading.Lock()
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self.decoded = 0  # times that a photograph was decoded: what the memory saves

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kept_bytes(self) -> int:
        return sum(a.nbytes for a in self._kept.values())

    def image(self, i: int) -> NDArray[Any]:
        with self._lock:
            pixels = self._kept.pop(i, None)
            if pixels is None:
                pixels = self._decode(i)
            if pixels.nbytes <= self._memory:
                self._kept[i] = pixels
            while self.kept_bytes > self._memory:
                self._kept.popitem(last=False)
        return pixels.astype(np.float32) / np.float32(255)

    def _decode(self, i: int) -> NDArray[Any]:
        """uint8 [height, width, 3]."""
        from PIL import Image

        path, camera = self._paths[i], self.cameras[i]
        size_of(path)  # refuses what is too large before it is decoded
        with open_reader(path) as file:
            raw = file.read(0, file.size)
        try:
            with Image.open(io.BytesIO(raw), formats=_FORMS) as picture:
                clear = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
                pixels = np.asarray(picture.convert("RGBA" if clear else "RGB"))
        except (OSError, ValueError, SyntaxError, EOFError) as fault:
            raise CorruptArtefact(path, f"it is no whole picture ({brief(fault)})") from fault
        if pixels.shape[:2] != (camera.height, camera.width):
            told = f"{path} of {pixels.shape[1]} x {pixels.shape[0]}"
            raise BadInput("photograph", told, f"{camera.width} x {camera.height}, as its camera has")
        self.decoded += 1
        if not clear:
            return pixels
        share = pixels[:, :, 3:].astype(np.float32) / 255
        blended: NDArray[Any] = np.rint(share * pixels[:, :, :3] + (1 - share) * 255 * self.background)
        return blended.astype(np.uint8)


def size_of(path: str) -> tuple[int, int]:
    """Width and height of a picture, from its first bytes."""
    from PIL import Image

    with open_reader(path) as file:
        head = file.read(0, min(file.size, _HEAD))
        try:
            try:
                found, mode = _told(Image, head)
            except (OSError, SyntaxError):  # a long profile may stand before what is looked for
                found, mode = _told(Image, file.read(0, file.size))
        except Image.DecompressionBombError as fault:
            raise BadInput("photograph", f"{path} ({brief(fault)})", f"at most {_PIXELS:,} pixels") from fault
        except (OSError, ValueError, SyntaxError, EOFError) as fault:
            raise CorruptArtefact(path, f"it is no picture ({brief(fault)})") from fault
    if found[0] * found[1] > _PIXELS:
        raise BadInput("photograph", f"{path} of {found[0]} x {found[1]}", f"at most {_PIXELS:,} pixels")
    if mode not in _MODES:
        raise BadInput(
            "photograph", f"{path} with pixels of sort {mode}", "eight bits a channel: RGB, RGBA or grey"
        )
    return found


def _told(image: Any, head: bytes) -> tuple[tuple[int, int], str]:
    with image.open(io.BytesIO(head), formats=_FORMS) as picture:
        return picture.size, picture.mode
