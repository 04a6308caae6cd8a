"""A small transformer over bytes of real text, written as people write theirs: nothing in it knows of Holdall."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """Weights of input and output are tied."""

    def __init__(self, d=48, layers=2, heads=3, context=64, vocab=256):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        self.head.weight = self.wte.weight

    def forward(self, ids, wanted=None):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln(x))
        return logits if wanted is None else F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())


def windows(text, steps, batch, length, seed=0):
    """steps of (ids, next ids), [batch, length], from places all over the text."""
    data = torch.frombuffer(bytearray(text.encode("latin-1", "ignore")), dtype=torch.uint8).long()
    made = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(data) - length - 1, (batch,), generator=made)
        rows = torch.stack([data[i : i + length + 1] for i in at])
        yield rows[:, :-1], rows[:, 1:]
