"""Light4GS on a moving scene made by rule, fitted from its pictures: what the card asks to be shown.

    OMP_NUM_THREADS=1 python benchmarks/splats_light4gs.py [--parts rate,packed,pruning,ladder,rest,speed,axes,prices]
        [--steps 1500] [--gaussians 2400] [--width 64]

12 cameras at 12 times of `splats.made_moving` (a floor at rest, a ring that turns, a ball that travels, one that
comes late); a HexScene (h 8, planes of 24 and 48 points, 12 times) is trained on these 144 pictures, and judged on 12
others from between the cameras and the times. rate: the scene trained on as long as Light4GS trains, without a price,
whole and pruned, as float16 and as numbers of few bits with zstd, and the factorised model. packed: Light4GS. `lost` is
against the whole scene trained as long. pruning: who goes, by what, and what training brings back. ladder: bytes of the
planes by contexts. rest: a scene in which nothing moves. speed: CPU time of moving and drawing, alternately. axes: how
much of planes is used, along main axes and the world's. prices: others. Results: results/splats_light4gs.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from keeping import keeper
from splats_light4gs_ways import LONGER, TIMES, Bench, Halted, in_bits, rebuilt

from holdall.packed import Packed
from holdall.splats.hexplane_learn import framed
from holdall.splats.light4gs import Light4GS
from holdall.splats.light4gs_file import read
from holdall.splats.light4gs_hex import PlaneModel
from holdall.splats.light4gs_learn import spatio_temporal
from holdall.splats.light4gs_planes import step_of
from holdall.splats.made_moving import held_out
from holdall.splats.moving import WHITE, Moving, likeness
from holdall.splats.raster import render
from holdall.splats.significance import significance

RESULTS = Path(__file__).parent / "results" / "splats_light4gs.json"
LADDER = ("intra", "inter", "coarse", "hyper")


keep = keeper(RESULTS, 40, 5)


def rate(b: Bench) -> None:
    longer = b.longer()
    first = b.seen(longer)

    def row(name: str, size: int, shown: Moving, **more: Any) -> None:
        psnr = b.seen(shown)
        keep("rate", name, {"bytes": size, "times": b.x.nbytes / size, "gaussians": len(shown), "psnr": psnr,
                            "lost": first - psnr} | more)  # fmt: skip

    row("float32, as fitted", b.x.nbytes, b.x)
    row("float32, trained as long", longer.nbytes, longer)
    halves = {k: a.astype(np.float16) for k, a in longer.arrays().items()}
    squeeze = zstandard.ZstdCompressor(level=19)
    size = sum(len(squeeze.compress(a.tobytes())) for a in halves.values())
    row(
        "A: float16, zstd, not pruned",
        size,
        rebuilt(longer, {k: a.astype(np.float32) for k, a in halves.items()}),
    )
    row("B: 8 bits, zstd, not pruned", *in_bits(longer, 8))
    plain = b.onwards(b.x.take(b.best(Light4GS().prune)), LONGER)
    row("pruned, trained on, float32", plain.nbytes, plain)
    for bits in (8, 6, 5, 4, 3):
        row(f"B: pruned, planes of {bits} bits, zstd", *in_bits(plain, bits))
    blind = Light4GS(hyper=False, coarse=False, intra=False, inter=False)
    packed = blind.encode(b.x)
    row("C: factorised", packed.nbytes, blind.decode(packed), **packed.notes["parts"])


def packed(b: Bench) -> None:
    made, first = b.full(), b.seen(b.longer())
    start = time.process_time()
    back = Light4GS().decode(Packed.from_bytes(made.to_bytes()))
    took, psnr = time.process_time() - start, b.seen(back)
    row = {"bytes": made.nbytes, "times": b.x.nbytes / made.nbytes, "gaussians": len(back), "psnr": psnr}
    more = {"lost": first - psnr, "pack_s": made.notes["cpu_s"], "unpack_s": took}
    keep("rate", "D: light4gs", row | more | made.notes["parts"])


def pruning(b: Bench) -> None:
    first, n = b.seen(b.x), len(b.x)
    longer = b.seen(b.onwards(b.x, 300))
    seen = spatio_temporal(b.x, b.cameras, TIMES)
    scores = {
        "space and time": seen,
        "first moment": significance(b.x.at(0.0), b.cameras),
        "mean over time only": np.mean([significance(b.x.at(t), b.cameras) for t in TIMES], axis=0),
        "opacity": b.x.still.opacities,
        "lot": np.random.default_rng(0).random(n),
    }
    for share in (0.5, 0.6):
        for name, score in scores.items():
            y = b.x.take(np.sort(np.argsort(-score)[: round(n * (1 - share))]))
            told = {"gaussians": len(y), "lost": first - b.seen(y)}
            if name in ("space and time", "lot") and share == 0.5:
                told["lost_trained_on"] = longer - b.seen(b.onwards(y, 300))
            keep("pruning", f"{share:.0%} by {name}", told)


def ladder(b: Bench) -> None:
    stored = read(b.full().arrays["scene"])
    steps = {k: step_of(v) for k, v in stored.steps.items()}
    values = {k: v.float() for k, v in stored.planes.items()}
    for count in range(len(LADDER) + 1):
        model = PlaneModel(len(b.x.planes), frozenset(LADDER[count:]))
        model.fit(values, steps, 150, 0.02)
        put, _ = model.write(values, steps)
        size = put.stream().size + (0 if model.factorised else sum(net.raw().size for net in model.nets))
        expected = float(sum(v.detach() for v in model.bits(values, steps).values())) / 8
        name = " + ".join(LADDER[:count]) or "none"
        keep("ladder", name, {"bytes": size, "stream": put.stream().size, "expected": expected})


def rest(b: Bench) -> None:
    """Fitted and packed alike; bytes of the planes of time, and of all planes."""
    steps = b.args.steps // 3
    told = {}
    for name, truth in (("moving", b.truth), ("at rest", Halted(b.truth.at(0.8)))):
        x = b.fitted(truth, steps)
        packed = Light4GS(steps=200).encode(x)
        spent = packed.notes["planes"]
        timed = sum(v for k, v in spent.items() if k[2:] in "245") / 8
        told[name] = {"timed": timed, "planes": sum(spent.values()) / 8, "bytes": packed.nbytes}
        apart = held_out(truth, width=b.args.width)
        told[name]["psnr"] = likeness(Light4GS().decode(packed), apart)
        keep("rest", name, told[name])
    keep("rest", "share", {k: told["at rest"][k] / told["moving"][k] for k in ("timed", "planes", "bytes")})


def speed(b: Bench) -> None:
    back = Light4GS().decode(b.full())
    spent: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(5):
        for name, x in (("before", b.x), ("after", back)):
            start = time.process_time()
            for shot in b.apart:
                render(x.at(shot.time), shot.camera.scaled(4), WHITE, threads=1)
            spent[name].append((time.process_time() - start) / len(b.apart))
    row = {name: 1000 * float(np.median(v)) for name, v in spent.items()}
    keep("speed", "ms of a picture, moved and drawn", row | {"ratio": row["before"] / row["after"]})


def axes(b: Bench) -> None:
    """Of planes of 48 x 48, the points that a Gaussian is near to at any time; of scenes that stand as they please."""
    rng = np.random.default_rng(0)
    means = np.concatenate([b.truth.at(t).means for t in TIMES])
    told: dict[str, list[float]] = {"main": [], "world": []}
    for _ in range(8):
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        places = means @ turn.T
        for name in told:
            frame = framed(places, name == "main")
            at = (places - frame[:3]) @ frame[3:12].reshape(3, 3).T / frame[12:]
            cells = np.clip(((at + 1) / 2 * 48).astype(int), 0, 47)
            used = [
                len(np.unique(cells[:, a] * 48 + cells[:, c])) / 48**2 for a, c in ((0, 1), (0, 2), (1, 2))
            ]
            told[name].append(float(np.mean(used)))
    keep("axes", "share of planes' points in use", {k: float(np.mean(v)) for k, v in told.items()})


def prices(b: Bench) -> None:
    first = b.seen(b.longer())
    for price, prune in ((0.0005, 0.4), (0.001, 0.55)):
        packed = Light4GS(lambda_planes=price, lambda_sh=price, prune=prune).encode(b.x)
        shown = Light4GS().decode(packed)
        told = {"bytes": packed.nbytes, "times": b.x.nbytes / packed.nbytes, "lost": first - b.seen(shown)}
        keep("prices", f"{price} a kilobyte, {prune:.0%} pruned", told | packed.notes["parts"])
    packed = Light4GS().encode(b.x, "3%")
    keep("prices", "a budget of 3%", {"bytes": packed.nbytes, "asked": int(0.03 * b.x.nbytes),
         "lost": first - b.seen(Light4GS().decode(packed)), "gaussians": packed.notes["kept"]})  # fmt: skip


PARTS = {
    "rate": rate,
    "packed": packed,
    "pruning": pruning,
    "ladder": ladder,
    "rest": rest,
    "speed": speed,
    "axes": axes,
    "prices": prices,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    for name, default in (("steps", 1500), ("gaussians", 2400), ("width", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    b = Bench(parser.parse_args())
    for part in b.args.parts.split(","):
        PARTS[part](b)


if __name__ == "__main__":
    main()
