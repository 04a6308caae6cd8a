"""Real scenes of ../shared/data/splats for the splats benchmarks, made float32 again.

Every one was published quantised, and its values lie on its codec's grid: another codec would meet that grid again
and look too good. So each value is moved evenly within its own quantiser cell, the same way for the same seed; the
result is the float32 reference of all figures. What is moved, and how far:

- biker (SPZ 4): places by half a step of 1/4096, logarithms of sizes 1/16, colours 1/255, opacities 1/255 (of the
  opacity, not of its logit), rotations by half a step of each of their three smallest parts.
- massa, st-peter, angel, playbot (SOG 2): places by half a 65,535th of their range in SOG's logarithmic space; sizes
  and colours between the middles to the neighbours in SOG's lists; opacities and rotations by half a step.
- playbot's view-dependent colour (degree 2) comes from a palette of few entries, which no dither can undo: each
  coefficient gets Gaussian noise of 0.3 of its own standard deviation. Its harmonics are noisier than a real scene's,
  so rates with harmonics are pessimistic.
- compressed PLY: half a step of the chunk's own grid (`dithered` takes such files; `scenes` has none).

    python benchmarks/splats_scenes.py        prints how far each was moved, and that its codes are still the same
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from holdall.files import open_reader
from holdall.splats.formats import chunked, ply, read, spz
from holdall.splats.formats.values import sigmoid, smallest_three, whole_four
from holdall.splats.scene import C0, Scene

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "splats"
FILES = {
    "playbot": "playbot/3_0", "biker": "biker.spz", "massa": "massa.sog", "st-peter": "st-peter.sog",
    "angel": "angel-kneeling.sog",
}  # fmt: skip
_PALETTE_NOISE = 0.3  # of a coefficient's own standard deviation
_EDGE = 1e-4  # of a cell is kept free at its ends, so that float32 does not round a value out of it


def scenes(*names: str, seed: int = 0) -> dict[str, Scene]:
    """The references by name; without names, all five."""
    return {name: dithered(SHARED / FILES[name], seed) for name in names or FILES}


def dithered(where: Path | str, seed: int = 0) -> Scene:
    """A file's scene with each value moved evenly within its cell."""
    scene, rng = read(str(where)), np.random.default_rng(seed)
    if str(where).endswith(".spz"):
        return _spz(scene, Path(where).read_bytes(), rng)
    if str(where).endswith(".ply"):
        return _chunked(scene, str(where), rng)
    return _sog(scene, _meta(Path(where)), rng)


def _spz(scene: Scene, raw: bytes, rng: np.random.Generator) -> Scene:
    assert raw[:4] == spz.MAGIC, "version 4 only"
    rest = (
        scene.sh[:, 1:]
        + _half(rng, scene.sh[:, 1:].shape)
        * np.where(np.arange(scene.sh.shape[1] - 1) < 3, 8, 16)[:, None]
        / 128
    )
    return Scene(
        scene.means + _half(rng, scene.means.shape) / (1 << raw[13]),
        scene.scales + _half(rng, scene.scales.shape) / 16,
        _turned(scene, np.sqrt(0.5) / 511, rng),
        _opacities(scene, rng),
        np.concatenate([scene.sh[:, :1] + _half(rng, scene.sh[:, :1].shape) / (255 * 0.15), rest], 1),
    )


def _sog(scene: Scene, meta: dict[str, Any], rng: np.random.Generator) -> Scene:
    step = (np.array(meta["means"]["maxs"]) - meta["means"]["mins"]) / 65535
    logs = np.sign(scene.means) * np.log1p(np.abs(scene.means.astype(np.float64)))
    logs += _half(rng, logs.shape) * step
    rest = scene.sh[:, 1:]
    return Scene(
        np.sign(logs) * np.expm1(np.abs(logs)),
        _between(scene.scales, meta["scales"]["codebook"], rng),
        _turned(scene, 2 / 255 * np.sqrt(0.5), rng),
        _opacities(scene, rng),
        np.concatenate([
            _between(scene.sh[:, :1], meta["sh0"]["codebook"], rng),
            rest + _PALETTE_NOISE * rest.std(0) * rng.standard_normal(rest.shape),
        ], 1),
    )  # fmt: skip


