"""Two small real tasks for shared, pruned and narrow networks, and the training that all of them get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from holdall.weights.sharing import NAME, in_weight_space, shareable
from holdall.weights.training import accuracy, digits, learn

CIFAR = Path(__file__).parent.parent.parent / "shared" / "data" / "images" / "cifar10.npz"


def mlp(width: float = 1.0) -> nn.Module:
    a, b = max(1, round(256 * width)), max(1, round(128 * width))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, a), nn.BatchNorm1d(a), nn.ReLU(), nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(),
        nn.Linear(b, 10),
    )  # fmt: skip


def cnn(width: float = 1.0) -> nn.Module:
    a, b = max(1, round(24 * width)), max(1, round(48 * width))
    return nn.Sequential(
        nn.Conv2d(3, a, 3, 2, 1), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Flatten(), nn.Linear(16 * b, 10),
    )  # fmt: skip


def cifar(batch: int = 50) -> tuple[list[Any], list[Any]]:
    with np.load(CIFAR) as found:
        x, y = torch.from_numpy(found["x"]).float(), torch.from_numpy(found["y"]).long()
    x = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2) / 64 - 2, 2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    batches = list(zip(x[order].split(batch), y[order].split(batch), strict=True))
    return batches[: 1500 // batch], batches[1500 // batch :]


TASKS = {"digits": (mlp, lambda: digits(50)), "cifar": (cnn, cifar)}


class Task:
    """A task, a network for it, and the training that all get."""

    def __init__(self, name: str, epochs: int):
        self.make, load = TASKS[name]
        self.data, self.held = load()
        self.epochs = epochs

    def net(self, seed: int, width: float = 1.0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make(width)

    def train(self, module: nn.Module, epochs: int | None = None) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=0.0)
        if NAME in dict(module.named_parameters()):
            optimizer = in_weight_space(optimizer, module)
        learn(module, self.data, optimizer, epochs or self.epochs)

    def judge(self, module: nn.Module) -> float:
        return 100 * accuracy(module, self.held)

    def trained(self, module: nn.Module) -> float:
        self.train(module)
        return self.judge(module)


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in shareable(module, False).values())


def own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters()) - weights(module)


def show(name: str, row: dict[str, Any]) -> dict[str, Any]:
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    print(f"{name:34s}{told}", flush=True)
    return row
