"""Compact-3DGS beside plain training, with the same photographs, beginning, steps and most Gaussians.

    OMP_NUM_THREADS=1 python benchmarks/splats_compact3dgs.py [--parts rivals,unpacked,books,masks,scene,memory,picture]
        [--side 100] [--steps 1500] [--most 10000]

../shared/data/scenes/lego (100 photographs of 200 x 200, averaged to --side; every tenth is held out). rivals: plain
3D Gaussian splatting with harmonics of degree 3 as float32 PLY, that PLY by splats.coded at as many bytes as ours has,
by .spz and by what pruning at random or by opacity leaves of it, and ours; then what each mechanism adds. masks: what a
Gaussian costs, against as many pruned at random, by opacity and by significance. books: six books of 64, one, and
numbers of 12 bits. unpacked: harmonics of each degree beside the field itself. scene: the plain scene packed from its
own pictures. memory: `holdall fit-scene` in processes of their own, peaks by the kernel. Quality is of the held-out
photographs, from what is decoded from the file. Results are merged into results/splats_compact3dgs.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import keeper
from splats_lego import LEGO, WHITE, Lego, columns

from holdall.splats import Coded, Compact3DGS, Opacity, Random
from holdall.splats.compact3dgs_turns import nearest_to_none
from holdall.splats.formats import ply, spz
from holdall.splats.quality import likeness, pictures
from holdall.splats.raster import render, significance
from holdall.splats.residual import Books
from holdall.splats.scene import Scene

RESULTS = Path(__file__).parent / "results" / "splats_compact3dgs.json"


keep = keeper(RESULTS, 36)


def rivals(lego: Lego) -> None:
    recipe = Compact3DGS()
    scene, took = lego.plain()
    raw = sum(len(piece) for piece in ply.pieces(scene))
    packed, back, ours = lego.stored(recipe)
    best = lego.seen(scene)["psnr"]

    def row(name: str, size: int, shown: Scene, **more: Any) -> None:
        seen = lego.seen(shown)
        told = {"bytes": size, "times": raw / size, "gaussians": len(shown), **seen}
        keep("rivals", name, told | {"below_plain": best - seen["psnr"]} | more)

    row("plain training, float32 PLY", raw, scene, cpu_s=took)
    row("compact3dgs", packed.nbytes, back.scene(recipe.degree), cpu_s=ours, **packed.notes["parts"])
    for codec, name in ((Coded(), "coded"), (Opacity(), "opacity"), (Random(), "random")):
        made = codec.encode(scene, packed.nbytes)
        row(f"{name} of the PLY, as many bytes", made.nbytes, codec.decode(made))
    small = b"".join(spz.pieces(scene, 4))
    axes = [spz.read(small, "rival", axes) for axes in ("RUB", "RDF")]
    row("spz of the PLY", len(small), max(axes, key=lambda s: lego.seen(s)["psnr"]))
    for name, learner in (
        ("field only (no mask, no books)", lego.compact(recipe.but(lambda_mask=0.0), books=False)[0]),
        ("field and mask", lego.compact(recipe, books=False)[0]),
    ):
        keep(
            "ladder",
            name,
            {"gaussians": len(learner), **lego.by_field(columns(learner.scene()), learner.field)},
        )
    keep("ladder", "field, mask, books, all as stored", {"gaussians": len(back), **lego.by_field(columns(back), back.field)})  # noqa: E501  # fmt: skip


def masks(lego: Lego) -> None:
    whole = lego.stored(Compact3DGS(lambda_mask=0.0))[1].scene()
    first = lego.seen(whole)["psnr"]
    views = [lego.cameras[i] for i in lego.train]
    lot = np.random.default_rng(0).random(len(whole))
    scores = {"lot": lot, "opacity": whole.opacities, "significance": significance(whole, views)}
    keep("masks", "lambda 0", {"gaussians": len(whole), "psnr": first})
    for price in (0.005, 0.01, 0.02):
        packed, back, _ = lego.stored(Compact3DGS(lambda_mask=price))
        told = {"gaussians": len(back), "fewer": 1 - len(back) / len(whole), "bytes": packed.nbytes}
        told["lost"] = first - lego.seen(back.scene())["psnr"]
        for name, score in scores.items():
            told[f"lost_{name}"] = first - lego.seen(whole.take(np.argsort(-score)[: len(back)]))["psnr"]
        keep("masks", f"lambda {price}", told)


def books(lego: Lego) -> None:
    """Of what was trained without books, which are then made once."""
    learner, _ = lego.compact(Compact3DGS(), books=False)
    x = learner.scene()
    scales, quats = nearest_to_none(x.scales, x.quats)
    size = np.exp(scales)

    def stepped(v: Any) -> Any:
        low, high = v.min(0), v.max(0)
        step = np.maximum(high - low, 1e-12) / 4095
        return (low + np.rint((v - low) / step) * step).astype(np.float32)

    def by(stages: int) -> list[Any]:
        return [made.decode(made.encode(v)) for v in (size, quats) for made in (Books.learnt(v, stages, 64),)]

    for name, bits, (one, two) in (
        ("float32", 224, [size, quats]), ("12 bits a number", 84, [stepped(size), stepped(quats)]),
        ("one book of 64", 12, by(1)), ("six books of 64", 72, by(6)),
    ):  # fmt: skip
        shown = x.means, np.log(np.maximum(one, size.min() / 2)), two, x.opacities
        errors = {
            "scale_mse": float(((one - size) ** 2).mean()),
            "turn_mse": float(((two - quats) ** 2).mean()),
        }
        keep("books", name, {"bits": bits, **errors, "psnr": lego.by_field(shown, learner.field)["psnr"]})


def unpacked(lego: Lego) -> None:
    _, back, _ = lego.stored(Compact3DGS())
    keep("unpacked", "the field itself", lego.by_field(columns(back), back.field))
    for degree in range(4):
        keep("unpacked", f"harmonics of degree {degree}", lego.seen(back.scene(degree)))


def scene(lego: Lego) -> None:
    """The plain scene, packed from its own pictures from the places of the photographs."""
    plain, _ = lego.plain()
    known = replace(plain, cameras=tuple(lego.cameras[i] for i in lego.train))
    truth = pictures(plain, lego.held)
    for codec in (Compact3DGS(steps=600, views=90, width=100), Coded(width=100)):
        for share in ("4%", "8%"):
            start = time.process_time()
            made = codec.encode(known, share)
            told = {"bytes": made.nbytes, "cpu_s": time.process_time() - start}
            back = codec.decode(made)
            told |= {"gaussians": len(back), "psnr": lego.seen(back)["psnr"]}
            told |= {"psnr_to_the_scene": likeness(truth, pictures(back, lego.held))["psnr"]}
            keep("scene", f"{codec.full_name()} {share}", told)


_CHILD = """
import sys
from holdall.cli import main
sys.argv = ["holdall", *sys.argv[1:]]
try:
    main()