def _chunked(scene: Scene, url: str, rng: np.random.Generator) -> Scene:
    with open_reader(url) as file:
        chunk = ply.elements(file)["chunk"]
        spans = chunk.rows(file, 0, chunk.count)
    of = np.arange(len(scene)) // 256

    def steps(names: tuple[str, ...], tops: list[int]) -> np.ndarray:
        ends = ply.columns(spans, names)[of]
        return (ends[:, 3:] - ends[:, :3]) / tops

    rest = scene.sh[:, 1:]
    colours = steps(chunked._COLOURS, [255] * 3)[:, None] / C0
    return Scene(
        scene.means + _half(rng, scene.means.shape) * steps(chunked._PLACES, [2047, 1023, 2047]),
        scene.scales + _half(rng, scene.scales.shape) * steps(chunked._SCALES, [2047, 1023, 2047]),
        _turned(scene, np.sqrt(2) / 1023, rng),
        _opacities(scene, rng),
        np.concatenate(
            [
                scene.sh[:, :1] + _half(rng, scene.sh[:, :1].shape) * colours,
                rest + _half(rng, rest.shape) * 8 / 256,
            ],
            1,
        ),
    )


def _half(rng: np.random.Generator, shape: Any) -> np.ndarray:
    """Evenly from minus to plus half a step."""
    return rng.uniform(-0.5 + _EDGE, 0.5 - _EDGE, shape)


def _between(values: np.ndarray, codebook: list[float], rng: np.random.Generator) -> np.ndarray:
    """Each value anywhere between the middles to its neighbours in the list; the outer cells are symmetrical."""
    book = np.unique(np.array(codebook, np.float32)).astype(np.float64)
    edges = (book[1:] + book[:-1]) / 2
    edges = np.concatenate([[2 * book[0] - edges[0]], edges, [2 * book[-1] - edges[-1]]])
    at = np.searchsorted(book.astype(np.float32), values)
    share = 0.5 + _half(rng, values.shape)
    return edges[at] * (1 - share) + edges[at + 1] * share


def _opacities(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The end levels stand for half a cell: nothing is below 0 or above 1."""
    level = np.rint(255 * sigmoid(scene.opacities))
    low, high = np.maximum(level - 0.5, 0), np.minimum(level + 0.5, 255)
    share = 0.5 + _half(rng, level.shape)
    opacity = (low * (1 - share) + high * share) / 255
    return np.log(opacity / (1 - opacity))


def _turned(scene: Scene, step: float, rng: np.random.Generator) -> np.ndarray:
    three, which = smallest_three(scene.quats)
    return whole_four(three + _half(rng, three.shape) * step, which)


def _meta(where: Path) -> dict[str, Any]:
    raw = (where / "meta.json").read_bytes() if where.is_dir() else zipfile.ZipFile(where).read("meta.json")
    found: dict[str, Any] = json.loads(raw)
    return found


def main() -> None:
    print(
        f"{'scene':24s} {'Gaussians':>9s} degree  moved, rms: place    size     turn  opacity   colour harmonics"
    )
    for name, file in {**FILES, "biker.compressed": "biker.compressed.ply"}.items():
        grid, free = read(str(SHARED / file)), dithered(SHARED / file)
        one, two = (s.quats / np.linalg.norm(s.quats, axis=1, keepdims=True) for s in (grid, free))
        turn = np.degrees(2 * np.arccos(np.clip(np.abs((one.astype(float) * two).sum(1)), 0, 1)))
        pairs = [
            (grid.means, free.means), (grid.scales, free.scales), (0, turn),
            (sigmoid(grid.opacities), sigmoid(free.opacities)), (grid.sh[:, 0], free.sh[:, 0]),
            (grid.sh[:, 1:], free.sh[:, 1:]),
        ]  # fmt: skip
        moved = [
            float(np.sqrt(np.mean((np.asarray(a, float) - b) ** 2))) if np.size(b) else 0.0 for a, b in pairs
        ]
        print(
            f"{name:24s} {len(free):9,d} {free.degree:6d} {'':12s}" + " ".join(f"{m:8.5f}" for m in moved),
            flush=True,
        )
    grid, free = read(str(SHARED / FILES["biker"])), dithered(SHARED / FILES["biker"])
    same = [np.mean(np.frombuffer(a, np.uint8) == np.frombuffer(b, np.uint8)) if a else 1.0
            for a, b in zip(spz._streams(grid, 12), spz._streams(free, 12), strict=True)]  # fmt: skip
    parts = ("places", "opacities", "colours", "sizes", "rotations")
    print("biker's SPZ bytes after dithering, share that is the same: "
          + ", ".join(f"{p} {s:.4f}" for p, s in zip(parts, same, strict=False)))  # fmt: skip


if __name__ == "__main__":
    main()
