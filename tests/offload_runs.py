"""A run for tests of training in less memory: a small GPT at odd sizes, real text, and plain training."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from holdall.training.base import Run


class Block(nn.Module):
    """Attention and a layer whose bias stays frozen. (A bias of keys would have no gradient but noise.)"""

    def __init__(self, d):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.up, self.down, self.drop = nn.Linear(d, 2 * d + 1), nn.Linear(2 * d + 1, d), nn.Dropout(0.1)
        self.up.bias.requires_grad_(False)

    def forward(self, x):
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.drop(self.down(F.gelu(self.up(x))))


class GPT(nn.Module):
    """Odd sizes everywhere; the embedding is also the head, and one parameter is never used."""

    def __init__(self, d=21, layers=3, vocab=67):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(vocab, d), nn.ModuleList(Block(d) for _ in range(layers))
        self.head, self.idle = nn.Linear(d, vocab, bias=False), nn.Parameter(torch.ones(5))
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


TEXT = np.frombuffer(Path(os.__file__).read_bytes()[:20_000], np.uint8).astype(np.int64) % 67


def batch(i, rows=2, length=33):
    ids = torch.from_numpy(TEXT[i * rows * (length + 1) :][: rows * (length + 1)].reshape(rows, length + 1))
    return ids[:, :-1], ids[:, 1:].contiguous()


def made(seed=0, dtype=None, **named):
    torch.manual_seed(seed)
    model = GPT(**named).to(dtype or torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0, "lr": 0.003}]
    return Run(model, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True))


def loss_of(model, x):
    return F.cross_entropy(model(x[0]).flatten(0, 1), x[1].flatten())


def plain(run, steps, clip=0.0, accumulate=1):
    torch.manual_seed(1)
    for i in range(steps * accumulate):
        (loss_of(run.model, batch(i)) / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(run.model.parameters(), clip)
            run.optimizer.step()
            run.optimizer.zero_grad()
    return run


def assert_equal(a, b):
    for (name, p), q in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q), name
        for key in ("exp_avg", "exp_avg_sq", "step"):
            x, y = (run.optimizer.state.get(w, {}).get(key) for run, w in ((a, p), (b, q)))
            assert (x is None) == (y is None), f"{name}: {key}"
            assert x is None or torch.equal(x, y.reshape(x.shape)), f"{name}: {key}"
