"""Fuyou and ZeRO-Offload beside plain training: bits, memory as the kernel counts it, and time.

    OMP_NUM_THREADS=1 python benchmarks/training_offload.py [--parts smollm2,adam,...] [--folder DIR]

smollm2: SmolLM2-135M in fp32 with AdamW and --tokens a step, each arm in a process of its own, in turns; peak is the
resident memory of the whole process from the moment the model is built. adam: the fused update beside torch's,
in turns. fuyou: overlap and bytes with a throttled disk. swap: a sweep of kept activations and the planner's choice.
kill: a process killed at random moments. offload: a throttled link, copies beside backward, late updates, the planner.
late: losses of late updates beside those that come at once.
Results are merged into results/training_offload.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import small_gpt

from holdall.memory import return_early
from holdall.report import provenance
from holdall.training import Fuyou, Run, ZeROOffload
from holdall.training.adam_kernel import Hyper, adamw, tail_of
from holdall.training.zero_offload_plan import plan

RESULTS = Path(__file__).parent / "results" / "training_offload.json"
TEXT = b"".join(p.read_bytes() for p in sorted(Path(torch.nn.__file__).parent.glob("modules/*.py"))[:12])
MEMORY = 1_200_000_000


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    """Print a row and merge it into the results."""
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{part}: {name:28s} {told}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault(part, {})[name] = row
    found["provenance"] = provenance(threads=os.environ.get("OMP_NUM_THREADS"))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def high_water(reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def digest(model: torch.nn.Module) -> str:
    told = hashlib.sha256()
    for p in model.parameters():
        told.update(p.detach().reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()[:16]


def smollm2_arm(arm: str, steps: int, tokens: int) -> None:
    """One arm in this process; prints its figures as JSON."""
    from holdall.meter import resident_bytes
    from holdall.weights import Model

    read = Model.read("smollm2")
    ids = torch.tensor(read.tokenizer().encode(TEXT.decode()[:40_000]))
    batches = [{"input_ids": x, "labels": x} for x in ids[: tokens * steps].view(steps, 1, tokens)]
    model = read.build().requires_grad_(True).train()
    model.config.use_cache = False
    read.state.clear()
    del read
    run = Run(model, torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True))
    return_early()
    held = sum(p.nbytes for p in model.parameters())
    base = resident_bytes() - held
    high_water(reset=True)
    seconds, cpu, losses, told = [], [], [], {}
    trainee = None if arm == "plain" else Fuyou(piece=1 << 19).open(run, MEMORY - base - 40_000_000)
    for x in batches:
        start, used = time.perf_counter(), time.process_time()
        if trainee is None:
            loss = model(**x).loss
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            losses.append(float(loss.detach()))
        else:
            losses.append(trainee.step(x))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    peak = high_water()
    if trainee is not None:
        told = {k: v for k, v in trainee.traffic().items() if v}
        p = trainee._profile.plan
        told |= {
            "staying": len(p.staying),
            "kept": len(p.kept),
            "on_disk": len(p.on_disk),
            "fixed": trainee._memory.fixed,
        }
        trainee.close()
    print(json.dumps({"peak_bytes": peak, "base_bytes": base, "seconds": min(seconds[1:]),
                      "cpu_seconds": min(cpu[1:]),
                      "first_seconds": seconds[0], "losses": losses, "digest": digest(model),
                      "told": told}))  # fmt: skip


def smollm2(tokens: int, steps: int = 3, rounds: int = 1) -> None:
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "fuyou": []}
    for _ in range(rounds):
        for arm, rows in found.items():
            command = [sys.executable, __file__, "--arm", arm, "--steps", str(steps), "--tokens", str(tokens)]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise SystemExit(ran.stderr)
            rows.append(json.loads(ran.stdout.splitlines()[-1]))
    for arm, rows in found.items():
        best = min(rows, key=lambda r: r["seconds"])
        row = {
            k: best[k]
            for k in ("peak_bytes", "base_bytes", "seconds", "cpu_seconds", "first_seconds", "digest")
        }
        told = best["told"]
        keep(
            "smollm2",
            f"{arm}, {tokens} tokens",
            {**row, **{k: told[k] for k in ("staying", "kept", "on_disk") if k in told}},
        )
    plain, ours = (min(rows, key=lambda r: r["seconds"]) for rows in found.values())
    keep("smollm2", f"fuyou / plain, {tokens} tokens", {
        "peak": ours["peak_bytes"] / plain["peak_bytes"], "seconds": ours["seconds"] / plain["seconds"],
        "cpu_seconds": ours["cpu_seconds"] / plain["cpu_seconds"], "bits_equal": ours["digest"] == plain["digest"],
    })  # fmt: skip


def adam(numbers: int = 50_000_003, rounds: int = 5) -> None:
    p = torch.randn(numbers)
    theirs = torch.nn.Parameter(p.clone())
    theirs.grad = torch.randn(numbers)
    g, m, v = theirs.grad.clone(), torch.zeros(numbers), torch.zeros(numbers)
    out, half = torch.empty(numbers, dtype=torch.bfloat16), g.bfloat16()
    fused = torch.optim.AdamW([theirs], fused=True)
    loop = torch.optim.AdamW([torch.nn.Parameter(p.clone())], foreach=False)
    loop.param_groups[0]["params"][0].grad = g
    into, others = torch.empty_like(g), (p.clone(), m.clone(), v.clone())
    best: dict[str, float] = {}

    def timed(name: str, act: Any) -> None:
        start = time.process_time()
        act()
        best[name] = min(best.get(name, 1e9), time.process_time() - start)

    for t in range(1, rounds + 1):
        hyper = Hyper.of(fused.param_groups[0], t)
        timed("torch fused", fused.step)
        timed("torch, pass by pass", loop.step)
        timed("ours, fp32", lambda h=hyper: adamw(p, m, v, g, h, None, 1.0, tail_of(numbers, 0, numbers)))
        if t == rounds:
            equal = torch.equal(p, theirs.detach())
        timed("ours, bf16 in and out", lambda h=hyper: adamw(*others, half, h, out))
        timed("copy", lambda: into.copy_(g))
    rate = 8 * numbers / best["copy"]
    for name, seconds in best.items():
        moved = {"copy": 8, "torch, pass by pass": 0}.get(name, 28) * numbers
        keep("adam", name, {"cpu_seconds": seconds, "of copy bandwidth": moved / seconds / rate})
    keep(
        "adam", "ours / torch fused", {"speed": best["torch fused"] / best["ours, fp32"], "bits_equal": equal}
    )


def layered(width: int, layers: int, seed: int = 0) -> Run:
    torch.manual_seed(seed)
    blocks = [torch.nn.Sequential(torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width))
              for _ in range(layers)]  # fmt: skip
    model = torch.nn.Sequential(*blocks)
    return Run(model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))


def pairs(width: int, rows: int, count: int) -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(rows, width), torch.randn(rows, width)) for _ in range(count)]


def stepped(trainee: Any, batches: list[Any]) -> float:
    """Seconds of the fastest step after the first two."""
    best = 1e9
    for i, x in enumerate(batches):
        start = time.perf_counter()
        trainee.step(x)
        if i > 1:
            best = min(best, time.perf_counter() - start)
    return best


def fuyou(folder: str) -> None:
    """Overlap where compute and disk take about as long: the disk is throttled to that."""
    batches, rows = pairs(512, 512, 6), {}
    with Fuyou(swap=1.0).open(layered(512, 6), folder=None) as trainee:
        start = time.perf_counter()
        for x in batches[:2]:
            trainee.model(x[0]).square().mean()
        forward = (time.perf_counter() - start) / 2
        moved = trainee.traffic()["state_bytes_a_step"]
    rate = moved / (3 * forward)
    for name, overlap in (("serial", False), ("overlap", True)):
        with Fuyou(overlap=overlap, swap=1.0).open(layered(512, 6), rate=rate) as trainee:
            rows[name] = stepped(trainee, batches)
    keep("fuyou", "throttled disk", {"rate_bytes_s": rate, "compute_s": 3 * forward, "disk_s": moved / rate,
         **{f"{k}_s": v for k, v in rows.items()}, "ratio": rows["overlap"] / rows["serial"]})  # fmt: skip


def swap(folder: str) -> None:
    """Step time against the share of activations that is kept, under a budget that sends them to disk."""
    batches = pairs(512, 1024, 5)
    for disk, rate in (("as it is", None), ("100 MB/s", 100e6), ("20 MB/s", 20e6)):
        shares: list[float | None] = [i / 7 for i in range(8)]
        found = {}
        for share in [*shares, None]:
            with Fuyou(swap=share).open(layered(512, 7), 75_000_000, rate=rate) as trainee:
                found[share] = stepped(trainee, batches)
                p = trainee._profile.plan
                if share is None:
                    chosen = {
                        "swapped": p.swapped,
                        "predicted_s": p.seconds,
                        "kept": len(p.kept),
                        "disk": len(p.on_disk),
                    }
        best = min(v for k, v in found.items() if k is not None)
        told = {f"{k:.2f}": round(v, 3) for k, v in found.items() if k is not None}
        keep(
            "swap",
            disk,
            {"seconds": told, "planned_s": found[None], "planned / best": found[None] / best, **chosen},
        )


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from training_offload import Fuyou, layered, pairs, digest
run = layered(96, 4)
with Fuyou(piece=4096).open(run, folder=sys.argv[1]) as trainee:
    for x in pairs(96, 16, 60)[trainee.steps:]:
        trainee.step(x)
        print(trainee.steps, flush=True)
print(digest(run.model))
"""


