"""fit_training chooses what fits, predicts what is held, and changes no result; `train-plan` tells it beforehand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from holdall.cli import app
from holdall.errors import BadInput, BudgetError
from holdall.parts.losses import default_loss
from holdall.training import COATAdamW, Fuyou, fit_training
from holdall.training.base import Run
from holdall.training.facts import facts, part


def made():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(320, 320), nn.GELU(), nn.Dropout(0.1)) for _ in range(8)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(320))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def batches(count=4):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(64, 320, generator=draw), torch.randn(64, 320, generator=draw)) for _ in range(count)
    ]


def trained(model, optimizer, loader):
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    torch.manual_seed(2)
    for batch in loader:
        optimizer.zero_grad()
        default_loss(model, batch).backward()
        optimizer.step()
        schedule.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def plain():
    model, optimizer = made()
    trained(model, optimizer, batches())
    return weights(model)


@pytest.fixture(scope="module")
def needed(plain):
    """Of a process that has trained before: what torch sets up once is none of it."""
    model, optimizer = made()
    return facts(Run(model, optimizer), batches()[0], default_loss)


def test_what_fits_stays_as_it_is(plain):
    said = []
    model, optimizer = made()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    drawn = torch.get_rng_state()
    fitted = fit_training(model, optimizer, iter(batches()), "1GB", say=said.append)
    assert fitted[0] is model and fitted[1] is optimizer and fitted.session is None
    assert all(t.equal(before[n]) for n, t in model.state_dict().items()), "a rehearsal changes nothing"
    assert torch.get_rng_state().equal(drawn) and all(p.grad is None for p in model.parameters())
    assert said == [s for s in said if "torch alone, about" in s] and len(said) == 1
    trained(*fitted)
    assert weights(model).equal(plain), "the first batch of an iterator is trained on, too"


def test_what_does_not_fit_goes_to_disk_and_comes_out_the_same(plain, needed):
    model, optimizer = made()
    for p in model.parameters():
        p.data = torch.from_numpy(p.detach().numpy().copy())  # memory that torch cannot give back
    with fit_training(model, optimizer, batches(), needed.plain * 3 // 4, say=lambda _: None) as fitted:
        assert fitted.way.name.startswith("training.fuyou") and fitted.way.exact
        trained(*fitted)
    assert weights(model).equal(plain)


def test_what_is_away_reads_as_nan_and_comes_back():
    model, optimizer = made()
    before = weights(model)
    with pytest.raises(BudgetError) as caught:
        Fuyou().open(Run(model, optimizer), 1)
    with Fuyou().open(Run(model, optimizer), caught.value.least):
        assert weights(model).isnan().any()
    assert weights(model).equal(before)


def test_clipping_and_accumulation_are_done_where_gradients_are(needed):
    """In the loop there would be none left to clip where they are used within backward."""

    def looped(model, optimizer, loader, clip=0.0):
        torch.manual_seed(2)
        for i, batch in enumerate(loader):
            (default_loss(model, batch) / 2).backward()
            if i % 2:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()

    looped(*(plain := made()), batches(), clip=0.01)
    for budget in ("1GB", needed.plain * 3 // 4):
        model, optimizer = made()
        with fit_training(
            model, optimizer, batches(), budget, clip=0.01, accumulate=2, say=lambda _: None
        ) as fitted:
            assert (fitted.session is None) == (budget == "1GB")
            looped(*fitted)
        assert weights(model).equal(weights(plain[0]))
    with (
        fit_training(*made(), batches(), needed.plain * 3 // 4, say=lambda _: None) as fitted,
        pytest.raises(BadInput, match=r"optimizer\.step\(\) first.*accumulate"),
    ):
        looped(*fitted)


def test_activations_alone_go_to_disk_where_that_is_enough():
    alone("only_activations")


def alone(act):
    """In a process of its own: holes that other tests leave in memory would count."""
    begin = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; from holdall.memory import return_early"
    code = f"{begin}; return_early(); import test_fitting; test_fitting.{act}()"  # what is freed is not held
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def only_activations():
    """Of a model with more activations than states."""

    def wide():
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(10)]
        model = nn.Sequential(*layers)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    data = [(torch.randn(16_000, 256), torch.randn(16_000, 256))]
    model, optimizer = wide()
    trained(model, optimizer, data)
    with fit_training(*wide(), data, "65%", say=lambda _: None) as fitted:
        assert fitted.way.name.startswith("training.ssdtrain")
        trained(*fitted)
        assert fitted.session.traffic()["written_bytes"] > 10_000_000
    assert weights(fitted[0]).equal(weights(model))


def test_eight_bits_only_where_that_is_allowed(plain, needed):
    limit = needed.plain - needed.states // 2
    with fit_training(*made(), batches(), limit, lossy=True, say=lambda _: None) as fitted:
        assert isinstance(fitted[1], COATAdamW) and not fitted.way.exact and fitted.way.predicted <= limit
        trained(*fitted)
    assert 0 < (weights(fitted[0]) - plain).norm() / plain.norm() < 0.05


def test_facts_are_those_of_the_tensors(needed):
    model, _ = made()
    count = sum(p.numel() for p in model.parameters())
    assert needed.parameters == count and needed.gradients == 4 * count and needed.states == 8 * count
    assert needed.weights == 4 * count + sum(b.nbytes for b in model.buffers())
    assert needed.passing >= needed.gradients and needed.plain > 16 * count
    cut = part({"a": torch.ones(6, 2), "b": [torch.ones(6), 3], "c": torch.ones(2)}, 2)
    assert (
        cut["a"].shape == (2, 2) and cut["b"][0].shape == (2,) and cut["b"][1] == 3 and cut["c"].shape == (2,)
    )


def test_faults_are_named(needed):
    with pytest.raises(BudgetError) as caught:
        fit_training(*made(), batches(), 100_000)
    assert 100_000 < caught.value.least < needed.plain
    model, _ = made()
    with pytest.raises(BadInput, match="LBFGS"):
        fit_training(model, torch.optim.LBFGS(model.parameters()), batches(), "1GB")
    with pytest.raises(BadInput, match="no batches"):
        fit_training(*made(), [], "1GB")
    with pytest.raises(BadInput, match="nothing to train"):
        fit_training(model.requires_grad_(False), torch.optim.AdamW(model.parameters()), batches(), "1GB")


@pytest.mark.slow
def test_the_example_trains_a_real_model_in_half_of_its_memory():
    path = Path(__file__).parents[2] / "examples" / "finetune_small_memory.py"
    words = [sys.executable, str(path), "--steps", "1", "--length", "32"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held = [int(n.replace(",", "")) for n in re.findall(r"([0-9,]+) MB held", done.stdout)]
    assert len(held) == 1 and held[0] < 1300 and "training.fuyou" in done.stderr
    assert "read back the same: True" in done.stdout


def test_a_plan_before_anything_is_loaded():
    done = CliRunner().invoke(
        app, ["train-plan", "smollm2", "--memory", "1.2GB", "--length", "128", "--workers", "2,8", "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    rows = {f"{w['method']}: {w['how']}": w for w in told["ways"]}
    count = told["parameters"]
    assert count == 134_515_008
    first, third = (rows[f"training.zero: stage {s}, 8 workers"]["memory"] for s in (1, 3))
    assert first - third == pytest.approx(8 * count * 7 / 8, rel=1e-3)
    assert rows["plain: torch"]["memory"] > 16 * count and not rows["plain: torch"]["fits"]
    assert rows["training.fuyou: all of it on disk"]["memory"] < 6 * count
    assert CliRunner().invoke(app, ["train-plan", "smollm2", "--memory", "1GB", "--workers", "x"]).exit_code