finally:
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print("peak", int(line.split()[1]) * 1024, file=sys.stderr)
"""


def memory(lego: Lego) -> None:
    """Photographs of 200 x 200; the peak is of the whole process, its libraries among it."""
    for asked in ("500MB", "600MB", "800MB", "1GB", "2GB"):
        with tempfile.TemporaryDirectory() as folder:
            words = ["fit-scene", str(LEGO), "--memory", asked, "-o", f"{folder}/scene.hold", "--hold-back", "10",
                     "--steps", "200", "--start", "60000", "--json"]  # fmt: skip
            done = subprocess.run([sys.executable, "-c", _CHILD, *words], capture_output=True, text=True)
        told: dict[str, Any] = {"asked": asked}
        if done.returncode == 0:
            row = json.loads(done.stdout)
            told |= {k: row[k] for k in ("gaussians", "bytes", "psnr", "seconds")}
            told["peak"] = int(done.stderr.split("peak ")[1].split()[0])
        else:
            told["refused"] = done.stderr.splitlines()[0]
        keep("memory", asked, told)


def picture(lego: Lego) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plain, _ = lego.plain()
    packed, back, _ = lego.stored(Compact3DGS())
    size = sum(len(piece) for piece in ply.pieces(plain))
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4))
    for line, at in zip(axes, (2, 6), strict=True):
        true, camera = lego.truth[at].colour, lego.held[at]
        one, two = (np.clip(render(s, camera, WHITE).colour, 0, 1) for s in (plain, back.scene()))
        shown = (
            ("held-out photograph", true),
            (f"plain training, {size / 1e6:.2f} MB", one),
            (f"compact3dgs, {packed.nbytes / 1e6:.3f} MB", two),
            ("difference to the photograph x 4", np.clip(4 * abs(two - true), 0, 1)),
        )
        for axis, (title, image) in zip(line, shown, strict=True):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=70)


PARTS = {"rivals": rivals, "unpacked": unpacked, "books": books, "masks": masks, "scene": scene, "memory": memory,
         "picture": picture}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--side", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--most", type=int, default=10_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lego = Lego(asked.side, asked.steps, asked.most)
    for part in asked.parts.split(","):
        PARTS[part](lego)


if __name__ == "__main__":
    main()