def kill(folder: str, times: int = 20) -> None:
    plain = layered(96, 4)
    for x, y in pairs(96, 16, 60):
        torch.nn.functional.mse_loss(plain.model(x), y).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    chance, kills, back = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-c", KILLED, place, str(Path(__file__).parent), *sys.path]
        done = 0
        while True:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            first = process.stdout.readline()
            back += bool(first) and first.strip().isdigit() and int(first) <= done - 1
            if kills < times:
                time.sleep(chance.random() * 0.3)
                process.send_signal(signal.SIGKILL)
                kills += 1
            rest = process.communicate()[0].split()
            seen = [int(x) for x in [first.strip(), *rest] if x.isdigit() and len(x) < 4]
            done = max([done, *seen])
            if process.returncode == 0:
                break
    end = rest[-1] if rest else first.strip()
    keep(
        "kill",
        "random moments",
        {"kills": kills, "steps that came twice": back, "bits_equal": end == digest(plain.model)},
    )


def offload(folder: str) -> None:
    """A link that takes as long as compute: copies one after the other, beside it, and late updates."""
    batches, width, layers = pairs(384, 384, 8), 384, 6
    numbers = sum(p.numel() for p in layered(width, layers).model.parameters())
    with ZeROOffload(weights="float32").open(layered(width, layers)) as trainee:
        free = stepped(trainee, batches)
        peak = trainee.device.peak
    link = 4 * numbers / (free / 2)
    found = {}
    for name, knobs in (("serial", {"overlap": False}), ("overlapped", {}), ("delayed", {"delay": 2})):
        with ZeROOffload(weights="float32", link=link, **knobs).open(layered(width, layers)) as trainee:
            found[name] = stepped(trainee, batches)
    model, g = layered(width, layers), torch.randn(numbers)
    p, m, v = torch.randn(numbers), torch.zeros(numbers), torch.zeros(numbers)
    hyper, best = Hyper.of(model.optimizer.param_groups[0], 1), 1e9
    for _ in range(5):
        start = time.perf_counter()
        adamw(p, m, v, g, hyper)
        best = min(best, time.perf_counter() - start)
    start = time.perf_counter()
    for x, y in batches[:4]:
        torch.nn.functional.mse_loss(model.model(x), y).backward()
    compute = (time.perf_counter() - start) / 4
    told = plan(numbers, 0, None, link=link, adam=numbers / best, compute=compute, bytes_each=4)
    for name, seconds in found.items():
        predicted = getattr(told, name)
        keep("offload", name, {"seconds": seconds, "predicted_s": predicted,
                               "predicted / measured": predicted / seconds,
                               "of serial": seconds / found["serial"]})  # fmt: skip
    keep(
        "offload",
        "facts",
        {
            "link_bytes_s": link,
            "compute_s": compute,
            "adam_s": best,
            "device_peak": peak,
            "plain": 16 * numbers,
        },
    )


