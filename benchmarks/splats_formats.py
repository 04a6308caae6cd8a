"""What each file format of scenes costs and loses, on real scenes; and whether other people's tools agree with ours.

    OMP_NUM_THREADS=1 python benchmarks/splats_formats.py [--parts agree,loss,seen,damaged,peer]
        [--scenes playbot,biker] [--peer PATH of splat-transform] [--mutations 2000]

agree: the same scene, published in two files, read from both. loss: bytes, CPU seconds, memory while reading, and the
root of the mean squared error of what comes back from each format (references: splats_scenes). seen: PSNR of pictures
of what comes back. damaged: mutated files of each format, each a scene or one line. peer: scenes written here and read
by PlayCanvas's splat-transform, and the other way. Results are merged into results/splats_formats.json.
"""

from __future__ import annotations

import argparse
import lzma
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keeper
from splats_scenes import FILES, SHARED, scenes

from holdall.errors import BadInput, CorruptArtefact
from holdall.splats.formats import chunked, pictures, ply, read, splat, spz
from holdall.splats.formats.values import by_nearness, sigmoid
from holdall.splats.made import solids
from holdall.splats.scene import Scene

RESULTS = Path(__file__).parent / "results" / "splats_formats.json"
WAYS: dict[str, Callable[[Scene], Any]] = {
    "ply": ply.pieces, "compressed.ply": chunked.pieces, "splat": splat.pieces, "spz": spz.pieces,
    "spz version 4": lambda scene: spz.pieces(scene, 4), "sog": pictures.pieces,
}  # fmt: skip
SORTED = ("compressed.ply", "sog")  # which put neighbours beside each other


keep = keeper(RESULTS, 28)


def apart(a: Scene, b: Scene, how: str = "rms") -> dict[str, float]:
    """How far two scenes of one order are from each other: rms, the most, or the median."""
    one, two = (s.quats.astype(np.float64) / np.linalg.norm(s.quats, axis=1, keepdims=True) for s in (a, b))
    k = max(a.sh.shape[1], b.sh.shape[1])
    rest = [s.with_degree(int(k**0.5) - 1).sh[:, 1:].astype(np.float64) for s in (a, b)]
    gaps = {
        "place": a.means.astype(np.float64) - b.means,
        "size": a.scales.astype(np.float64) - b.scales,
        "turn_degrees": np.degrees(2 * np.arcsin(np.clip(np.sqrt(_half_sine(one, two)), 0, 1))),
        "opacity": sigmoid(a.opacities) - sigmoid(b.opacities),
        "colour": a.sh[:, 0].astype(np.float64) - b.sh[:, 0],
        "harmonics": rest[0] - rest[1],
    }
    told: Callable[[np.ndarray], float] = {
        "rms": lambda x: float(np.sqrt(np.mean(x**2))),
        "most": lambda x: float(np.abs(x).max()),
        "median": lambda x: float(np.median(np.abs(x))),
    }[how]
    return {name: told(gap) if gap.size else 0.0 for name, gap in gaps.items()}


