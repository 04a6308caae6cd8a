"""How moving scenes are measured: pictures of what was decoded beside pictures of the original, at times and places."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from holdall.kinds import Spend
from holdall.report import Report, provenance
from holdall.splats import quality
from holdall.splats.camera import Camera
from holdall.splats.hexplane import HEADS, PAIRS, TRUNK, HexScene
from holdall.splats.made import solids
from holdall.splats.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOORS: tuple[str, ...] = ("splats.moving_random",)
UNITS = {**quality.UNITS, "psnr": "dB"}
TIMES = (0.0, 0.4, 1.0)
_SIDES = ((24, 24, 24, 12), (48, 48, 48, 12))


def waving(
    still: Scene,
    features: int = 3,
    sides: Sequence[tuple[int, int, int, int]] = ((6, 6, 6, 4), (9, 9, 9, 4)),
    heads: Sequence[str] = HEADS[:4],
    size: float = 0.15,
    seed: int = 0,
) -> HexScene:
    """Gaussians that wave: planes are slow waves and a little noise, layers are by lot. sides: points along x, y, z, t
    of each scale."""
    rng = np.random.default_rng(seed)
    planes = []
    for points in sides:
        six = []
        for a, b in PAIRS:
            v, u = np.meshgrid(np.linspace(0, 1, points[b]), np.linspace(0, 1, points[a]), indexing="ij")
            slow = np.sin(rng.uniform(1, 7, (features, 1, 1)) * u + rng.uniform(1, 5, (features, 1, 1)) * v)
            six.append(1 + 0.4 * slow + 0.02 * rng.standard_normal((features, points[b], points[a])))
        planes.append(tuple(six))
    width, layers = 8, {}
    ends = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "sh": 3 * still.sh.shape[1]}
    for name, out, before in ((TRUNK, width, features * len(sides)), *((h, ends[h], width) for h in heads)):
        layers[f"{name}/0/w"] = rng.standard_normal((out, before)) * (0.5 if name == TRUNK else size / 3)
        layers[f"{name}/0/b"] = np.zeros(out)
    low, high = still.means.min(0), still.means.max(0)
    half = np.maximum((high - low) / 2, 1e-3)
    frame = np.concatenate([(low + high) / 2, np.eye(3).reshape(-1), half])
    return HexScene(still, tuple(planes), layers, frame)


def specimens() -> dict[str, HexScene]:
    """Small moving scenes of every awkward kind."""
    odd, few = solids(63, degree=3), solids(40, degree=1)
    tiny = ((3, 1, 2, 1),)
    return {
        "odd63": waving(odd, 3, ((7, 5, 9, 3), (11, 5, 13, 3)), HEADS),
        "one": waving(few.take([3]), 1, tiny, HEADS[:1]),
        "three": waving(few.take([0, 4, 5]).with_degree(0), 2, ((3, 4, 5, 2),), ()),
        "constant": waving(few.take(np.zeros(20, int)), 2, ((4, 4, 4, 4),), size=0.0),
        "edges": waving(
            Scene(few.means, few.scales * 4, few.quats * 1e-3, few.opacities * 9, few.sh * 20),
            2,
            tiny,
            HEADS[:1],
        ),
    }


@cache
def _real() -> HexScene:
    return waving(solids(120, degree=1))


def real() -> HexScene:
    return _real().take(slice(None))


def _cameras(x: HexScene, count: int, width: int, height: int) -> list[Camera]:
    return quality.held_out(x.at(0.5), count, width, height)


def loss(x: HexScene, y: HexScene) -> float:
    """Mean squared error over the pixels of either scene's objects, at a few times, from where no method looked."""
    return float(np.mean([quality.loss(x.at(t), y.at(t)) for t in TIMES]))


def same(x: HexScene, y: HexScene) -> bool:
    """Equal to the bit, in the same order."""
    mine, other = x.arrays(), y.arrays()
    return mine.keys() == other.keys() and all(a.tobytes() == other[k].tobytes() for k, a in mine.items())


def original_bytes(x: HexScene) -> int:
    return x.nbytes


def fingerprint(x: HexScene) -> bytes:
    total = xxhash.xxh3_128()
    for name, array in x.arrays().items():
        total.update(f"{name} {array.shape}".encode() + array.tobytes())
    return total.digest()


def measure(
    method: Any, budget: Spend = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Report:
    """Pack, decode from the file's bytes and draw: bytes, PSNR, SSIM on held-out views and times, seconds.

    on (or model): a folder of 4DGaussians; by default a scene made by rule. quick: fewer and smaller views.
    """
    from holdall.packed import Packed

    where = on or model
    x = type(method).read_input(where) if where else waving(solids(1500, degree=1), 8, _SIDES)
    cameras = _cameras(x, 2, 120, 90) if quick else _cameras(x, 4, 240, 180)
    start = time.process_time()
    raw = method.encode(x, budget).to_bytes()
    packed, start = time.process_time() - start, time.process_time()
    back = method.decode(Packed.from_bytes(raw))
    row = {"bytes": len(raw), "bytes_per_gaussian": len(raw) / len(x), "gaussians": len(back)}
    row |= {"pack_seconds": packed, "unpack_seconds": time.process_time() - start}
    truth, shown = ([p for t in TIMES for p in quality.pictures(scene.at(t), cameras)] for scene in (x, back))
    row |= quality.likeness(truth, shown)
    first = {"bytes": x.nbytes, "bytes_per_gaussian": x.nbytes / len(x), "gaussians": len(x)}
    told = provenance(method=method.to_dict(), budget=str(budget), on=where or "waving(solids(1500))")
    return Report(
        {"float32": first, method.full_name(): row}, baseline="float32", units=UNITS, provenance=told
    )