def late(folder: str, steps: int = 200, seeds: int = 2) -> None:
    """What it costs in loss that updates come one step late from step 40 on: a GPT on real text, two rates."""
    arms: dict[str, dict[str, Any]] = {
        "at once": {},
        "late from step 40": {"delay": 40},
        "late from the start": {"delay": 0},
    }
    batches = [list(small_gpt.windows(TEXT.decode(), steps, 8, 96, seed)) for seed in range(seeds)]
    for rate in (1e-3, 2e-4):
        base: list[float] = []
        for name, knobs in arms.items():
            found = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                model = small_gpt.GPT(d=128, layers=4, heads=4, context=96)
                run = Run(model, torch.optim.AdamW(model.parameters(), lr=rate, fused=True))
                with ZeROOffload(weights="float32", **knobs).open(run) as trainee:
                    losses = [trainee.step(x) for x in batches[seed]]
                found.append(sum(losses[-20:]) / 20)
            base = base or found
            off = [a / b - 1 for a, b in zip(found, base, strict=True)]
            row = {"steps": steps, "loss": sum(found) / seeds, "worst off": max(off, key=abs)}
            keep("late", f"rate {rate:g}, {name}", row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="smollm2,adam,fuyou,swap,kill,offload,late")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--arm")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.arm:
        smollm2_arm(args.arm, args.steps, args.tokens)
        return
    acts = {"fuyou": fuyou, "swap": swap, "kill": kill, "offload": offload, "late": late}
    for part in args.parts.split(","):
        if part == "smollm2":
            smollm2(args.tokens)
        elif part == "adam":
            adam()
        else:
            acts[part](args.folder)


if __name__ == "__main__":
    main()
