"""SSDTrain beside plain training, recomputation and naive hooks: bytes, memory as the kernel counts it, and time.

    OMP_NUM_THREADS=1 python benchmarks/training_ssdtrain.py [--parts card,budget,rok,slow,smollm2] [--folder DIR]

card: 8 layers, 512 tokens, batch 8, as the card asks. budget: peaks under budgets. rok: recompute, offload, keep at
several batch sizes, and their picture. slow: a disk of so many bytes a second, adaptive and not. smollm2: four
layers of a real model. Peaks are the rise of resident memory in forward and backward, gradients included, each arm in
a process of its own; times are the least of alternating rounds in one process. Results are merged into
results/training_ssdtrain.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from training_ssdtrain_arms import ARMS, SLOW, Arm, Naive, made

from holdall.memory import return_early
from holdall.meter import Meter
from holdall.report import provenance
from holdall.training.ssdtrain import offloaded

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "training_ssdtrain.json"


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    """Print a row and merge it into the results."""
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{part}: {name:30s} {told}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault(part, {})[name] = row
    found["provenance"] = provenance(threads=os.environ.get("OMP_NUM_THREADS"))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def step(model: Any, batch: Any) -> tuple[float, float]:
    """(seconds, CPU seconds) of forward and backward."""
    model.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    model(*batch).backward()
    return time.perf_counter() - wall, time.process_time() - cpu


def child(args: argparse.Namespace) -> None:
    """One arm alone: its peak in the steps after the first two, and a checksum of its gradients."""
    return_early()  # for all arms alike
    model, batch = made(args, args.batch)
    chosen = ARMS[args.child] if args.child in ARMS else _budgeted(int(args.child))
    with chosen(model, args.folder) as held:
        step(model, batch)
        step(model, batch)
        model.zero_grad()
        with Meter() as meter:
            step(model, batch)
        written = held.written / 3 if isinstance(held, Naive) else 0
        flow = {}
        if hasattr(held, "traffic"):
            told = held.traffic()
            written, flow = told["written_bytes_a_step"], {**told, **held.flow()}
    total = sum(p.grad.view(torch.int32).long().sum().item() for p in model.parameters())
    print(json.dumps({"peak": meter.peak_bytes, "written": written, "sum": total, "flow": flow}))


def _budgeted(budget: int) -> Arm:
    return lambda m, folder: offloaded(m, budget, folder=folder)


def alone(args: argparse.Namespace, arm: str, batch: int) -> dict[str, Any]:
    told = [f"--{k}={getattr(args, k)}" for k in ("d", "layers", "length", "folder", "model")]
    call = [sys.executable, __file__, "--child", arm, f"--batch={batch}", *told]
    ran = subprocess.run(call, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{arm}: {ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])


def timed(
    args: argparse.Namespace, batch: int, names: list[str], rounds: int
) -> dict[str, tuple[float, float]]:
    """The least (seconds, CPU seconds) of each arm, in turns; caches stay open, as in a loop."""
    model, x = made(args, batch)
    best: dict[str, tuple[float, float]] = {}
    return_early()
    held = {n: ARMS[n](model, args.folder) for n in names if n.startswith("offload")}
    for i in range(rounds + 2):  # two to warm up and to be profiled
        for name in names:
            if i < 2 and name not in held:
                continue
            if name in held:
                cache = held[name]
                with torch.autograd.graph.saved_tensors_hooks(cache.pack, cache.unpack):
                    took = step(model, x)
            else:
                with ARMS[name](model, args.folder):
                    took = step(model, x)
            if i >= 2:
                was = best.get(name, took)
                best[name] = min(was[0], took[0]), min(was[1], took[1])
    for cache in held.values():
        cache.close()
    return best


def card(args: argparse.Namespace) -> None:
    names = [
        "keep",
        "offload",
        "offload, all",
        "offload, window 16 MB",
        "recompute",
        "naive",
        "naive, direct",
    ]
    rows = {n: alone(args, n, args.batch) for n in names}
    times = timed(args, args.batch, names, args.rounds)
    for n in names:
        row = {"peak_MB": rows[n]["peak"] / 1e6, "peak_share": rows[n]["peak"] / rows["keep"]["peak"]}
        row |= {
            "written_MB": rows[n]["written"] / 1e6,
            "same_gradients": rows[n]["sum"] == rows["keep"]["sum"],
        }
        row |= {"seconds": times[n][0], "ratio": times[n][0] / times["keep"][0]}
        row |= {"cpu_ratio": times[n][1] / times["keep"][1]}
        keep("card", n, row)
    told = rows["offload, all"]["flow"]
    naive = rows["naive"]["written"]
    row = {"naive_MB": naive / 1e6, "large_enough_MB": told["saved_bytes"] / told["steps"] / 1e6}
    row |= {"unique_MB": told["unique_bytes"] / told["steps"] / 1e6}
    row["fewer_than_naive"] = 1 - told["unique_bytes"] / told["steps"] / naive
    row["fewer_by_views_alone"] = 1 - told["unique_bytes"] / told["saved_bytes"]
    row |= {"life_years": told["life_seconds"] / (365.25 * 86400), "life_steps": told["life_steps"]}
    keep("card", "dedup", row)


def budget(args: argparse.Namespace) -> None:
    """Does the kernel see more than was allowed?"""
    plain = alone(args, "keep", args.batch)
    for share in (0.7, 0.5, 0.3):
        asked = round(share * plain["peak"])
        told = alone(args, str(asked), args.batch)
        row = {"asked_MB": asked / 1e6, "peak_MB": told["peak"] / 1e6, "kept": told["peak"] <= asked}
        row |= {"written_MB": told["written"] / 1e6, "same_gradients": told["sum"] == plain["sum"]}
        keep("budget", f"{share:.0%}", row)


def rok(args: argparse.Namespace) -> None:
    """Recompute, offload, keep: tokens a second against peak memory."""
    names = ["recompute", "offload, window 16 MB", "keep"]
    for batch in (2, 4, 8):
        times = timed(args, batch, names, args.rounds)
        for n in names:
            row = {"batch": batch, "arm": n, "peak_MB": alone(args, n, batch)["peak"] / 1e6}
            row |= {"seconds": times[n][0], "cpu_seconds": times[n][1]}
            row["tokens_a_second"] = batch * args.length / times[n][0]
            keep("rok", f"{n}, batch {batch}", row)
    picture(json.loads(RESULTS.read_text())["rok"])


def picture(rows: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for arm, colour in (
        ("recompute", "tab:orange"),
        ("offload, window 16 MB", "tab:blue"),
        ("keep", "tab:gray"),
    ):
        found = sorted(
            (r["peak_MB"], r["tokens_a_second"], r["batch"]) for r in rows.values() if r["arm"] == arm
        )
        axes.plot(*zip(*(f[:2] for f in found), strict=True), "o-", color=colour, label=arm)
        for x, y, batch in found:
            axes.annotate(f"{batch}", (x, y), textcoords="offset points", xytext=(5, 5))
    axes.set(
        xlabel="rise of resident memory in a step, MB",
        ylabel="tokens a second",
        ylim=(0, None),
        xlim=(0, None),
    )
    axes.set_title("Recompute, offload, keep at batch sizes 2, 4, 8")
    axes.legend()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=120)


def slow(args: argparse.Namespace) -> None:
    """A disk that is too slow for all of it: the choice, and without it."""
    names = ["keep", "offload, slow disk", "offload, all, slow disk"]
    times = timed(args, 4, names, args.rounds)
    for n in names:
        row = {"MB_a_second": SLOW / 1e6, "seconds": times[n][0], "ratio": times[n][0] / times["keep"][0]}
        keep("slow", n, row)


def smollm2(args: argparse.Namespace) -> None:
    """Layers of a real model: what naive hooks would write, what is written, and the peak."""
    told = {"model": "smollm2", "layers": 4, "length": 512}
    args = argparse.Namespace(**{**vars(args), **told})
    plain, naive = alone(args, "keep", 1), alone(args, "counted", 1)
    ours = alone(args, "offload, all", 1)
    flow = ours["flow"]
    row = {"peak_MB": ours["peak"] / 1e6, "plain_peak_MB": plain["peak"] / 1e6}
    row |= {"naive_MB": naive["written"] / 1e6, "written_MB": ours["written"] / 1e6}
    row["fewer_than_naive"] = 1 - ours["written"] / naive["written"]
    row["fewer_by_views_alone"] = 1 - flow["unique_bytes"] / flow["saved_bytes"]
    keep("smollm2", "4 layers, 512 tokens", row | {"same_gradients": ours["sum"] == plain["sum"]})


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", default="card,budget,rok,slow,smollm2")
    ask.add_argument("--folder", default=tempfile.gettempdir())
    for name, default in (("d", 256), ("layers", 8), ("length", 512), ("batch", 8), ("rounds", 3)):
        ask.add_argument(f"--{name}", type=int, default=default)
    ask.add_argument("--model", default="gpt")
    ask.add_argument("--child")
    args = ask.parse_args()
    if args.child:
        child(args)
        return
    for part in args.parts.split(","):
        globals()[part](args)


if __name__ == "__main__":
    main()
