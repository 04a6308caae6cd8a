"""How fast and how right the rasteriser is, on real scenes at 640 x 480 from a sphere around them.

    OMP_NUM_THREADS=1 python benchmarks/splats_raster.py [--parts forward,backward,truth,cores,limit,first] [--rounds 9]

forward: CPU time of one core (the best of the rounds), of the whole picture and of blending alone, and by it:
`computed`, pairs of a pixel and a Gaussian whose exponent was computed; `useful`, those of them that changed a pixel;
`tiles`, 256 for every Gaussian laid into a tile. backward: the way back, and significance, by turns with the way there.
truth: the largest distance from blending in float64. cores: CPU time on one thread and on two by turns; what the
first thread takes of it alone is serial, the rest is halved: `faster_reckoned`; and wall time, where a loop without
memory gets two cores meanwhile. limit: the same vector operations out of registers. first: seconds of the first picture
in a new process, without and with numba's cache. Results are merged into results/splats_raster.json.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import keeper
from numba import njit

from holdall.splats import naive_raster
from holdall.splats.camera import NEAR, Camera, around
from holdall.splats.formats import read
from holdall.splats.raster import render
from holdall.splats.raster_flat import flat_of, over
from holdall.splats.raster_gradients import gradients
from holdall.splats.raster_lanes import fma, load, power_of_two, spread, store
from holdall.splats.scene import NAMES, Scene
from holdall.splats.significance import contributions

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "splats"
RESULTS = Path(__file__).parent / "results" / "splats_raster.json"
SCENES = ("massa", "playbot_31k")
WIDTH, HEIGHT = 640, 480
QUIET = 1.6  # times faster on two cores must a loop without memory be, before and after, for a round to count
ENOUGH = 3  # such rounds
OPERATIONS = 30  # of vectors, for one line of a tile: counted in the machine code, loads and stores aside


keep = keeper(RESULTS, 14)


def scene_of(name: str) -> Scene:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / f"{name}.ply"
        where.write_bytes(lzma.decompress((SHARED / f"{name}.ply.xz").read_bytes()))
        return read(str(where))


def by_turns(rounds: int, clock: Callable[[], float], *jobs: Callable[[], Any]) -> list[float]:
    """The best time of each, measured one after the other in every round."""
    best = [math.inf] * len(jobs)
    for _ in range(rounds):
        for i, job in enumerate(jobs):
            start = clock()
            job()
            best[i] = min(best[i], clock() - start)
    return best


def forward(name: str, scene: Scene, cameras: list[Camera], rounds: int) -> None:
    seen, flat, whole = np.zeros(3), 0.0, 0.0
    for camera in cameras:
        drawn = render(scene, camera, threads=1)
        one = by_turns(
            rounds, time.process_time, lambda c=camera: flat_of(scene, c, 1),
            lambda c=camera: render(scene, c, threads=1),
        )  # fmt: skip
        flat, whole = flat + one[0], whole + one[1]
        seen += [drawn.counts[0], contributions(scene, [camera])[:, 1].sum(), 256 * drawn.counts[1]]
    each = zip(("computed", "useful", "tiles"), seen, strict=True)
    rates = {f"{k}_a_second": float(v / (whole - flat)) for k, v in each}
    rates |= {"computed_a_second_all": float(seen[0] / whole)}
    rates |= {"ms": 1e3 * whole / len(cameras), "ms_blending": 1e3 * (whole - flat) / len(cameras)}
    keep("forward", name, {"gaussians": len(scene), **rates, "computed": float(seen[0] / len(cameras))})


def backward(name: str, scene: Scene, cameras: list[Camera], rounds: int) -> None:
    draw = np.random.default_rng(0)
    by_colour = draw.standard_normal((HEIGHT, WIDTH, 3)).astype(np.float32)
    by_alpha = draw.standard_normal((HEIGHT, WIDTH)).astype(np.float32)
    total = np.zeros(3)
    for camera in cameras:
        drawn = render(scene, camera, keep=True, threads=1)
        total += by_turns(
            rounds, time.process_time, lambda c=camera: render(scene, c, threads=1),
            lambda c=camera, d=drawn: gradients(scene, c, d, by_colour, by_alpha, threads=1),
            lambda c=camera: contributions(scene, [c], threads=1),
        )  # fmt: skip
    ms = 1e3 * total / len(cameras)
    row = {
        "ms_forward": ms[0],
        "ms_backward": ms[1],
        "backward": ms[1] / ms[0],
        "significance": ms[2] / ms[0],
    }
    keep("backward", name, {k: float(v) for k, v in row.items()})


def truth(name: str, scene: Scene, cameras: list[Camera], rounds: int) -> None:
    worst, far, pixels = 0.0, 0, 0
    for camera in cameras:
        off = np.abs(render(scene, camera).colour - blended(scene, camera)).max(2)
        worst, far, pixels = max(worst, float(off.max())), far + int((off > 1 / 255).sum()), pixels + off.size
        middle = float(np.quantile(off, 0.999))
    row = {"largest": worst, "largest_in_255ths": worst * 255, "pixels_over_a_255th": far, "pixels": pixels}
    keep("truth", name, {**row, "of_999_in_1000": middle})


def blended(scene: Scene, camera: Camera) -> np.ndarray:
    """Black behind it; in float64, by a loop over pixels; projected by the slow truth."""
    columns = [torch.tensor(getattr(scene, n), dtype=torch.float64) for n in NAMES]
    place, cov, depth = naive_raster._projected(*columns[:3], camera)
    colour = naive_raster._colours(columns[0], columns[4], camera)
    opacity = torch.sigmoid(columns[3])
    order = torch.argsort(depth, stable=True)
    order = order[(depth[order] > NEAR) & (opacity[order] >= naive_raster._LEAST)]
    rows = [place, cov.reshape(-1, 4), opacity[:, None], colour]
    picture = np.zeros((camera.height, camera.width, 4))
    picture[:, :, 3] = 1
    limits = naive_raster._LEAST, naive_raster._MOST, naive_raster._DARK
    _blend64(torch.cat(rows, 1)[order].numpy(), picture, np.zeros(picture.shape[:2], np.bool_), limits)
    return picture[:, :, :3]


@njit
def _blend64(rows: Any, picture: Any, done: Any, limits: Any) -> None:
    height, width = done.shape
    for row in rows:
        x, y, a, b, c, opacity = row[0], row[1], row[2], row[3], row[5], row[6]
        colour = row[7:]
        far, det = np.sqrt(2 * np.log(255 * opacity)), a * c - b * b
        wide, high = far * np.sqrt(a) + 2, far * np.sqrt(c) + 2
        for v in range(max(0, int(y - high)), min(height, int(y + high) + 1)):
            for u in range(max(0, int(x - wide)), min(width, int(x + wide) + 1)):
                dx, dy = u + 0.5 - x, v + 0.5 - y
                alpha = min(
                    limits[1], opacity * np.exp(-(c * dx * dx - 2 * b * dx * dy + a * dy * dy) / (2 * det))
                )
                light = picture[v, u, 3]
                if done[v, u] or alpha < limits[0]:
                    continue
                if light * (1 - alpha) < limits[2]:
                    done[v, u] = True
                    continue
                for k in range(3):
                    picture[v, u, k] += alpha * light * colour[k]
                picture[v, u, 3] = light * (1 - alpha)


def cores(name: str, scene: Scene, cameras: list[Camera], rounds: int) -> None:
    _spin(10)
    jobs = [lambda n=n: [render(scene, c, threads=n) for c in cameras[:2]] for n in (1, 2)]
    spins = [lambda n=n: over(32, lambda i: _spin(100_000), n) for n in (1, 2)]
    one, two = by_turns(3 * rounds, time.process_time, *jobs)
    (serial,) = by_turns(3 * rounds, time.thread_time, jobs[1])
    row = {"cpu_ms_one": 500 * one, "cpu_ms_two": 500 * two, "serial_ms": 500 * serial}
    row |= {"faster_reckoned": one / (serial + (two - serial) / 2)}
    quiet, end = [], time.perf_counter() + 30
    while len(quiet) < rounds and time.perf_counter() < end:
        spun, times, again = (by_turns(1, time.perf_counter, *both) for both in (spins, jobs, spins))
        if min(spun[0] / spun[1], again[0] / again[1]) > QUIET:
            quiet.append((*times, *spun))
    if len(quiet) >= ENOUGH:
        wall = np.array(quiet).min(0)
        row |= {"faster_by_wall": wall[0] / wall[1], "loop_faster": wall[2] / wall[3]}
    keep("cores", name, {**row, "quiet_rounds": len(quiet), "load": os.getloadavg()[0]})


@njit(nogil=True)
def _spin(n: Any) -> Any:
    x = 1.0
    for _ in range(n):
        x = x * 1.0000001 + 1e-9
    return x


@njit
def _multiplied(a: Any, n: Any) -> None:
    """Eight at once, so that none waits for another."""
    m = spread(np.float32(0.999))
    x0 = x1 = x2 = x3 = x4 = x5 = x6 = x7 = load(a, 0)
    for _ in range(n):
        x0, x1, x2, x3 = fma(x0, m, m), fma(x1, m, m), fma(x2, m, m), fma(x3, m, m)
        x4, x5, x6, x7 = fma(x4, m, m), fma(x5, m, m), fma(x6, m, m), fma(x7, m, m)
    store(a, 0, x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7)


@njit
def _powers(a: Any, n: Any) -> None:
    x, down = load(a, 0), spread(np.float32(-1e-5))
    total = x
    for _ in range(n):
        x = x + down
        total = total + power_of_two(x) + power_of_two(x + np.float32(1))
    store(a, 0, total)


def limit(rounds: int) -> None:
    """Operations on 16 floats, and powers of two, a second, on one core."""
    a, n = np.ones(64, np.float32), 300_000
    _multiplied(a, 10), _powers(a, 10)
    many, powers = by_turns(rounds, time.process_time, lambda: _multiplied(a, n), lambda: _powers(a, n))
    vectors, exponents = 8 * n / many, 2 * 16 * n / powers
    most = 16 * vectors / OPERATIONS
    row = {
        "vector_operations_a_second": vectors,
        "powers_a_second": exponents,
        "pixels_a_second_at_most": most,
    }
    forwards = json.loads(RESULTS.read_text()).get("forward", {}) if RESULTS.exists() else {}
    keep(
        "limit",
        "one core",
        {**row, **{f"{k}_reaches": f["computed_a_second"] / most for k, f in forwards.items()}},
    )


def first() -> None:
    code = (
        "import time; from holdall.splats.made import solids; from holdall.splats.camera import around\n"
        "from holdall.splats.raster import render; s = solids(50); t = time.time(); render(s, around(s, 1)[0])\n"
        "print(time.time() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache}
        told = [
            float(
                subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
            )
            for _ in range(2)
        ]
    keep("first", "seconds", {"compiled": told[0], "cached": told[1]})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="forward,backward,truth,cores,limit,first")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    by_scene = [p for p in (forward, backward, truth, cores) if p.__name__ in parts]
    for name in SCENES if by_scene else ():
        scene = scene_of(name)
        cameras = around(scene, 4, width=WIDTH, height=HEIGHT)
        for part in by_scene:
            part(name, scene, cameras, asked.rounds)
    if "limit" in parts:
        limit(asked.rounds)
    if "first" in parts:
        first()


if __name__ == "__main__":
    main()
