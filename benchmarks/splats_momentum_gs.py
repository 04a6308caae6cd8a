"""Momentum-GS on four rooms in a row: what one decoder and its teacher are worth, at equal steps.

    OMP_NUM_THREADS=1 python benchmarks/splats_momentum_gs.py [--parts seams,file,decoupled,memory,teacher,lego]
        [--side 48] [--steps 300] [--seeds 3]

benchmarks/splats_rooms.py: 30, 20, 10 and 4 photographs, each room of another exposure; a block is a room. steps: of
each block. seams: a decoder for each block; one decoder; with the teacher; with weights, too. "seam" is PSNR of 18
held-out views through doors, "corrected" after a linear map of each picture's colours (exposure is not modelled);
"block" of 8 held-out views in each room. file: what is stored, by bits. decoupled: one process and disk against four
by gloo. memory: large blocks, on disk against all in memory, in processes of their own. teacher: how much what the
decoder tells changes from block to block. more: a stricter
teacher, more steps. lego: `holdall fit-scene` on ../shared/data/scenes/lego within a memory.
Results are merged into results/splats_momentum_gs.json.
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
from splats_momentum_gs_trial import BLACK, COUNT, Trial, judged, shown
from splats_rooms import Rooms

from holdall.splats.momentum_gs_crew import Crew
from holdall.splats.momentum_gs_file import Anchored, read, write
from holdall.splats.momentum_gs_shelf import Memory, Shelf
from holdall.splats.momentum_gs_train import Plan
from holdall.splats.raster import render

RESULTS = Path(__file__).parent / "results" / "splats_momentum_gs.json"


keep = keeper(RESULTS, 34)


def ways(plan: Plan) -> dict[str, Plan]:
    plain = replace(plan, lambda_c=0.0, sigma=0.0)
    return {
        "a decoder for each block": plain, "one decoder": plain, "one decoder, teacher": replace(plan, sigma=0.0),
        "one decoder, teacher, weights": plan,
    }  # fmt: skip


def seams(rooms: Rooms, plan: Plan, seeds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for name, how in ways(plan).items():
            trial, begin = Trial(rooms, replace(how, seed=seed)), time.process_time()
            if name.startswith("a "):
                parts, weights = trial.alone(), [1.0]
            else:
                course = trial.course(Memory(), list(range(COUNT)))
                course.run()
                parts, weights = trial.whole(course), course.weights
            row = judged(rooms, lambda c, parts=parts: shown(parts, c)) | {
                "cpu_s": time.process_time() - begin
            }
            found.setdefault(name, []).append(row | {"most_weight": max(weights)})
    for name, rows in found.items():
        spread = {f"{k}_sd": float(np.std([r[k] for r in rows])) for k in ("seam", "worst")}
        keep(
            "seams",
            name,
            {k: float(np.mean([r[k] for r in rows])) for k in rows[0]} | spread | {"seeds": seeds},
        )


def file(rooms: Rooms, plan: Plan, seeds: int) -> None:
    trial = Trial(rooms, plan)
    course = trial.course(Memory(), list(range(COUNT)))
    course.run()
    anchors, decoder = trial.whole(course)[0]
    places = np.stack(
        [rooms.cameras[i].place for views in rooms.train for i in views[:: max(1, len(views) // 6)]]
    )
    raw = sum(v.nbytes for v in anchors.values())
    row = {"anchors": len(anchors["means"]), "bytes": raw + decoder.nbytes, "decoder": decoder.nbytes,
           "bytes_of_4_decoders": raw + COUNT * decoder.nbytes}  # fmt: skip
    keep("file", "float32", row | judged(rooms, lambda c: shown([(anchors, decoder)], c)))
    for bits in (8, 7, 6, 5, 4):
        stream, told = write(Anchored(anchors, decoder, places), bits, 13)
        back = read(stream).scene()
        row = {"bytes": stream.size, **told}
        keep(
            "file",
            f"{bits} bits",
            row | judged(rooms, lambda c, back=back: np.clip(render(back, c, BLACK).colour, 0, 1)),
        )
        if bits == 6:
            plain = back.plain()
            row = {"gaussians": len(plain)}
            keep("file", "6 bits, baked to harmonics",
                 row | judged(rooms, lambda c, plain=plain: np.clip(render(plain, c, BLACK).colour, 0, 1)))  # fmt: skip


def run(rooms: Rooms, plan: Plan) -> dict[str, Any]:
    """As one of a crew, or alone; through disk."""
    trial, crew, begin = Trial(rooms, plan), Crew(), time.perf_counter()
    with Shelf() as shelf:
        course = trial.course(shelf, list(range(COUNT)), crew=crew)
        course.run()
        parts = trial.whole(course)
        row = {"seconds": time.perf_counter() - begin, "disk_bytes": shelf.traffic()["written_bytes"]}
    return judged(rooms, lambda c: shown(parts, c)) | row


def decoupled(rooms: Rooms, plan: Plan, seeds: int) -> None:
    names = {1: "1 process, 4 blocks through disk", 4: "4 processes, gloo"}
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in names}
    for seed in range(seeds):
        found[1].append(run(rooms, replace(plan, seed=seed)))
        words = [
            sys.executable,
            __file__,
            "--steps",
            str(plan.steps),
            "--side",
            str(rooms.side),
            "--seed",
            str(seed),
        ]
        with tempfile.TemporaryDirectory() as folder:
            words += ["--world", "4", "--meet", folder]
            crew = [subprocess.Popen([*words, "--rank", str(r)]) for r in range(4)]
            codes = [c.wait() for c in crew]
            if any(codes):
                sys.exit("a process of the crew failed")
            found[4].append(json.loads(Path(folder, "0.json").read_text()))
        for count, name in names.items():
            rows = found[count]
            row = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]} | {"seeds": len(rows)}
            keep("decoupled", name, row | {"mean_sd": float(np.std([r["mean"] for r in rows]))})


def rank(rooms: Rooms, plan: Plan, asked: argparse.Namespace) -> None:
    meet = f"file://{asked.meet}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=asked.rank, world_size=asked.world)
    row = run(rooms, plan)
    Path(asked.meet, f"{asked.rank}.json").write_text(json.dumps(row))
    torch.distributed.destroy_process_group()


def teacher(rooms: Rooms, plan: Plan, seeds: int) -> None:
    """What is told of the same anchors from the same places, whenever a block begins: its variance over the second half
    of these times, mean over all that is told, before the decoder is frozen."""
    for momentum in (0.0, 0.9, 0.99):
        trial = Trial(rooms, replace(plan, momentum=momentum, sigma=0.0))
        course = trial.course(Memory(), list(range(COUNT)))
        some = {k: v[:100] for k, v in trial.start.anchors.items()}
        told: dict[str, list[Any]] = {"teacher": [], "student": []}

        def heard(block: int, learner: Any, course: Any = course, told: Any = told, some: Any = some) -> None:
            if learner.done % plan.interval or not course.decoder.params["first"].requires_grad:
                return
            with torch.no_grad():
                for name, decoder in (("teacher", course.teacher), ("student", course.decoder)):
                    out = [torch.cat([t.flatten() for t in decoder(some["feature"], some["means"], c.place)])
                           for c in rooms.cameras[:60:10]]  # fmt: skip
                    told[name].append(torch.cat(out))

        course.heard = heard
        course.run()
        half = len(told["teacher"]) // 2
        row: dict[str, Any] = {"switches": len(told["teacher"]) - half}
        for name, outs in told.items():
            late = torch.stack(outs[half:])
            row[f"{name}_variance"] = float(late.var(0).mean())
            row[f"{name}_step"] = float((late[1:] - late[:-1]).square().mean())
        parts = trial.whole(course)
        keep("teacher", f"momentum {momentum}", row | judged(rooms, lambda c, parts=parts: shown(parts, c)))


def more(rooms: Rooms, plan: Plan, seeds: int) -> None:
    """The teacher as strict as the paper's, and twice the steps."""
    for name, how in (
        ("lambda_c 1", plan), ("lambda_c 50", replace(plan, lambda_c=50.0)),
        ("lambda_c 1, twice the steps", replace(plan, steps=2 * plan.steps)),
    ):  # fmt: skip
        trial = Trial(rooms, replace(how, sigma=0.0))
        course = trial.course(Memory(), list(range(COUNT)))
        course.run()
        parts = trial.whole(course)
        keep("more", name, judged(rooms, lambda c, parts=parts: shown(parts, c)))


PARTS = {"seams": seams, "file": file, "decoupled": decoupled, "teacher": teacher, "more": more}


def main() -> None:
    from splats_momentum_gs_memory import ALONE, large

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join([*PARTS, *ALONE]))
    for name, default in (
        ("side", 48),
        ("steps", 300),
        ("seeds", 3),
        ("rank", -1),
        ("world", 0),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--meet")
    parser.add_argument("--large")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.large:
        large(asked.large, 60_000)
        return
    rooms, plan = Rooms(asked.side), Plan(asked.steps, grow_each=50, most=400, seed=asked.seed)
    if asked.rank >= 0:
        rank(rooms, plan, asked)
        return
    for part in asked.parts.split(","):
        if part in ALONE:
            ALONE[part](__file__, keep)
        else:
            PARTS[part](rooms, plan, asked.seeds)


if __name__ == "__main__":
    main()
