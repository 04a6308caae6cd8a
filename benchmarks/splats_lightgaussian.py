"""splats.lightgaussian beside what packs scenes without training, at equal bytes; and what each of its stages gives.

    OMP_NUM_THREADS=1 python benchmarks/splats_lightgaussian.py
        [--parts lego,stages,pruning,distilling,books,speed,scenes,formats,picture] [--scenes massa,playbot,st-peter]
        [--budgets 1.5%,3%,6%] [--steps 0] [--side 100] [--training 1500] [--most 10000]

lego: a scene that is trained here on 90 photographs (plain 3D Gaussian splatting, degree 3; splats_lego), packed with
these photographs to recover by, and judged on the 10 that are held out; splats.coded at as many bytes. stages: bytes
and quality after each. pruning: 66 % by significance, its parts, opacity and lot, before and after recovery.
distilling: degree 3 cut and taught, with and without pseudo views. books: by significance, k-means of all, by lot, at
equal bytes of the file. speed: pictures before and after, by turns, CPU time. scenes: ../shared/data/splats (see
splats_scenes), without photographs, by 8 views at 480 x 360 that nothing was packed by. formats: SPZ and SOG of so many
of the most significant Gaussians as have as many bytes. All quality is of what decodes from the file. Results are
merged into results/splats_lightgaussian.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from splats_lightgaussian_stages import (
    RESULTS,
    Work,
    books,
    distilling,
    keep,
    pruning,
    raw_bytes,
    stages,
    timed,
)
from splats_scenes import scenes

from holdall.splats import Coded, LightGaussian
from holdall.splats.formats import pictures as sog
from holdall.splats.formats import read, spz
from holdall.splats.formats.values import by_nearness
from holdall.splats.quality import held_out, likeness, pictures
from holdall.splats.raster import render, significance
from holdall.splats.scene import Scene

WHITE = (1.0, 1.0, 1.0)


def lego(work: Work) -> None:
    scene, raw = work.scene, raw_bytes(work.scene)
    first = work.lego.seen(scene)
    keep("lego", "float32 PLY", {"bytes": raw, "gaussians": len(scene), **first})
    for budget in (None, *work.asked.budgets.split(",")):
        made, back, took = timed(work.recipe, scene, budget, photos=work.lego)
        for name, packed, shown, seconds in (
            ("lightgaussian", made, back, took), ("coded", *timed(Coded(width=100), scene, made.nbytes)),
        ):  # fmt: skip
            seen = work.lego.seen(shown)
            told = {"bytes": packed.nbytes, "times": raw / packed.nbytes, "gaussians": len(shown), **seen}
            told |= {"lost": first["psnr"] - seen["psnr"], "cpu_s": seconds}
            keep("lego", f"{budget or 'no budget'}: {name}", told)


def speed(work: Work) -> None:
    """CPU time of pictures of 480 x 360, by turns."""
    for name in ("lego", *work.asked.scenes.split(",")):
        scene = work.scene if name == "lego" else scenes(name)[name]
        photos = work.lego if name == "lego" else None
        recipe = LightGaussian(steps=2)
        back = {"before": scene}
        for budget in (None, "3%"):
            back[budget or "no budget"] = timed(recipe, scene, budget, photos=photos)[1]
        cameras = held_out(scene, 4, 480, 360)
        took: dict[str, list[float]] = {k: [] for k in back}
        for _ in range(3):
            for camera in cameras:
                for k, x in back.items():
                    start = time.process_time()
                    render(x, camera, WHITE, threads=1)
                    took[k].append(time.process_time() - start)
        keep("speed", name, {f"{k}_per_s": float(1 / np.median(v)) for k, v in took.items()})


def real(work: Work, parts: list[str]) -> None:
    for name in work.asked.scenes.split(","):
        scene = scenes(name)[name]
        cameras = held_out(scene, 8, 480, 360)
        truth = pictures(scene, cameras)
        for budget in work.asked.budgets.split(","):
            limit = Coded.allowed(scene, budget)
            assert limit is not None
            if "scenes" in parts:
                for codec in (work.recipe, Coded()):
                    made, back, took = timed(codec, scene, budget)
                    told = {
                        "bytes": made.nbytes,
                        "used": made.nbytes / limit,
                        "gaussians": len(back),
                        "cpu_s": took,
                    }
                    told |= likeness(truth, pictures(back, cameras))
                    keep("scenes", f"{name} {budget} {codec.name}", told | made.notes["parts"])
            if "formats" in parts:
                formats(name, budget, scene, limit, cameras, truth)


def formats(name: str, budget: str, scene: Scene, limit: int, cameras: Any, truth: Any) -> None:
    order = np.argsort(-significance(scene, held_out(scene, 12, 320, 240)), kind="stable")
    for ending in ("spz", "sog"):
        count = len(scene) // 2
        for _ in range(4):
            some = scene.take(np.sort(order[:count]))
            some = some.take(by_nearness(some.means))
            raw = b"".join(spz.pieces(some, 4) if ending == "spz" else sog.pieces(some))
            if 0.98 * limit <= len(raw) <= limit:
                break
            count = max(1, min(len(scene), int(count * 0.99 * limit / len(raw))))
        back = opened(raw, ending, some)
        told = {"bytes": len(raw), "used": len(raw) / limit, "gaussians": len(back)}
        keep("formats", f"{name} {budget} {ending}", told | likeness(truth, pictures(back, cameras)))


def opened(raw: bytes, ending: str, like: Scene) -> Scene:
    if ending == "spz":
        both = [spz.read(raw, "rival", axes) for axes in ("RUB", "RDF")]
        return min(both, key=lambda s: float(np.abs(s.means.mean(0) - like.means.mean(0)).sum()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rival.sog"
        path.write_bytes(raw)
        return read(str(path))


def picture(work: Work) -> None:
    """A row a scene: original, lightgaussian and coded at 1.5 %, and differences, four times."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lego = work.lego
    shots = [("lego, photograph", lego.truth[2].colour, lego.held[2], work.scene, lego)]
    name = work.asked.scenes.split(",")[0]
    scene = scenes(name)[name]
    camera = held_out(scene, 8, 480, 360)[3]
    shots.append((name, render(scene, camera, WHITE).colour, camera, scene, None))
    figure, axes = plt.subplots(2, 5, figsize=(15, 6.0))
    for line, (title, true, camera, scene, photos) in zip(axes, shots, strict=True):
        shown = [(f"{title}; scene {scene.nbytes / 1e6:.1f} MB", true)]
        made, back, _ = timed(work.recipe, scene, "1.5%", photos=photos)
        for label, x in (("lightgaussian", back), ("coded", timed(Coded(), scene, made.nbytes)[1])):
            seen = np.clip(render(x, camera, WHITE).colour, 0, 1)
            shown += [
                (f"{label}, {made.nbytes / 1e3:.0f} kB", seen),
                ("difference x 4", np.clip(4 * abs(seen - true), 0, 1)),
            ]
        for axis, (told, image) in zip(line, shown, strict=True):
            axis.imshow(np.clip(image, 0, 1))
            axis.set_title(told, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=70)


PARTS = {"lego": lego, "stages": stages, "pruning": pruning, "distilling": distilling, "books": books, "speed": speed,
         "picture": picture}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=f"{','.join(PARTS)},scenes,formats")
    parser.add_argument("--scenes", default="massa,playbot,st-peter")
    parser.add_argument("--budgets", default="1.5%,3%,6%")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--side", type=int, default=100)
    parser.add_argument("--training", type=int, default=1500)
    parser.add_argument("--most", type=int, default=10_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work, wanted = Work(asked), asked.parts.split(",")
    for part in wanted:
        if part in PARTS:
            PARTS[part](work)
    if "scenes" in wanted or "formats" in wanted:
        real(work, wanted)


if __name__ == "__main__":
    main()
