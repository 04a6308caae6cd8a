"""Compact spacetime Gaussians beside plain ones, with the same pictures, beginning, steps and most Gaussians.

    OMP_NUM_THREADS=1 python benchmarks/splats_spacetime.py [--parts stored,photographs,packed,masks,ladder,picture]
        [--count 2400] [--side 64] [--steps 1500]

There is no trained moving scene here, so `made_moving.moving_solids` is filmed: 12 cameras at 12 times to learn from,
24 pictures from between both to be judged on, always decoded from the file. stored and photographs: plain spacetime
Gaussians and `CompactMoving.fit` from places by lot, and a still scene (`Compact3DGS.fit`) that takes no notice of
time. packed: plain ones that began where the solids are; as numbers of fewer bits, with zstd, and
`CompactMoving.encode` of them. masks: what a Gaussian costs, against as many by lot and by significance. ladder: what
each mechanism adds, and ways in steps and as float16. Results are merged into results/splats_spacetime.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import keeper
from splats_film import MOST, START, Film, rough

from holdall.splats import Compact3DGS, compact_moving_work
from holdall.splats.compact3dgs_train import Plan, learnt
from holdall.splats.compact_moving_file import read, write
from holdall.splats.moving import WHITE, Moving
from holdall.splats.quality import psnr
from holdall.splats.raster import render
from holdall.splats.spacetime_train import CompactSpacetimeLearner

RESULTS = Path(__file__).parent / "results" / "splats_spacetime.json"


keep = keeper(RESULTS, 36)


def _row(film: Film, name: str, size: int, x: Moving, **more: Any) -> None:
    plain, seen = film.plain(True)[0], film.seen(x)
    lost = film.seen(plain)["psnr"] - seen["psnr"]
    keep(
        "photographs", name, {"bytes": size, "times": plain.nbytes / size, **seen, "below_plain": lost} | more
    )


def stored(film: Film) -> None:
    """Plain ones from places by lot, as numbers of fewer bits."""
    plain, took = film.plain(True)
    _row(film, "plain spacetime, float32", plain.nbytes, plain, cpu_s=took)
    for name, (size, back) in rough(plain).items():
        _row(film, name, size, back)


def photographs(film: Film) -> None:
    for price in (0.01, 0.02, 0.03, 0.04):
        begun = time.process_time()
        x, packed = film.recipe(lambda_mask=price).fit(film, start=START, most=MOST)  # type: ignore[arg-type]
        took = time.process_time() - begun
        _row(film, f"compact_moving, lambda {price}", packed.nbytes, x, cpu_s=took)
    still, packed = Compact3DGS(steps=film.steps).fit(film, start=START, most=MOST)  # type: ignore[arg-type]
    errors = [
        ((np.clip(render(still, s.camera, WHITE).colour, 0, 1) - s.picture) ** 2).mean() for s in film.held
    ]
    keep(
        "photographs",
        "compact3dgs, which takes it for still",
        {"bytes": packed.nbytes, "psnr": psnr(float(np.mean(errors)))},
    )


def packed(film: Film) -> None:
    plain, took = film.plain(False)
    best = film.seen(plain)["psnr"]
    keep("packed", "plain spacetime, float32", {"bytes": plain.nbytes, **film.seen(plain), "cpu_s": took})
    made = [(name, size, back, {}) for name, (size, back) in rough(plain).items()]
    for more in (
        {},
        {"lambda_mask": 0.02},
        {"lambda_mask": 0.02, "codes": 32},
        {"stages": 4, "later": 3, "codes": 256},
    ):
        done, back, took = film.packed(film.recipe(**more))
        told = ", ".join(f"{k} {v}" for k, v in more.items()) or "as it comes"
        made.append((f"compact_moving, {told}", done.nbytes, back, {"cpu_s": took, **done.notes["parts"]}))
    for name, size, back, notes in made:
        seen = film.seen(back)
        keep(
            "packed",
            name,
            {"bytes": size, "times": plain.nbytes / size, **seen, "below_plain": best - seen["psnr"]} | notes,
        )


def masks(film: Film) -> None:
    whole = film.packed(film.recipe(lambda_mask=0.0))[1]
    first = film.seen(whole)["psnr"]
    order = {
        "lot": np.random.default_rng(0).permutation(len(whole)),
        "significance": compact_moving_work._by_significance(whole, list(film.cameras)),
    }
    keep("masks", "lambda 0", film.seen(whole))
    for price in (0.01, 0.02, 0.04):
        done, back, _ = film.packed(film.recipe(lambda_mask=price))
        told = {
            "bytes": done.nbytes,
            "fewer": 1 - len(back) / len(whole),
            "lost": first - film.seen(back)["psnr"],
        }
        told |= {f"lost_{k}": first - film.seen(whole.take(v[: len(back)]))["psnr"] for k, v in order.items()}
        keep("masks", f"lambda {price}", told)


def _trained(film: Film, price: float, books: bool) -> CompactSpacetimeLearner:
    start, recipe = film.plain(False)[0], film.recipe()
    field = compact_moving_work._field(recipe, start, len(start))
    compact_moving_work._taught(field, start, film.steps, recipe.field_rate)
    learner = CompactSpacetimeLearner(start, field, lambda_mask=price, mask_rate=0.04, steps=film.steps)
    plan = Plan(film.steps, grow_until=0, grow_each=film.steps // 10)
    quantise = (lambda: learner.quantise((recipe.stages, recipe.later), recipe.codes)) if books else None
    learnt(learner, film.view, film.train, plan, quantise=quantise)
    return learner


def ladder(film: Film) -> None:
    """And, of the last, ways as float16 and in steps of several cells."""
    keep("ladder", "plain", film.seen(film.plain(False)[0]))
    keep("ladder", "field", film.seen(_trained(film, 0.0, False).moving()))
    keep("ladder", "field, masks", film.seen(_trained(film, 0.02, False).moving()))
    learner = _trained(film, 0.02, True)
    keep("ladder", "field, masks, books that learn", film.seen(learner.moving()))
    whole = compact_moving_work.compact(learner)
    for motion in (0.0, 1.0, 4.0, 16.0, 64.0):
        stream, parts = write(whole, 12, motion, 0.1)
        keep(
            "motion",
            f"{motion:g} cells" if motion else "float16",
            {"bytes": stream.size, "motion": parts["motion"], **film.seen(read(stream))},
        )


def picture(film: Film) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plain, _ = film.plain(False)
    done, back, _ = film.packed(film.recipe())
    figure, axes = plt.subplots(3, 4, figsize=(10, 7.8))
    for column, shot in zip(axes.T, sorted(film.held[::6], key=lambda s: s.time), strict=True):
        one, two = (np.clip(render(x.at(shot.time), shot.camera, WHITE).colour, 0, 1) for x in (plain, back))
        names = (
            f"t = {shot.time:.2f}",
            f"float32, {plain.nbytes / 1e3:.0f} kB",
            f"packed, {done.nbytes / 1e3:.0f} kB",
        )
        for axis, image, name in zip(column, (shot.picture, one, two), names, strict=True):
            axis.imshow(np.clip(image, 0, 1))
            axis.set_title(name, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=70)


PARTS = {
    "stored": stored,
    "photographs": photographs,
    "packed": packed,
    "masks": masks,
    "ladder": ladder,
    "picture": picture,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1500)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    film = Film(asked.count, asked.side, asked.steps)
    for part in asked.parts.split(","):
        PARTS[part](film)


if __name__ == "__main__":
    main()
