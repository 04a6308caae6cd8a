"""COATAdamW, coat_ and SGDSaI beside torch's optimizers and plain bfloat16: memory, time, errors, losses.

    OMP_NUM_THREADS=1 python benchmarks/training_optimizers.py [--parts cost,...]

cost: a GPT of 32 million parameters, 4 x 128 bytes, float32, one thread; each optimizer in its own process; peak by
the kernel over the model as it was loaded. time: steps of optimizers in turn, CPU seconds. states: the error of
AdamW's direction from real moments kept in various 8-bit ways. coat, jitter, curve, sai: a small GPT on real text.
activations: what autograd keeps, gradients, peak. smollm2: fine-tuning SmolLM2 with LoRA. Text is ../shared/data/text's
WikiText-2 where it is, else the language reference of Python. Results are merged into results/training_optimizers.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import small_gpt
import training_optimizers_parts as parts
import training_optimizers_saved as saved
from keeping import keeper

from holdall.meter import Meter
from holdall.training import COATAdamW, SGDSaI, coat_

RESULTS = Path(__file__).parent / "results" / "training_optimizers.json"
KINDS = {
    "AdamW fused": lambda ps, lr: torch.optim.AdamW(ps, lr, fused=True),
    "AdamW foreach": lambda ps, lr: torch.optim.AdamW(ps, lr, foreach=True),
    "SGD momentum, fused": lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9, fused=True),
    "Adafactor": lambda ps, lr: torch.optim.Adafactor(ps, lr),
    "coat": lambda ps, lr: COATAdamW(ps, lr),
    "sgd_sai": lambda ps, lr: SGDSaI(ps, lr),
}
if importlib.util.find_spec("bitsandbytes"):

    def bitsandbytes(ps: Any, lr: float) -> Any:
        """The rival in 8 bits; imported where it is measured, as its libraries are its own."""
        import bitsandbytes as rival

        return rival.optim.AdamW8bit(ps, lr)

    KINDS["bitsandbytes AdamW8bit"] = bitsandbytes


keep = keeper(RESULTS, 34, 5)


def alone(name: str) -> dict[str, float]:
    """Six steps of the large model in this process."""
    model, batches = parts.large(), list(small_gpt.windows(parts.text(), 7, 4, 128))
    make = KINDS.get(name)
    if make is not None and name != "AdamW foreach":  # kernels are there before anything is measured
        small = torch.nn.Parameter(torch.ones(200))
        small.grad = torch.ones(200)
        make([small], 1e-3).step()
    model(*batches[6]).backward()  # what libraries allocate once is not the run's
    model.zero_grad(set_to_none=True)
    with Meter() as m:
        optimizer = make(model.parameters(), 1e-3) if make else None
        spent = 0.0
        for batch in batches[:6]:
            loss = model(*batch)
            loss.backward()
            started = time.process_time()
            if optimizer is not None:
                optimizer.step()
            spent += time.process_time() - started
            model.zero_grad(set_to_none=True)
    many = sum(p.numel() for p in model.parameters())
    held = (
        sum(t.nbytes for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
        if make
        else 0
    )
    return {
        "parameters": many, "state_bytes_each": held / many, "peak_mb": m.peak_bytes / 1e6,
        "optimizer_cpu_s": spent / 6, "loss": loss.item(),
    }  # fmt: skip


def cost() -> None:
    rows = {}
    for name in ("none", *KINDS):
        code = f"import training_optimizers as t, json; print(json.dumps(t.alone({name!r})))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    for name, row in rows.items():
        keep("cost", name, {**row, "peak_of_fused": row["peak_mb"] / rows["AdamW fused"]["peak_mb"]})


def times() -> None:
    model = parts.large()
    model(*next(small_gpt.windows(parts.text(), 1, 4, 128))).backward()
    made = {}
    for name in ("AdamW fused", "coat", "sgd_sai", "SGD momentum, fused", "bitsandbytes AdamW8bit"):
        if name not in KINDS:
            continue
        own = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
        for p, q in zip(own, model.parameters(), strict=True):
            p.grad = q.grad
        made[name] = KINDS[name](own, 1e-4)
        made[name].step()
    spent: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(15):
        for name, optimizer in made.items():
            started = time.process_time()
            optimizer.step()
            spent[name].append(time.process_time() - started)
    base = spent["AdamW fused"]
    for name, each in spent.items():
        ratios = [a / b for a, b in zip(each, base, strict=True)]
        keep("time", name, {"cpu_s": median(each), "of_fused": median(ratios)})


def states(steps: int) -> None:
    optimizer = parts.trained(lambda ps: torch.optim.AdamW(ps, 1e-3), steps, 0)[1]
    moments = [(s["exp_avg"], s["exp_avg_sq"]) for p, s in optimizer.state.items() if p.dim() == 2]
    for name, ways in parts.WAYS.items():
        keep("states", name, parts.errors(moments, *ways))


STATES = {
    "AdamW": lambda ps: torch.optim.AdamW(ps, 1e-3),
    "coat": lambda ps: COATAdamW(ps, 1e-3),
    "coat, steady=False (paper)": lambda ps: COATAdamW(ps, 1e-3, steady=False),
    "coat, without expansion": lambda ps: COATAdamW(ps, 1e-3, expand=False),
    "int8 linear": lambda ps: parts.Int8AdamW(ps, 1e-3),
}


def coat(steps: int, seeds: int) -> None:
    base: list[tuple[float, float]] = []
    for name, make in STATES.items():
        found = [parts.trained(make, steps, seed)[2:] for seed in range(seeds)]
        base = base or found
        keep("coat", f"{name}, each seed", {f"seed {i}": f[0] for i, f in enumerate(found)})
        off = [max(abs(a[i] / b[i] - 1) for i in (0, 1)) for a, b in zip(found, base, strict=True)]
        held, tail = (sum(f[i] for f in found) / seeds for i in (0, 1))
        keep(
            "coat",
            name,
            {"steps": steps, "seeds": seeds, "held_out": held, "training": tail, "worst_off": max(off)},
        )


def jitter(steps: int) -> None:
    """Seed 0 with its first weights moved by a thousandth: how far one seed is from itself."""
    for name in list(STATES)[:3]:
        found = [parts.trained(STATES[name], steps, 0, parts.moved(i))[2] for i in (1, 2)]
        keep("jitter", name, {"steps": steps, **{f"moved {i}": x for i, x in enumerate(found, 1)}})


def sai(short: int, steps: int, seeds: int, arms: str) -> None:
    grids = {
        "AdamW": (lambda ps, lr: torch.optim.AdamW(ps, lr), (1e-3, 2e-3, 4e-3)),
        "SGD momentum": (
            lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9, dampening=0.9), (0.03, 0.1, 0.3, 1.0),
        ),
        "sgd_sai": (lambda ps, lr: SGDSaI(ps, lr, weight_decay=1e-3), (0.1, 0.3, 1.0, 3.0)),
    }  # fmt: skip
    more = {"weight_decay": 1e-3}
    grids["sgd_sai, rule size"] = (lambda ps, lr: SGDSaI(ps, lr, rule="size", **more), ())
    grids["random ratios"] = (lambda ps, lr: parts.RandomRatios(ps, lr, **more), ())
    best: dict[str, float] = {}
    for name, (make, rates) in grids.items():
        if arms and name not in arms.split(","):
            continue
        found = {lr: parts.trained(lambda ps, lr=lr, make=make: make(ps, lr), short, 0)[2] for lr in rates}
        if rates:
            keep(
                "sai", f"{name}, grid", {f"lr {lr:g}": loss for lr, loss in found.items()} | {"steps": short}
            )
            best[name] = min(found, key=lambda lr: (found[lr] != found[lr], found[lr]))
        lr = best.get(name, best.get("sgd_sai", 1.0))
        ends = [
            parts.trained(lambda ps, lr=lr, make=make: make(ps, lr), steps, seed) for seed in range(seeds)
        ]
        losses = [e[2] for e in ends]
        row = {
            "lr": lr,
            "steps": steps,
            "seeds": seeds,
            "held_out": sum(losses) / seeds,
            "worst": max(losses),
        }
        keep("sai", name, row)
    keep("sai", "ratios", parts.ratios(parts.text()))


def activations() -> None:
    for case in saved.models():
        for kind in (torch.bfloat16, torch.float32):
            for name, row in saved.rows(case, kind):
                keep("activations", name, row)


def curves(steps: int) -> None:
    """Training with what coat_ keeps beside plain training."""
    base = 0.0
    for name, convert in (
        ("plain", lambda m: m),
        ("coat_", coat_),
        ("coat_, slopes", lambda m: coat_(m, slopes=True)),
    ):
        torch.manual_seed(0)
        model = convert(small_gpt.GPT(d=128, layers=4, heads=4, context=96))
        *_, held, tail = parts.trained(lambda ps: torch.optim.AdamW(ps, 1e-3), steps, 0, model)
        base = base or held
        keep("curve", name, {"steps": steps, "held_out": held, "training": tail, "off": held / base - 1})


def smollm2(steps: int) -> None:
    for name, make in saved.TUNERS.items():
        keep("smollm2", name, saved.tuned(make, steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="cost,time,states,activations,curve,coat,jitter,sai,smollm2")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--short", type=int, default=200, help="steps of each rate of a grid")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", default="", help="of sai: only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds = args.steps, args.seeds
    acts = {
        "cost": cost, "time": times, "states": lambda: states(steps), "activations": activations,
        "curve": lambda: curves(steps), "coat": lambda: coat(steps, seeds), "jitter": lambda: jitter(steps),
        "sai": lambda: sai(args.short, steps, seeds, args.arms), "smollm2": lambda: smollm2(100),
    }  # fmt: skip
    for part in args.parts.split(","):
        acts[part]()


if __name__ == "__main__":
    main()
