"""What benchmarks/splats_momentum_gs.py measures in processes of their own: peaks of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from splats_rooms import LONG, VIEWS

from holdall.splats.anchors import Decoder
from holdall.splats.camera import looking
from holdall.splats.momentum_gs_shelf import Memory, Shelf
from holdall.splats.momentum_gs_train import Course, Plan

LEGO = Path(__file__).parent.parent.parent / "shared" / "data" / "scenes" / "lego"
COUNT = len(VIEWS)
Keep = Callable[[str, str, dict[str, Any]], None]


def large(where: str, anchors: int) -> None:
    """Blocks of so many anchors, of which a picture shows few: the peak is of blocks. Prints it."""
    from holdall.memory import return_early
    from holdall.meter import Meter

    return_early()
    rng, decoder = np.random.default_rng(0), Decoder.fresh(32, 32, 10, 4.0)
    picture = np.full((24, 24, 3), 0.5, np.float32)
    cameras = [looking([LONG * b + 1, 0.5, -3], [LONG * b + 1, 0.5, 0], width=24, height=24, degrees=1.5) for b in range(COUNT)]  # noqa: E501  # fmt: skip
    plan = Plan(12, interval=3, grow_until=0)

    def start(b: int) -> dict[str, torch.Tensor]:
        at = rng.uniform([LONG * b, 0, -0.5], [LONG * (b + 1), 1, 0.5], (anchors, 3)).astype(np.float32)
        return {"means": torch.from_numpy(at), "feature": torch.zeros(anchors, 32),
                "scaling": torch.full((anchors, 6), -6.0), "offsets": torch.zeros(anchors, 10, 3)}  # fmt: skip

    def act(many: int) -> float:
        with Shelf() if where == "disk" else Memory() as shelf:
            course = Course(
                decoder, shelf, [[b] for b in range(COUNT)], lambda i: (cameras[i], picture), plan, voxel=0.1
            )
            for b in range(COUNT):
                course.start(b, {k: v[:many] for k, v in start(b).items()})
            course.run()
            return sum(t.nbytes for t in shelf.get(0).values()) if many > 100 else 0.0

    act(100)  # what is imported and compiled at first use is not counted
    with Meter() as meter:
        block = act(anchors)
    print(json.dumps({"peak_bytes": meter.peak_bytes, "block_bytes": block, "seconds": meter.seconds}))


def memory(script: str, keep: Keep) -> None:
    for where in ("disk", "memory"):
        words = [sys.executable, script, "--large", where]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        keep("memory", f"blocks in {where}", json.loads(done.stdout))


_CHILD = """
import json, sys
from holdall.splats import momentum_gs_work
from holdall.cli import main
real = momentum_gs_work._learnt
def learnt(recipe, start, cells, *rest):
    print("blocks", cells.count, file=sys.stderr)
    return real(recipe, start, cells, *rest)
momentum_gs_work._learnt = learnt
sys.argv = ["holdall", *sys.argv[1:]]
try:
    main()
finally:
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print("peak", int(line.split()[1]) * 1024, file=sys.stderr)
"""


def lego(script: str, keep: Keep) -> None:
    """90 photographs of 200 x 200, every tenth held out; the peak is of the whole process, its libraries among it."""
    few = ["--start", "5000", "--most", "40000"]
    ways = [("splats.momentum_gs", m, few) for m in ("2GB", "700MB")]
    ways += [("splats.compact3dgs", "2GB", few), ("splats.momentum_gs", "2GB", [*few, "--blocks", "4"])]
    for name, asked, more in ways:
        with tempfile.TemporaryDirectory() as folder:
            words = ["fit-scene", str(LEGO), "--with", name, "--memory", asked, "-o", f"{folder}/scene.hold",
                     "--hold-back", "10", "--steps", "300", "--json", *more]  # fmt: skip
            done = subprocess.run([sys.executable, "-c", _CHILD, *words], capture_output=True, text=True)
        told: dict[str, Any] = {"asked": asked}
        said = [line.split() for line in done.stderr.splitlines() if line.startswith(("blocks ", "peak "))]
        told |= {line[0]: int(line[1]) for line in said}
        if done.returncode == 0:
            row = json.loads(done.stdout)
            told |= {k: row[k] for k in ("gaussians", "bytes", "psnr", "ssim", "cpu_seconds")}
        else:
            told["refused"] = done.stderr.splitlines()[0]
        keep("lego", f"{name} {asked} {' '.join(more[4:])}".strip(), told)


ALONE = {"memory": memory, "lego": lego}
