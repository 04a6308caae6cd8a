"""Scenes as commands are given them: any file that is read, or a `.hold`; and from where one looks at them first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UPS = {
    f"{sign}{axis}": tuple((-1.0 if sign else 1.0) * (axis == a) for a in "xyz")
    for sign in ("", "-")
    for axis in "xyz"
}
USUAL_UP = "-y"  # of scenes that come without cameras: training from COLMAP's poses leaves y pointing down
DEGREES = 50.0  # from top to bottom of a picture
_AWAY = 2.0  # radii of the box's ball, which the scene itself hardly ever fills
_ABOVE = 0.3  # of the direction, upwards


@dataclass(frozen=True)
class Opened:
    """A scene, and the file that it came from."""

    name: str
    bytes: int
    scene: Scene


def opened(url: str, time: float | None = None) -> Opened:
    """Of a `.hold` file what was packed, of others what they are; BadInput where that is no scene.

    time: of 0 to 1, of a packed scene that moves.
    """
    from holdall.places import size
    from holdall.splats.formats import read

    if time is not None and not url.endswith(".hold"):
        raise BadInput("time", time, f"none: {url} is no packed scene that moves")
    scene = _unpacked(url, time) if url.endswith(".hold") else read(url)
    name = url.rstrip("/").replace("\\", "/").rpartition("/")[2]
    return Opened(name or url, size(url), scene.checked(url))


def _unpacked(url: str, time: float | None) -> Scene:
    from holdall.packed import Packed
    from holdall.splats.moving import Moving
    from holdall.verbs import method_of

    packed = Packed.open(url)
    method = method_of(packed, url)
    if method.room != "splats":
        raise BadInput("scene", f"{url}, which holds something of the room {method.room}", "a packed scene")
    found = method.decode(packed)
    if isinstance(found, Moving) and time is not None:
        return found.at(time)
    if time is not None:
        raise BadInput("time", time, f"none: {url} stands still")
    if not isinstance(found, Scene):
        raise BadInput("scene", f"{url}, which holds {type(found).__name__}", "a scene that stands still")
    return found


def upwards(scene: Scene, up: str | None = None) -> NDArray[Any]:
    """float64 [3]: as asked ("y", "-z"), as the scene's cameras were held, or as it is with most scenes."""
    if up is not None:
        if up not in UPS:
            raise BadInput("--up", up, " or ".join(UPS))
        return np.array(UPS[up])
    held = -np.sum([c.rotation[1] for c in scene.cameras], axis=0) if scene.cameras else np.zeros(3)
    long = float(np.linalg.norm(held))
    return held / long if long > 0.1 * len(scene.cameras) else np.array(UPS[USUAL_UP])


def ball(scenes: Sequence[Scene]) -> tuple[NDArray[Any], float]:
    """(middle, radius) of what the first scene holds, without far strays."""
    low, high = (np.asarray(end, np.float64) for end in scenes[0].box())
    radius = float(np.linalg.norm(high - low)) / 2
    return (low + high) / 2, radius if radius > 0 else 1.0


def places(scene: Scene, count: int, up: NDArray[Any]) -> list[NDArray[Any]]:
    """Of cameras on one turn around a scene, from a little above, far enough to see all of it."""
    middle, radius = ball([scene])
    some = np.array([1.0, 0, 0]) if abs(up[0]) < 0.9 else np.array([0, 1.0, 0])
    side = np.cross(up, some) / np.linalg.norm(np.cross(up, some))
    front = np.cross(side, up)
    angles = 2 * np.pi * np.arange(count) / count
    flat = np.sqrt(1 - _ABOVE**2) * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * front)
    return list(middle + _AWAY * radius * (flat + _ABOVE * up))
