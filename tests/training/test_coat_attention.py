"""COAT's activations where attention is written in several ways, and under autocast."""

import copy

import pytest
import torch
from torch.nn import functional as F

from holdall.training.coat_activations import coat_


def slopes(model, run):
    model.zero_grad()
    run(model).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


class Attention(torch.nn.Module):
    def __init__(self, drop=0.0, eager=False):
        super().__init__()
        self.drop, self.eager, self.proj = drop, eager, torch.nn.Linear(64, 3 * 64)

    def forward(self, x):
        q, k, v = self.proj(x).view(2, 30, 3, 4, 16).permute(2, 0, 3, 1, 4)
        if self.eager:
            return (q @ k.mT / 4).softmax(-1) @ v
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop, is_causal=True)


@pytest.mark.parametrize(
    ("part", "least"),
    [
        (Attention(), 0.999),
        (Attention(eager=True), 0.998),
        (Attention(drop=0.3), 0.999),
        (torch.nn.TransformerEncoderLayer(64, 4, 96, dropout=0.0, batch_first=True), 0.998),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_of_all_sorts(part, least, autocast):
    def run(model, x):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, autocast):
            y = model[0](x).float()
            return (y * torch.linspace(-1, 1, y.numel()).view(y.shape).cos()).sin().sum()

    torch.manual_seed(0)
    model, x = torch.nn.ModuleList([copy.deepcopy(part)]), torch.randn(2, 30, 64, requires_grad=True)
    found = []
    for convert in (lambda m: m, lambda m: coat_(m, blocks=["0"])):
        convert(model)
        x.grad = None
        found.append(slopes(model, lambda m: run(m, x)))
        found.append(x.grad.double().flatten())
    assert torch.cosine_similarity(found[0], found[2], 0) > least
    assert torch.cosine_similarity(found[1], found[3], 0) > least
    assert not found[0].equal(found[2])
