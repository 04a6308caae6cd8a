"""EfficientQAT as a long job: it is killed and goes on, and holds one block."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdall.packed import Packed
from holdall.weights import EfficientQAT
from holdall.weights.block_training import BlockTraining
from holdall.weights.token_loss import TokenLoss
from holdall.weights.unfinished import Unfinished

QUICK = EfficientQAT(windows=8, window=64, steps=4)

KILLED = """
import os, signal, sys
from holdall.weights import EfficientQAT, quality
from holdall.weights.block_training import BlockTraining
from holdall.weights.token_loss import TokenLoss
where, path = sys.argv[1:]
learn, loss, calls = BlockTraining._learn, TokenLoss.__call__, [0]
def stop(self, k, *rest):
    if where == "block" and k == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, k, *rest)
def stop_steps(self, module, ids):
    calls[0] += 1
    if where == "steps" and calls[0] == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, module, ids)
BlockTraining._learn, TokenLoss.__call__ = stop, stop_steps
EfficientQAT(windows=8, window=64, steps=40).encode(quality.real(), "3bit", to=path)
"""


@pytest.fixture(scope="module")
def undisturbed(corner):
    return EfficientQAT(windows=8, window=64, steps=40).encode(corner, "3bit").to_bytes()


@pytest.mark.parametrize("where", ["block", pytest.param("steps", marks=pytest.mark.slow)])
def test_killed_it_goes_on_and_gives_the_same_bytes(corner, undisturbed, tmp_path, where, monkeypatch):
    path = str(tmp_path / "a.hold")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, where, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {p.name for p in (tmp_path / "a.hold.unfinished").iterdir()}
    assert (
        not Path(path).exists() and "block-0.hold" in left and ("block-1.hold" in left) == (where == "steps")
    )
    blocks, steps = [], []
    real, loss = BlockTraining._learn, TokenLoss.__call__
    monkeypatch.setattr(BlockTraining, "_learn", lambda self, k, *a: (blocks.append(k), real(self, k, *a))[1])
    monkeypatch.setattr(TokenLoss, "__call__", lambda *a: (steps.append(1), loss(*a))[1])
    resumed = EfficientQAT(windows=8, window=64, steps=40).encode(corner, "3bit", to=path)
    assert blocks == ([1] if where == "block" else []) and len(steps) == (40 if where == "block" else 20)
    assert resumed.to_bytes() == undisturbed
    assert [p.name for p in tmp_path.iterdir()] == ["a.hold"]


def test_parts_of_other_inputs_are_not_used(corner, tmp_path):
    path = tmp_path / "a.hold"
    work = Unfinished(tmp_path / "a.hold.unfinished", "other inputs")
    work.put("block-0", Packed({}, {"room": "weights", "method": {}, "error": {}}))
    packed = QUICK.encode(corner, to=str(path))
    assert packed.to_bytes() == QUICK.encode(corner).to_bytes()


PEAK = """
import json, sys, torch
from holdall.memory import return_early
return_early()  # what is freed is not held
from holdall.meter import Meter
from holdall.weights import EfficientQAT, Model, quality
corner = quality.real()
shape = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2}
recipe = EfficientQAT(windows=2, window=32, steps=1, epochs=1, bits=2)
recipe.encode(corner)  # what is loaded and compiled once
for blocks in (2, 3, 6):
    config = corner.config | shape | {"num_hidden_layers": blocks}
    x = Model({}, corner.files | {"config.json": json.dumps(config).encode()})
    for name, p in x.skeleton().named_parameters():
        if not name.startswith("lm_head"):
            x.state[name] = torch.ones(p.shape) if p.ndim == 1 else torch.randn(p.shape) * 0.05
    with Meter() as meter:
        recipe.encode(x)
    print(json.dumps([meter.peak_bytes, 4 * sum(t.numel() for n, t in x.state.items() if ".0." in n)]))
"""


@pytest.mark.slow
def test_a_further_block_costs_its_numbers_and_not_its_training():
    """Of what it takes as float, which the caller holds, training it would cost six times as much again."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    _, (few, block), (many, _) = map(json.loads, done.stdout.splitlines())  # the first warms up
    assert 5 * block < few and many - few < 3 * 0.4 * block
