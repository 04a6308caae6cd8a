"""A network in a fixed number of parameters beside pruned and narrow ones; exactness, stability, theory, memory, speed.

    OMP_NUM_THREADS=1 python benchmarks/weights_stable_rps.py [--parts exact,maps,sigma,theory,memory,speed,race]
                                                              [--seeds 3] [--epochs 10] [--tasks digits,cifar]

digits: 1,797 handwritten digits (scikit-learn), an MLP of 50,432 weights. cifar: 2,000 pictures of CIFAR-10 at 16 x 16
(../shared/data/images/cifar10.npz), 1,500 to learn from, a CNN of 39,432 weights. Everyone trains with AdamW at 3e-3
falling to zero, as long as everyone else, and stores the same bytes (`weights_pruned.py` says how sparse ones count);
biases and norms, which nobody prunes, count for all. Results are merged into results/weights_stable_rps.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import weights_pruned as pruned
import weights_rps_cost as cost
from weights_rps_tasks import TASKS, Task, own, show, weights

from holdall.errors import BadInput
from holdall.parts.losses import default_loss
from holdall.report import provenance
from holdall.weights.sharing import plain, share, sharing_of
from holdall.weights.sharing_file import written
from holdall.weights.sharing_map import KINDS
from holdall.weights.training import learn

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "weights_stable_rps.json"
COMPRESSIONS = (2, 10, 50, 100)


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def spread(found: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(found)), "std": float(np.std(found))}


def exact(args: Any) -> dict[str, Any]:
    """m = n with plain SGD, 200 steps: the largest difference in loss and in the weights at the end."""
    out = {}
    for name in args.tasks:
        task = Task(name, args.epochs)
        for kind in KINDS:
            given = task.net(0)
            shared, losses = share(given, weights(given), 1, map=kind), []
            for m in (given, shared):
                optimizer, curve = torch.optim.SGD(m.parameters(), 0.05), []
                for step in range(200):
                    optimizer.zero_grad()
                    loss = default_loss(m, task.data[step % len(task.data)])
                    loss.backward()
                    optimizer.step()
                    curve.append(float(loss.detach()))
                losses.append(curve)
            ends = zip(given.parameters(), plain(shared).parameters(), strict=True)
            load = sharing_of(shared).loads()
            row = {"loss": float(np.abs(np.subtract(*losses)).max())}
            row |= {"weights": max(float((a - b).detach().abs().max()) for a, b in ends)}
            row |= {"unused": float((load == 0).mean()), "crowded": float((load > 1).mean())}
            row |= {"least": int(load.min()), "most": int(load.max())}
            out[f"{name}, {kind}"] = show(f"exact: {name}, {kind}", row)
    return out


def maps(args: Any) -> dict[str, Any]:
    """Accuracy of each map at m = n and below, beside the plain network."""
    out = {}
    for name in args.tasks:
        task = Task(name, args.epochs)
        plainly = [task.trained(task.net(s)) for s in range(args.seeds)]
        out[f"{name}, plain"] = show(f"maps: {name}, plain", spread(plainly))
        for kind in KINDS:
            for c in (1, 10, 100):
                nets = [task.net(s) for s in range(args.seeds)]
                got = [task.trained(share(m, weights(m) // c, s, map=kind)) for s, m in enumerate(nets)]
                out[f"{name}, {kind}, {c}x"] = show(f"maps: {name}, {kind}, {c}x", spread(got))
    return out


def sigma(args: Any) -> dict[str, Any]:
    """SGD with momentum at 10x: accuracy for five spreads of the array, with and without scaling of gradients."""
    out, task = {}, Task("digits", args.epochs)
    for scaling in ("mean", "count", "none"):
        got = {}
        for s in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
            shared = share(task.net(0), weights(task.net(0)) // 10, 1, sigma=s, scaling=scaling)
            try:
                learn(shared, task.data, torch.optim.SGD(shared.parameters(), 0.05, 0.9), args.epochs)
                got[f"{s:g}"] = task.judge(shared)
            except BadInput as fault:
                got[f"{s:g}"] = "diverged" if "smaller rate" in str(fault) else str(fault)
        out[scaling] = show(f"sigma: {scaling}", got)
    return out


class Runs:
    """Figures by name, each written as soon as it is known: killed, a race goes on where it was."""

    def __init__(self, args: Any):
        self.how = f"{args.epochs} epochs"

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        known = stored().get("runs", {}).get(self.how, {})
        if name not in known:
            begun = time.process_time()
            value = make()
            found = stored()
            known = found.setdefault("runs", {}).setdefault(self.how, {})
            known[name] = value
            known["cpu_seconds"] = known.get("cpu_seconds", 0.0) + time.process_time() - begun
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        return known[name]


def race(args: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    runs = Runs(args)
    for name in args.tasks:
        task, found = Task(name, args.epochs), {}
        for seed in range(args.seeds):
            for (way, c), value in entrants(task, seed, runs, f"{name}, {seed}, "):
                found.setdefault((way, c), []).append(value)
        for (way, c), values in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
            out[f"{name}, {c}x, {way}"] = show(f"race: {name}, {c}x, {way}", spread(values))
    return out


def entrants(task: Task, seed: int, runs: Runs, at: str) -> Iterator[tuple[tuple[str, int], float]]:
    """((who, compression), accuracy or bytes) of one seed."""
    net = task.net(seed)
    n = weights(net)
    goals = {c: pruned.kept_within(4 * n / c, n) for c in COMPRESSIONS}
    yield ("plain", 1), runs(f"{at}plain", lambda: task.trained(task.net(seed)))
    for c in COMPRESSIONS:
        shared = share(net, n // c, seed)
        yield ("file bytes", c), written(shared, {"biases": False}, seed).nbytes
        yield ("shared", c), runs(f"{at}{c}x, shared", partial(task.trained, shared))
        for way, masks in pruned.AT_START.items():
            k = n // c if way == "random" else goals[c]

            def one(masks: Any = masks, k: int = k) -> float:
                torch.manual_seed(seed)
                return task.trained(pruned.masked(net, masks(net, task.data, k)))

            yield (way, c), runs(f"{at}{c}x, {way}", one)
        for way, wanted in (("narrow, as many weights", n // c), ("narrow, as many bytes", None)):
            width = narrowest(task, wanted, n // c + own(net))
            yield (way, c), runs(f"{at}{c}x, {way}", partial(task.trained, task.net(seed, width)))
    tickets = runs(
        f"{at}tickets", lambda: list(pruned.lottery(net, task.train, goals.values(), task.judge).values())
    )
    for c, value in zip(COMPRESSIONS, tickets, strict=True):
        yield ("lottery ticket", c), value


def narrowest(task: Task, wanted: int | None, numbers: int) -> float:
    """The widest network with at most so many weights, or so many numbers in all, biases and norms included."""
    width, made = 1.0, task.make(1.0)
    while width > 0.002 and (weights(made) > wanted if wanted else weights(made) + own(made) > numbers):
        width *= 0.98
        made = task.make(width)
    return width


PARTS = {
    "exact": exact, "maps": maps, "sigma": sigma, "theory": cost.theory, "memory": cost.memory, "speed": cost.speed,
    "race": race,
}  # fmt: skip


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", type=lambda t: t.split(","), default=list(PARTS))
    ask.add_argument("--tasks", type=lambda t: t.split(","), default=list(TASKS))
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--epochs", type=int, default=10)
    args = ask.parse_args()
    warnings.filterwarnings("ignore", "expandable|Converting a tensor")
    for part in args.parts:
        begun = time.process_time()
        rows = PARTS[part](args)
        took = time.process_time() - begun
        found = stored()  # another task may have ended meanwhile
        at = found.setdefault(part, {"rows": {}, "cpu_seconds": {}})
        at["rows"] |= rows
        at["cpu_seconds"][",".join(args.tasks)] = took
        at["provenance"] = provenance(seeds=args.seeds, epochs=args.epochs)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{part}: {took:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
