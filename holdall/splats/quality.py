"""How the room measures: pictures of what was decoded beside pictures of the original, from where no method looked."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from holdall.files import open_stream
from holdall.kinds import Spend
from holdall.report import Report, provenance
from holdall.splats.camera import Camera, around
from holdall.splats.made import solids
from holdall.splats.scene import NAMES, Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FLOORS: tuple[str, ...] = ("splats.none", "splats.random", "splats.opacity")
UNITS = {
    "psnr": "dB",
    "object_psnr": "dB",
    "pack_seconds": "s",
    "unpack_seconds": "s",
    "bytes_per_gaussian": "B",
}
WHITE = (1.0, 1.0, 1.0)
APART = 0.5  # of the golden angle: where views are held out, between those that methods may look from
_SEEN = 0.1  # of opacity: what counts as a pixel of the object
_BEST = 120.0  # dB, of equal pictures


def specimens() -> dict[str, Scene]:
    """Small scenes of every awkward kind."""
    rng = np.random.default_rng(3)
    few = solids(63, degree=3)
    alike = few.take(np.zeros(40, int))
    far = solids(80, degree=0)
    means = far.means.copy()
    means[::9] += rng.normal(0, 1e4, (9, 3)).astype(np.float32)
    edge = solids(63, degree=1)
    return {
        "odd63": few,
        "one": solids(8, degree=0).take([3]),
        "three": solids(9, degree=1).take([0, 4, 5]),
        "constant": alike,
        "far": Scene(means, far.scales, far.quats, far.opacities, far.sh),
        "edges": Scene(edge.means, edge.scales * 4, edge.quats * 1e-3, edge.opacities * 9, edge.sh * 20),
    }


@cache
def _real() -> Scene:
    return solids(1500, degree=2)


def real() -> Scene:
    """A scene made by rule: no trained one may be part of the package."""
    return _real().take(slice(None))


def held_out(x: Scene, count: int = 3, width: int = 64, height: int = 48) -> list[Camera]:
    """Views around a scene that no method packs by."""
    return around(x, count, width=width, height=height, turn=APART)


def pictures(x: Scene, cameras: Sequence[Camera]) -> list[Any]:
    from holdall.splats.raster import render

    return [render(x, camera, WHITE) for camera in cameras]


def loss(x: Scene, y: Scene) -> float:
    """Mean squared error over the pixels of either scene's objects, in small held-out views."""
    cameras = held_out(x)
    total, seen = 0.0, 0
    for a, b in zip(pictures(x, cameras), pictures(y, cameras), strict=True):
        mask = np.maximum(a.alpha, b.alpha) > _SEEN
        total += (
            float(((np.clip(a.colour, 0, 1) - np.clip(b.colour, 0, 1))[mask].astype(np.float64) ** 2).sum())
            / 3
        )
        seen += int(mask.sum())
    return total / seen if seen else 0.0


def psnr(error: float) -> float:
    """Of a mean squared error of colours in 0 to 1."""
    return float(min(_BEST, -10 * np.log10(error))) if error > 0 else _BEST


def object_psnr(truth: Sequence[Any], shown: Sequence[Any]) -> float:
    """Of the pixels where the true scene is, in pictures of the same views."""
    error, seen = 0.0, 0
    for a, b in zip(truth, shown, strict=True):
        mask = a.alpha > _SEEN
        error += float(((_cut(a) - _cut(b))[mask] ** 2).sum()) / 3
        seen += int(mask.sum())
    return psnr(error / max(1, seen))


def likeness(truth: Sequence[Any], shown: Sequence[Any]) -> dict[str, float]:
    """psnr of all pixels, object_psnr of those where the true scene is, ssim; of pictures of the same views."""
    pairs = [(_cut(a), _cut(b)) for a, b in zip(truth, shown, strict=True)]
    return {
        "psnr": psnr(float(np.mean([((a - b) ** 2).mean() for a, b in pairs]))),
        "object_psnr": object_psnr(truth, shown),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
    }


def _cut(picture: Any) -> NDArray[Any]:
    """Its colours as a screen shows them."""
    found: NDArray[Any] = np.clip(picture.colour, 0, 1).astype(np.float64)
    return found


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Structural similarity of pictures [H, W, 3] in 0 to 1, windows of 11 (Wang et al. 2004)."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def smooth(x: NDArray[Any]) -> NDArray[Any]:
        for axis in (0, 1):
            wide = np.pad(x, [(5, 5) if i == axis else (0, 0) for i in range(3)], mode="symmetric")
            x = sum(t * np.take(wide, range(i, i + x.shape[axis]), axis) for i, t in enumerate(taps))
        return x

    ma, mb = smooth(a), smooth(b)
    va, vb, both = smooth(a * a) - ma * ma, smooth(b * b) - mb * mb, smooth(a * b) - ma * mb
    c, d = 0.01**2, 0.03**2
    return float((((2 * ma * mb + c) * (2 * both + d)) / ((ma**2 + mb**2 + c) * (va + vb + d))).mean())


def same(x: Scene, y: Scene) -> bool:
    """Equal to the bit, in the same order."""
    return all(a.tobytes() == getattr(y, name).tobytes() for name, a in x.arrays().items())


def original_bytes(x: Scene) -> int:
    return x.nbytes


def fingerprint(x: Scene) -> bytes:
    total = xxhash.xxh3_128()
    for name in NAMES:
        array = getattr(x, name)
        total.update(f"{name} {array.shape}".encode() + array.tobytes())
    return total.digest()


def measure(
    method: Any, budget: Spend = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Report:
    """Pack, decode from the file's bytes and draw: bytes, PSNR, SSIM on held-out views, seconds.

    on (or model): a file of a scene; by default one made by rule. quick: fewer and smaller views.
    """
    from holdall.packed import Packed

    where = on or model
    x = type(method).read_input(where) if where else solids(6000, degree=2)
    if where:
        with open_stream(where):  # so that a mistake in the name is told as one
            pass
    cameras = held_out(x, 4, 240, 180) if quick else held_out(x, 8, 480, 360)
    start = time.process_time()
    raw = method.encode(x, budget).to_bytes()
    packed, start = time.process_time() - start, time.process_time()
    back = method.decode(Packed.from_bytes(raw))
    row = {"bytes": len(raw), "bytes_per_gaussian": len(raw) / len(x), "gaussians": len(back)}
    row |= {"pack_seconds": packed, "unpack_seconds": time.process_time() - start}
    row |= likeness(pictures(x, cameras), pictures(back, cameras))
    first = {"bytes": x.nbytes, "bytes_per_gaussian": x.nbytes / len(x), "gaussians": len(x)}
    told = provenance(method=method.to_dict(), budget=str(budget), on=where or "solids(6000, degree=2)")
    return Report(
        {"float32": first, method.full_name(): row}, baseline="float32", units=UNITS, provenance=told
    )
