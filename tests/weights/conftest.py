import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdall.weights import Model, quality
from holdall.weights.scaling import windows


@pytest.fixture(scope="session")
def corner():
    """A corner of SmolLM2 that still runs as a transformers model."""
    return quality.real()


@pytest.fixture(scope="session")
def learned(corner, once):
    """A small model that has learned the calibration text in float, so that its losses mean something."""
    x = Model({}, corner.files | {"config.json": json.dumps(_small(corner)).encode()})
    x.state = load_file(once("learned.safetensors", lambda to: save_file(_learnt(x), to)))
    return x


def _small(corner):
    small = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    return corner.config | small | {"head_dim": 32, "num_hidden_layers": 3}


def _learnt(x):
    draw = torch.Generator().manual_seed(0)
    for name, p in x.skeleton().named_parameters():
        if not name.startswith("lm_head"):
            x.state[name] = torch.ones(p.shape) if p.ndim == 1 else torch.randn(p.shape, generator=draw) * 0.1
    module, tokens = x.build().requires_grad_(True), windows(x, 150, 96)
    adam = torch.optim.AdamW(module.parameters(), 4e-3)
    for _ in range(150):
        some = tokens[torch.randint(len(tokens), (12,), generator=draw)]
        loss = module(input_ids=some, labels=some).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert float(loss.detach()) < 3.0
    return {n: p.detach().clone() for n, p in module.named_parameters() if not n.startswith("lm_head")}
