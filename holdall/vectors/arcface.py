"""What pooling is measured on: a small network, ArcFace, some of the digits to learn from. Needs torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from holdall.optional import need
from holdall.vectors.pooling import GeMPlus

_SCALE, _MARGIN, _BATCH, _RATE = 16.0, 0.3, 64, 3e-3
TRAINED_P = 3.0


class Net(nn.Module):
    """Three convolutions, what refines their map, pooling, a whitening layer: [B, 1, H, W] to [B, 32], length one."""

    def __init__(self, width: int = 64, dim: int = 32):
        super().__init__()
        steps = [(1, width // 4), (width // 4, width // 2), (width // 2, width)]
        self.body = nn.Sequential(*(m for a, b in steps for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())))
        self.refine: nn.Module = nn.Identity()
        self.pool: nn.Module = GeMPlus(TRAINED_P)
        self.white = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.white(self.pool(self.refine(self.body(x)))), dim=-1)


def digits() -> tuple[Tensor, np.ndarray]:
    """(images [1797, 1, 8, 8] in [0, 1], which digit each is)."""
    found = need("sklearn.datasets", "test").load_digits()
    return torch.tensor(found.images[:, None] / 16, dtype=torch.float32), found.target


def trained(images: Tensor, labels: Tensor, epochs: int = 15, seed: int = 0) -> Net:
    """Cross-entropy of cosines with a vector for each class, the right one's angle made wider by a margin."""
    torch.manual_seed(seed)
    net = Net()
    classes = nn.Parameter(torch.randn(int(labels.max()) + 1, net.white.out_features))
    rule = torch.optim.AdamW([*net.parameters(), classes], _RATE)
    for _ in range(epochs):
        for some in torch.randperm(len(images)).split(_BATCH):
            near = (net(images[some]) @ functional.normalize(classes, dim=1).T).clamp(-1 + 1e-6, 1 - 1e-6)
            right = functional.one_hot(labels[some], len(classes)).bool()
            logits = _SCALE * torch.where(right, torch.cos(torch.acos(near) + _MARGIN), near)
            rule.zero_grad()
            functional.cross_entropy(logits, labels[some]).backward()
            rule.step()
    return net.eval().requires_grad_(False)


def precision(vectors: Tensor, labels: np.ndarray, every: int = 4) -> float:
    """Mean average precision: each `every`-th asks for the others of its label."""
    asked, found = np.arange(0, len(labels), every), []
    for i, row in zip(asked, (vectors[asked] @ vectors.T).numpy(), strict=True):
        row[i] = -np.inf
        hit = (labels == labels[i])[np.argsort(-row, kind="stable")][:-1]
        found.append((hit * np.cumsum(hit) / np.arange(1, len(hit) + 1)).sum() / hit.sum())
    return float(np.mean(found))
