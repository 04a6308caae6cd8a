"""Pictures and films of scenes, drawn by Holdall's own rasteriser.

film(scene, turning(scene, 48, 640, 480), "turn.mp4")     # .mp4 needs the extra film; .webp and .gif do not
picture(scene, camera, "view.png")
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.files import atomic_write
from holdall.optional import need
from holdall.splats.camera import Camera, looking
from holdall.splats.page_opened import DEGREES, ball, places, upwards

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdall.splats.scene import Scene

Colour = tuple[float, float, float]
Told = Callable[[int, int], None]  # (pictures drawn, of all)

PICTURES, FILMS = (".png",), (".mp4", ".webp", ".gif")
_QUALITY = 85  # of WebP
_FACTOR = "18"  # x264's rate factor: what is lost is not what a codec of scenes is blamed for


def ending(url: str) -> str:
    """Of a name that can be written."""
    found = next((e for e in (*PICTURES, *FILMS) if url.lower().endswith(e)), None)
    if found is None:
        raise BadInput("output", url, f"a name that ends with {', '.join((*PICTURES, *FILMS))}")
    return found


def turning(scene: Scene, count: int, width: int, height: int, up: str | None = None) -> list[Camera]:
    """Cameras of one turn around a scene, as the page looks at it first."""
    above = upwards(scene, up)
    middle, _ = ball([scene])
    return [
        looking(place, middle, above, width=width, height=height, degrees=DEGREES, name=f"turn {i}")
        for i, place in enumerate(places(scene, count, above))
    ]


def sized(camera: Camera, width: int, height: int) -> Camera:
    """The same view in a picture of that size: all that was seen is seen, and more at two sides if shapes differ."""
    by = min(width / camera.width, height / camera.height)
    return Camera(
        camera.rotation, camera.translation, camera.fx * by, camera.fy * by,
        camera.cx * by + (width - camera.width * by) / 2, camera.cy * by + (height - camera.height * by) / 2,
        width, height, camera.name,
    )  # fmt: skip


def drawn(scene: Scene, camera: Camera, background: Colour = (0, 0, 0)) -> NDArray[Any]:
    """uint8 [height, width, 3]."""
    from holdall.splats.raster import render

    colour = render(scene, camera, background).colour
    return np.rint(255 * np.clip(colour, 0, 1)).astype(np.uint8)


def picture(scene: Scene, camera: Camera, to: str, background: Colour = (0, 0, 0)) -> None:
    """A PNG, whole or not at all."""
    image, raw = _images(), io.BytesIO()
    with atomic_write(to) as f:  # a name that cannot be written is told before the work
        image.fromarray(drawn(scene, camera, background)).save(raw, format="PNG", optimize=True)
        f.write(raw.getbuffer())
        f.publish()


def film(
    scene: Scene,
    cameras: Sequence[Camera],
    to: str,
    background: Colour = (0, 0, 0),
    rate: int = 24,
    told: Told = lambda now, all: None,
) -> None:
    """Through all cameras, whole or not at all: .mp4 (H.264), .webp or .gif, which go round for ever."""
    kind = ending(to)
    if kind not in FILMS:
        raise BadInput("output", to, f"a film: {', '.join(FILMS)}")
    ready(kind, cameras)

    def frames() -> Iterator[NDArray[Any]]:
        for i, camera in enumerate(cameras):
            yield drawn(scene, camera, background)
            told(i + 1, len(cameras))

    with atomic_write(to) as f:
        if kind == ".mp4":
            _mp4(frames(), cameras[0], str(f.unfinished), rate)
        else:
            _turning_image(frames(), kind, f, rate)
        f.publish()


def ready(kind: str, cameras: Sequence[Camera]) -> None:
    """BadInput or NeedsExtra before anything slow is done."""
    sizes = {(c.width, c.height) for c in cameras}
    if len(sizes) != 1:
        raise BadInput("views", f"{len(sizes)} sizes of pictures", "one size for a film: give --size 640x480")
    if kind == ".mp4":
        need("av", "film")
        width, height = next(iter(sizes))
        if width % 2 or height % 2:
            raise BadInput("size", f"{width}x{height}", "even sides for .mp4, such as 640x480")
    else:
        _images()


def _mp4(frames: Iterator[NDArray[Any]], camera: Camera, path: str, rate: int) -> None:
    av = need("av", "film")
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as box:
        stream = box.add_stream("libx264", rate=Fraction(rate), options={"crf": _FACTOR})
        stream.width, stream.height, stream.pix_fmt = camera.width, camera.height, "yuv420p"
        for pixels in frames:
            box.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        box.mux(stream.encode())


def _turning_image(frames: Iterator[NDArray[Any]], kind: str, f: atomic_write, rate: int) -> None:
    image = _images()
    first, *rest = [image.fromarray(pixels) for pixels in frames]
    raw, lasts = io.BytesIO(), max(1, round(1000 / rate))
    more: dict[str, Any] = {"quality": _QUALITY, "method": 2} if kind == ".webp" else {"disposal": 1}
    first.save(
        raw, format=kind[1:].upper(), save_all=True, append_images=rest, duration=lasts, loop=0, **more
    )
    f.write(raw.getbuffer())


def _images() -> Any:
    return need("PIL.Image", "splats")