def _half_sine(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Squared sine of half of the angle between rotations, exact for small ones."""
    near = np.minimum(((one - two) ** 2).sum(1), ((one + two) ** 2).sum(1))
    return near - near**2 / 4


def matches(a: Scene, b: Scene) -> np.ndarray:
    """The nearest Gaussian of b for each of a; several may share a place, so sizes and colours count a little."""
    from scipy.spatial import cKDTree

    one, two = (np.concatenate([s.means, s.scales / 100, s.sh[:, 0] / 100], 1) for s in (a, b))
    found: np.ndarray = cKDTree(two).query(one)[1]
    return found


def agree() -> None:
    """biker in SPZ and compressed PLY, massa and playbot in SOG and float32 PLY."""
    with tempfile.TemporaryDirectory() as folder:
        for first, second in (
            ("biker.spz", "biker.compressed.ply"), ("massa.sog", "massa.ply.xz"), ("playbot/3_0", "playbot_31k.ply.xz"),
        ):  # fmt: skip
            other = SHARED / second
            if second.endswith(".xz"):
                other = Path(folder) / "plain.ply"
                other.write_bytes(lzma.decompress((SHARED / second).read_bytes()))
            a, b = read(str(SHARED / first)), read(str(other))
            near = matches(a, b)
            row = {"gaussians": len(a), "matched": len(np.unique(near))} | apart(a, b.take(near))
            gap = np.abs(a.means - b.means[near]).max(1)
            keep(
                "agree", f"{first} and {second}", row | {"place_99.9_percent": float(np.quantile(gap, 0.999))}
            )


def loss(names: list[str]) -> None:
    for name, scene in scenes(*names).items():
        ordered = scene.take(by_nearness(scene.means))
        with tempfile.TemporaryDirectory() as folder:
            for way, pieces in WAYS.items():
                path = Path(folder) / f"scene.{way.split()[0]}"
                start = time.process_time()
                path.write_bytes(b"".join(pieces(scene)))
                wrote = time.process_time() - start
                start = time.process_time()
                back = read(str(path))
                took = time.process_time() - start
                tracemalloc.start()
                read(str(path))
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                size = path.stat().st_size
                row = {
                    "bytes": size, "bytes_per_gaussian": size / len(scene), "times_smaller": scene.nbytes / size,
                    "write_seconds": wrote, "read_seconds": took, "read_peak_of_scene": peak / back.nbytes,
                }  # fmt: skip
                keep("loss", f"{name} {way}", row | apart(ordered if way in SORTED else scene, back))


def seen(names: list[str]) -> None:
    """PSNR against the reference, over white, views that `holdall measure` holds out."""
    from holdall.splats.quality import held_out, likeness
    from holdall.splats.quality import pictures as drawn

    for name, scene in scenes(*names).items():
        views = held_out(scene, 4, 480, 360)
        truth = drawn(scene, views)
        with tempfile.TemporaryDirectory() as folder:
            for way, pieces in WAYS.items():
                path = Path(folder) / f"scene.{way.split()[0]}"
                path.write_bytes(b"".join(pieces(scene)))
                row = likeness(truth, drawn(read(str(path)), views))
                keep("seen", f"{name} {way}", row | {"bytes_per_gaussian": path.stat().st_size / len(scene)})


def damaged(count: int) -> None:
    """Any other fault than a line ends the run."""
    sys.path += [str(Path(__file__).parent.parent / "tests" / p) for p in ("", "splats")]
    from sog_files import sog_files, zipped
    from test_formats_damaged import mutations

    files = {way: b"".join(pieces(solids(300, degree=1))) for way, pieces in WAYS.items()}
    files |= {"sog version 1": zipped(sog_files(1)[0])}
    with tempfile.TemporaryDirectory() as folder:
        for way, raw in files.items():
            path, refused, tried = Path(folder) / f"scene.{way.split()[0]}", 0, 0
            tracemalloc.start()
            for new in mutations(raw, np.random.default_rng(7), count):
                path.write_bytes(new)
                tried += 1
                try:
                    read(str(path))
                except (BadInput, CorruptArtefact):
                    refused += 1
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            keep(
                "damaged",
                way,
                {"files": tried, "refused": refused, "drawn": tried - refused, "peak_bytes": peak},
            )


def peer(tool: str) -> None:
    """Most differences between what splat-transform and we read from the same file; and its bytes and CPU seconds."""
    told = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    version = (told.stdout + told.stderr).strip()
    scene = solids(3000, degree=3, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.ply"
        start.write_bytes(b"".join(ply.pieces(scene)))
        for way, pieces in WAYS.items():
            path, back = Path(folder) / f"ours.{way.split()[0]}", Path(folder) / "back.ply"
            before = time.process_time()
            path.write_bytes(b"".join(pieces(scene)))
            ours = time.process_time() - before
            _run(tool, str(path), str(back))
            row = {"peer": version} | apart(read(str(path)), read(str(back)), how="most")
            keep("peer", f"ours, read by it: {way}", row)
            if way in ("ply", "splat", "spz"):
                continue
            theirs = Path(folder) / f"theirs.{way.split()[0]}"
            seconds = _run(tool, *(["-g", "cpu"] if way == "sog" else []), str(start), str(theirs))
            _run(tool, str(theirs), str(back))
            row = {"peer": version, "bytes": theirs.stat().st_size, "our_bytes": path.stat().st_size}
            row |= {"cpu_seconds": seconds, "our_cpu_seconds": ours}
            row |= apart(read(str(theirs)), read(str(back)), how="most")
            keep("peer", f"its own, read by us: {way}", row)
        _of_a_real_scene(tool, version, Path(folder))


def _of_a_real_scene(tool: str, version: str, folder: Path) -> None:
    """massa in the two formats for which both choose grids by themselves."""
    real, start = scenes("massa")["massa"], folder / "massa.ply"
    start.write_bytes(b"".join(ply.pieces(real)))
    for way in SORTED:
        theirs, ours = folder / f"its.{way}", folder / f"ours.{way}"
        seconds = [_run(tool, *(["-g", "cpu"] if way == "sog" else []), str(start), str(theirs))]
        before = time.process_time()
        ours.write_bytes(b"".join(WAYS[way](real)))
        seconds.append(time.process_time() - before)
        for whose, path, took in zip(("its", "ours"), (theirs, ours), seconds, strict=True):
            back = read(str(path))
            row = {"peer": version, "bytes": path.stat().st_size, "cpu_seconds": took}
            found = apart(real, back.take(matches(real, back)), how="median")  # one in 800 is matched wrongly
            keep("peer", f"massa, {whose}: {way}", row | found)


def _run(tool: str, *words: str) -> float:
    """CPU seconds."""
    before = os.times()
    subprocess.run([tool, "-w", *words], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--parts", default="agree,loss,damaged")
    asked.add_argument("--scenes", default=",".join(FILES))
    asked.add_argument("--peer")
    asked.add_argument("--mutations", type=int, default=2000)
    told = asked.parse_args()
    names = told.scenes.split(",")
    ways: dict[str, Callable[[], None]] = {
        "agree": agree, "loss": lambda: loss(names), "seen": lambda: seen(names),
        "damaged": lambda: damaged(told.mutations), "peer": lambda: peer(told.peer or "splat-transform"),
    }  # fmt: skip
    for part in told.parts.split(","):
        ways[part]()


if __name__ == "__main__":
    main()
