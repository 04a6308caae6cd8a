"""What sharing costs and saves: variances of inner products, resident memory of training, time of a step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from weights_rps_tasks import TASKS, show, weights

from holdall.memory import release, return_early
from holdall.meter import Meter, resident_bytes
from holdall.parts.losses import default_loss
from holdall.weights import sharing_theory
from holdall.weights.sharing import in_weight_space, share

HERE = Path(__file__).parent
KINDS = ("plain", "shift", "permute", "roast", "hashed")


def theory(args: Any) -> dict[str, Any]:
    """Variances over the formulas' by drawing, and where sharing and pruning by size cross for power laws."""
    from holdall.weights.sharing_kernels import scatter, spot
    from holdall.weights.sharing_map import Map, Segment

    rng, out = np.random.default_rng(0), {}
    x = (rng.normal(size=256) * np.arange(1, 257) ** -0.5).astype(np.float32)
    y, none = (0.5 * x + 0.5 * rng.normal(size=256)).astype(np.float32), np.zeros(0, np.float32)
    for m in (16, 64, 128):
        row = {}
        said = {"hashed": sharing_theory.sharing_variance, "permute": sharing_theory.fold_variance}
        for kind, formula in said.items():
            sketch, drawn = np.zeros((2, m), np.float32), []
            for seed in range(20000):
                sketch[:] = 0
                at = spot(Map(kind, m, 1, seed), Segment("x", (256,), 0, 1.0, 0, m))
                scatter(at, sketch[0], none, np.float32(1), 0, x)
                scatter(at, sketch[1], none, np.float32(1), 0, y)
                drawn.append(float(sketch[0] @ sketch[1]))
            row[kind] = float(np.var(drawn) / formula(x, y, m))
        masks = rng.random((20000, 256)) < m / 256
        row["pruned"] = float(np.var(masks @ (x * y) * 256 / m) / sharing_theory.pruning_variance(x, y, m))
        out[f"drawn / told, m = {m}"] = show(f"theory: drawn / told, m = {m}", row)
    for power in (0.0, 0.25, 0.5, 0.6, 0.75, 1.0):
        v = np.arange(1, 4097) ** -power
        least, most = sharing_theory.crossover(v, v)
        row = (
            {"sharing wins at n/m from": 4096 / most, "to": 4096 / least}
            if most
            else {"sharing wins": "never"}
        )
        out[f"power law {power}"] = show(f"theory: norm of i^-{power}, n = 4096", row)
    return out


class Texts(nn.Module):
    """A table of 30,000 rows, two layers of 2,048: 12.4 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30000, 256)
        self.layers = nn.Sequential(
            nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
        )

    def forward(self, ids: torch.Tensor) -> Any:
        return self.layers(self.table(ids).mean(1))


def texts(batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 30000, (batch, 32), generator=draw), torch.randint(
        0, 10, (batch,), generator=draw
    )


def stepper(module: nn.Module, shared: bool, batch: Any) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    if shared:
        optimizer = in_weight_space(optimizer, module)

    def step() -> None:
        optimizer.zero_grad()
        default_loss(module, batch).backward()
        optimizer.step()

    step.optimizer = optimizer  # type: ignore[attr-defined]
    return step


def child(compression: int) -> None:
    """In a process of its own: resident bytes of weights, gradients, Adam's state and all that a step needs."""
    return_early()
    module, batch = nn.Sequential(nn.Embedding(9, 9), nn.Flatten(), nn.Linear(9, 10)), texts()
    small = share(module, 50)
    stepper(small, True, (torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, dtype=torch.long)))()
    release()
    before = resident_bytes()
    module = Texts()
    if compression > 1:
        module = share(module, weights(module) // compression)
    step = stepper(module, compression > 1, batch)
    release()
    with Meter() as meter:
        start = resident_bytes()
        for _ in range(3):
            step()
    state = [v for s in step.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    held = sum(p.nbytes + p.grad.nbytes for p in module.parameters()) + sum(v.nbytes for v in state)
    print(json.dumps({"peak": start - before + meter.peak_bytes, "weights, gradients, state": held}))


def memory(args: Any) -> dict[str, Any]:
    out = {}
    for c in (1, 2, 10, 100):
        code = f"import weights_rps_cost; weights_rps_cost.child({c})"
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE
        )
        row = {k: v / 1e6 for k, v in json.loads(told.stdout).items()}
        out[f"{c}x"] = show(f"memory (MB): {c}x", row)
    return out


def speed(args: Any) -> dict[str, Any]:
    """CPU time of a step with AdamW at 10x over that of the plain module; least of seven rounds, taken in turn."""
    out = {}
    cases: dict[str, Any] = {name: (make(), load()[0][0]) for name, (make, load) in TASKS.items()}
    cases["texts"] = (Texts(), texts())
    for name, (module, batch) in cases.items():
        steps = {}
        for kind in KINDS:
            own = module if kind == "plain" else share(module, weights(module) // 10, map=kind)
            steps[kind] = stepper(own, kind != "plain", batch)
        turns, took = (2 if name == "texts" else 40), {kind: [] for kind in KINDS}
        for _ in range(7):
            for kind, step in steps.items():
                step()
                begun = time.process_time()
                for _ in range(turns):
                    step()
                took[kind].append((time.process_time() - begun) / turns)
        row = {"plain, ms": 1e3 * min(took["plain"])}
        row |= {kind: min(v) / min(took["plain"]) for kind, v in took.items() if kind != "plain"}
        out[name] = show(f"speed: {name}, batch {len(batch[1])}", row)
    return out
