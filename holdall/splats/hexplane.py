"""A moving scene as still Gaussians and planes of features over place and time, which say how each is moved (Wu et al.
2024, 4D Gaussian splatting).

A Gaussian's place and the time are looked up in the six planes of pairs of x, y, z and t; what was found is multiplied,
scales are put beside each other, and small layers make of it what is added to the Gaussian's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.splats.moving import Moving, Shot, moment
from holdall.splats.scene import NAMES, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of axes x, y, z, t; the second one's rows
TIMED = tuple(i for i, pair in enumerate(PAIRS) if pair[1] == 3)
HEADS = ("means", "scales", "quats", "opacities", "sh")  # those that a scene has are added to its numbers
TRUNK = "trunk"


@dataclass(frozen=True, eq=False)
class HexScene(Moving):
    """still: the Gaussians that are moved. planes: by scale, six in the order of PAIRS, float32 [h, rows, columns].

    layers: float32, "trunk/0/w" [out, in] and "trunk/0/b" [out] and so on, and of each head of HEADS that there is;
    after each layer but the last of a head comes max(x, 0). frame [15]: middle, axes [3, 3] by rows, half lengths; what
    is beyond is seen as its edge is. clock: where the first and the last moment are along the planes, from -1 to 1.
    shots: pictures that it is for, as cameras are; they are not part of it.
    """

    still: Scene
    planes: tuple[tuple[NDArray[Any], ...], ...]
    layers: Mapping[str, NDArray[Any]]
    frame: NDArray[Any]
    clock: tuple[float, float] = (-1.0, 1.0)
    shots: tuple[Shot, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", self.still.cameras)
        object.__setattr__(self, "frame", np.asarray(self.frame, np.float32).reshape(15))
        planes = tuple(tuple(np.ascontiguousarray(p, np.float32) for p in six) for six in self.planes)
        object.__setattr__(self, "planes", planes)
        layers = {k: np.ascontiguousarray(v, np.float32) for k, v in self.layers.items()}
        object.__setattr__(self, "layers", layers)
        checked_planes(planes)
        checked_layers(layers, sum(six[0].shape[0] for six in planes), self.still.sh.shape[1])

    def __len__(self) -> int:
        return len(self.still)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        planes = {f"plane/{s}/{i}": p for s, six in enumerate(self.planes) for i, p in enumerate(six)}
        layers = {f"layer/{k}": v for k, v in self.layers.items()}
        return {**self.still.arrays(), **planes, **layers, "frame": self.frame}

    def take(self, which: Any) -> HexScene:
        return replace(self, still=self.still.take(which))

    def checked(self) -> HexScene:
        """Itself, or BadInput for what cannot be drawn."""
        self.still.checked("moving scene")
        for name, a in self.arrays().items():
            if not np.isfinite(a).all():
                raise BadInput("moving scene", f"NaN or infinity in {name}", "finite numbers")
        if not (np.abs(self.frame[12:]) > 0).all():
            raise BadInput("frame", self.frame[12:].tolist(), "half lengths other than 0")
        return self

    def placed(self, t: float) -> NDArray[Any]:
        """float32 [N, 4]: where the Gaussians are in the planes at time t, from -1 to 1."""
        f = self.frame
        place = (self.still.means - f[:3]) @ f[3:12].reshape(3, 3).T / f[12:]
        low, high = self.clock
        when = np.full((len(self), 1), low + (high - low) * moment(t), np.float32)
        return np.concatenate([place, when], 1)

    def features(self, t: float) -> NDArray[Any]:
        """float32 [N, h of all scales]."""
        at = self.placed(t)
        found = []
        for six in self.planes:
            product = np.ones((len(self), 1), np.float32)
            for (a, b), plane in zip(PAIRS, six, strict=True):
                product = product * looked_up(plane, at[:, a], at[:, b])
            found.append(product)
        return np.concatenate(found, 1)

    def at(self, t: float) -> Scene:
        hidden = _through(self.layers, TRUNK, self.features(t))
        moved = {}
        for name in NAMES:
            own = getattr(self.still, name)
            if f"{name}/0/w" in self.layers:
                more = _through(self.layers, name, np.maximum(hidden, 0))
                own = own + more.reshape(own.shape)
            moved[name] = own
        return replace(self.still, **moved)


def looked_up(plane: NDArray[Any], u: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    """[N, h] of a plane [h, rows, columns], between its points linearly; u along a row, v across rows, -1 to 1."""
    _, rows, columns = plane.shape
    x = np.clip((u + 1) / 2 * (columns - 1), 0, columns - 1)
    y = np.clip((v + 1) / 2 * (rows - 1), 0, rows - 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, low = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    p, q = (x - left).astype(np.float32), (y - top).astype(np.float32)
    high = plane[:, top, left] * (1 - p) + plane[:, top, right] * p
    deep = plane[:, low, left] * (1 - p) + plane[:, low, right] * p
    found: NDArray[Any] = (high * (1 - q) + deep * q).T
    return found


def depth(layers: Mapping[str, Any], name: str) -> int:
    """Layers of that part."""
    return sum(key.startswith(f"{name}/") and key.endswith("/w") for key in layers)


def _through(layers: Mapping[str, NDArray[Any]], name: str, x: NDArray[Any]) -> NDArray[Any]:
    for i in range(depth(layers, name)):
        x = np.maximum(x, 0) if i else x
        x = x @ layers[f"{name}/{i}/w"].T + layers[f"{name}/{i}/b"]
    return x


def checked_planes(planes: tuple[tuple[Any, ...], ...]) -> None:
    """BadInput where they do not belong together."""
    if not planes or any(len(six) != len(PAIRS) for six in planes):
        raise BadInput("planes", [len(six) for six in planes], "six of each scale, and a scale")
    for six in planes:
        if any(p.ndim != 3 or p.shape[0] != six[0].shape[0] or not p.size for p in six):
            raise BadInput("planes", [p.shape for p in six], "[h, rows, columns] of one h each")
        sides: dict[int, int] = {}
        for (a, b), p in zip(PAIRS, six, strict=True):
            if sides.setdefault(a, p.shape[2]) != p.shape[2] or sides.setdefault(b, p.shape[1]) != p.shape[1]:
                raise BadInput(
                    "planes", [p.shape for p in six], "the same points along an axis in all of a scale"
                )


def checked_layers(layers: Mapping[str, Any], width: int, count: int) -> None:
    """BadInput where one does not go on from the other. width: of features; count: of harmonics."""
    ends = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "sh": 3 * count}
    known = {f"{n}/{i}/{k}" for n in (TRUNK, *HEADS) for i in range(depth(layers, n)) for k in "wb"}
    if set(layers) != known or not depth(layers, TRUNK):
        raise BadInput("layers", sorted(set(layers) ^ known) or "no trunk", "weights and biases, trunk first")
    for name in (TRUNK, *HEADS):
        for i in range(depth(layers, name)):
            w, b = layers[f"{name}/{i}/w"], layers[f"{name}/{i}/b"]
            before = layers[f"{name}/{i - 1}/w"].shape[0] if i else _before(layers, name, width)
            if w.ndim != 2 or w.shape[1] != before or b.shape != w.shape[:1]:
                raise BadInput(f"layer {name}/{i}", f"{w.shape} and {b.shape}", f"[out, {before}] and [out]")
        if name in ends and depth(layers, name) and w.shape[0] != ends[name]:
            raise BadInput(f"layers {name}", w.shape[0], f"{ends[name]} numbers at the end")


def _before(layers: Mapping[str, Any], name: str, width: int) -> int:
    return width if name == TRUNK else int(layers[f"{TRUNK}/{depth(layers, TRUNK) - 1}/w"].shape[0])
