"""Fuyou: bit for bit what torch's fused AdamW does in memory, with the optimizer at work inside of backward."""

import copy
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from deadly import DEADLY  # noqa: E402
from offload_runs import assert_equal, batch, loss_of, made, plain  # noqa: E402

from holdall.errors import BadInput, BudgetError, CorruptArtefact  # noqa: E402
from holdall.parts import paging_file  # noqa: E402
from holdall.training.base import Run  # noqa: E402
from holdall.training.fuyou import Fuyou  # noqa: E402
from holdall.training.fuyou_plan import Layer, Rates, choose, order, seconds  # noqa: E402

nn, F = torch.nn, torch.nn.functional


def trained(steps, budget=None, folder=None, **knobs):
    run, recipe = made(), Fuyou(**knobs)
    torch.manual_seed(1)
    with recipe.open(run, budget, folder=folder) as trainee:
        for i in range(steps * recipe.accumulate):
            trainee.step(batch(i))
        told, plan = dict(trainee.traffic()), trainee._profile.plan
        run.optimizer.state.update(trainee._states.pulled())
    return run, told, plan


@pytest.mark.parametrize(
    ("knobs", "clip"),
    [
        ({}, 0),
        ({"overlap": False}, 0),
        ({"accumulate": 3}, 0),
        ({"clip": 0.3}, 0.3),
        ({"clip": 0.3, "accumulate": 2}, 0.3),
        ({"swap": 0.0, "piece": 1024}, 0),
        ({"swap": 1.0}, 0),
    ],
)
@pytest.mark.parametrize("share", [None, 0.9])
def test_it_equals_fused_adamw_bit_for_bit(knobs, clip, share):
    """Tied weights, dropout, odd sizes, frozen and unused parameters, settings by group."""
    budget = None if share is None else 4_000_000
    run, told, _ = trained(5, budget, **knobs)
    assert_equal(run, plain(made(), 5, clip, knobs.get("accumulate", 1)))
    assert told["steps"] == 5 and told["written_bytes"] > 12 * sum(p.numel() for p in run.model.parameters())


def large(steps, budget, **knobs):
    """Layers that can leave memory and do: a budget below what parameters and gradients take."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(301, 301), nn.GELU()) for _ in range(10)))
    run = Run(model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True))
    batches = [(torch.randn(90, 301), torch.randn(90, 301)) for _ in range(steps)]
    ref = copy.deepcopy(run)
    for x, y in batches:
        F.mse_loss(ref.model(x), y).backward()
        if knobs.get("clip"):
            nn.utils.clip_grad_norm_(ref.model.parameters(), knobs["clip"])
        ref.optimizer.step()
        ref.optimizer.zero_grad()
    with Fuyou(**knobs).open(run, budget) as trainee:
        for x in batches:
            trainee.step(x)
        told, plan = dict(trainee.traffic()), trainee._profile.plan
    return run, ref, told, plan


@pytest.mark.parametrize(
    "knobs", [{}, {"clip": 0.02}, {"swap": 1.0}, {"ahead": 0}, {"ahead": 2, "swap": 0.4}]
)
def test_blocks_that_leave_memory_and_activations_on_disk_change_no_bit(knobs):
    run, ref, told, plan = large(4, 8_700_000, **knobs)
    for p, q in zip(run.model.parameters(), ref.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert told["blocks_fetched"] >= 10
    assert (told["blocks_fetched_early"] > 0) == (knobs.get("ahead", 1) > 0)
    assert (told["bytes_of_gradients_spilled"] > 0) == ("clip" in knobs)
    if knobs.get("swap") == 1.0:
        assert told["blocks_swapped"] == 3 * len(plan.on_disk) > 0 and told["bytes_swapped"] > 0


def test_the_optimizer_works_inside_of_backward():
    run = made()
    with Fuyou().open(run) as trainee:
        before = [p.detach().clone() for p in run.model.parameters()]
        loss_of(run.model, batch(0)).backward()
        trainee._updater.drain()
        moved = [not torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True)]
        assert sum(moved) >= len(moved) - 4  # before step was called; all but frozen and unused ones
        assert all(p.grad is None for p in run.model.parameters())  # gradients went where they were used
        assert trainee.traffic()["updates_in_backward"] == trainee.traffic()["updates"] > 0
        assert trainee.steps == 0  # and none of it counts yet
        trainee.optimizer.step()
        assert trainee.steps == 1


def test_a_loop_of_ones_own_and_a_schedule():
    run, ref = made(), made()
    schedules = [torch.optim.lr_scheduler.LinearLR(r.optimizer, 1.0, 0.1, 4) for r in (run, ref)]
    with Fuyou().open(run) as trainee:
        for i in range(4):
            for r, optimizer, schedule in zip(
                (run, ref), (trainee.optimizer, ref.optimizer), schedules, strict=True
            ):
                torch.manual_seed(i)
                loss_of(r.model, batch(i)).backward()
                optimizer.step()
                optimizer.zero_grad()
                r.optimizer.step if r is ref else setattr(r.optimizer, "_opt_called", True)
                schedule.step()
        states = copy.deepcopy(trainee.optimizer.state_dict())
    assert_equal(run, ref)
    again = made()
    with Fuyou().open(again) as trainee:  # torch's own states go in, too
        trainee.optimizer.load_state_dict(ref.optimizer.state_dict())
        found = trainee.optimizer.state_dict()
    for key, state in ref.optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(states["state"][key][name], state[name])
            assert torch.equal(found["state"][key][name], state[name])


def test_a_delayed_norm_clips_by_the_step_before():
    ref, norms = made(), []
    torch.manual_seed(1)
    for i in range(4):
        loss_of(ref.model, batch(i)).backward()
        grads = [p.grad for p in ref.model.parameters() if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
        factor = torch.clamp(0.3 / (norms[max(i - 1, 0)] + 1e-6), max=1.0)
        for g in grads:
            g.mul_(factor)
        ref.optimizer.step()
        ref.optimizer.zero_grad()
    run, told, _ = trained(4, clip=0.3, norm="delayed")
    for p, q in zip(run.model.parameters(), ref.model.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-6
    assert 0 < told["updates_in_backward"] < told["updates"]  # the first step has no norm to go by


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_fp32_masters(dtype):
    run = made(dtype=dtype)
    ref = made(dtype=dtype)
    masters = [p.detach().float().requires_grad_(p.requires_grad) for p in ref.model.parameters()]
    homes = {id(p): g for g in ref.optimizer.param_groups for p in g["params"]}
    adam = torch.optim.AdamW(
        [
            {"params": [m], **{k: homes[id(p)][k] for k in ("weight_decay", "lr", "betas")}}
            for m, p in zip(masters, ref.model.parameters(), strict=True)
        ],
        fused=True,
    )
    torch.manual_seed(1)
    for i in range(4):
        loss_of(ref.model, batch(i)).backward()
        for m, p in zip(masters, ref.model.parameters(), strict=True):
            m.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        adam.step()
        with torch.no_grad():
            for m, p in zip(masters, ref.model.parameters(), strict=True):
                p.copy_(m)
    torch.manual_seed(1)
    with Fuyou().open(run) as trainee:
        for i in range(4):
            trainee.step(batch(i))
    for p, q in zip(run.model.parameters(), ref.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_step_whose_gradients_overflow_is_taken_back_and_the_scale_halves():
    run, ref = made(), plain(made(), 2)
    torch.manual_seed(1)
    with Fuyou(scale=1024.0, piece=1024).open(run) as trainee:
        trainee.step(batch(0))
        kept = [p.detach().clone() for p in run.model.parameters()]
        chance = torch.get_rng_state()
        hook = run.model.embed.weight.register_hook(lambda g: g * float("inf"))  # the last one to come
        trainee.step(batch(1))
        hook.remove()
        assert trainee.scale == 512 and trainee.steps == 1 and trainee.traffic()["overflows"] == 1
        for p, q in zip(run.model.parameters(), kept, strict=True):
            assert torch.equal(p, q)
        torch.set_rng_state(chance)
        trainee.step(batch(1))
    assert_equal(run, ref)  # a power of two changes no bit


def test_a_failing_disk_takes_the_step_back(monkeypatch):
    run, ref = made(), plain(made(), 3)
    torch.manual_seed(1)
    real = os.pwrite
    with Fuyou(piece=1024).open(run) as trainee:
        trainee.step(batch(0))
        for n in (1, 2, 9):
            kept, chance, calls = (
                [p.detach().clone() for p in run.model.parameters()],
                torch.get_rng_state(),
                [],
            )

            def fails(*args, calls=calls, n=n):
                calls.append(1)
                if len(calls) == n:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*args)

            monkeypatch.setattr(paging_file.os, "pwrite", fails)
            with pytest.raises(OSError, match="free some space"):
                trainee.step(batch(1))
            monkeypatch.setattr(paging_file.os, "pwrite", real)
            assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), kept, strict=True))
            torch.set_rng_state(chance)
        trainee.step(batch(1))
        trainee.step(batch(2))
    assert_equal(run, ref)


KILLED = """
import sys, numpy, torch
sys.path.insert(0, sys.argv[4])
from offload_runs import made, batch
from holdall.training.fuyou import Fuyou
from holdall.parts import paging_file
n = int(sys.argv[2])
paging_file.os = type("os", (), {**vars(os), "pwrite": staticmethod(deadly(os.pwrite)),
                                 "fdatasync": staticmethod(deadly(os.fdatasync))})
run = made()
with Fuyou(piece=1024).open(run, folder=sys.argv[1]) as trainee:
    print("from", trainee.steps, flush=True)
    for i in range(trainee.steps, int(sys.argv[3])):
        torch.manual_seed(i)
        trainee.step(batch(i))
        print("did", i + 1, flush=True)
torch.save([p.detach().clone() for p in run.model.parameters()], sys.argv[1] + "/end.pt")
"""


def test_a_run_that_is_killed_goes_on_with_the_last_step_that_counted(tmp_path):
    ref = made()
    for i in range(3):
        torch.manual_seed(i)
        loss_of(ref.model, batch(i)).backward()
        ref.optimizer.step()
        ref.optimizer.zero_grad()

    def go(n):
        here = str(Path(__file__).parents[1])
        command = [sys.executable, "-c", DEADLY + KILLED, str(tmp_path), str(n), "3", here]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    told = go(59)
    assert told.returncode == -9, told.stderr
    assert told.stdout.endswith("did 2\n")  # in the middle of the third
    told = go(0)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("from 2")
    for p, q in zip(torch.load(tmp_path / "end.pt", weights_only=True), ref.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert sorted(os.listdir(tmp_path)) == ["end.pt", "fuyou.states"]


def test_a_file_that_is_damaged_or_of_another_model_is_refused(tmp_path):
    trained(2, folder=str(tmp_path), piece=1024)
    kept = (tmp_path / "fuyou.states").read_bytes()
    with pytest.raises(BadInput, match="the states of this model"):
        Fuyou().open(made(vocab=66), folder=str(tmp_path))
    raw = bytearray(kept)
    for at in range(len(raw) * 3 // 4, len(raw), 4096):
        raw[at + 7] ^= 1  # both places of the last pieces
    (tmp_path / "fuyou.states").write_bytes(raw)
    with pytest.raises(CorruptArtefact, match="not what was written"):
        Fuyou().open(made(), folder=str(tmp_path))
    (tmp_path / "fuyou.states").write_bytes(b"\0" * len(kept))
    with pytest.raises(CorruptArtefact, match="no record"):
        Fuyou().open(made(), folder=str(tmp_path))
    (tmp_path / "fuyou.states").write_bytes(kept)
    with Fuyou(piece=4096).open(made(), folder=str(tmp_path)) as trainee:  # pieces as the file has them
        assert trainee.steps == 2 and trainee._states.size == 1024


def test_what_it_cannot_train_is_one_clear_line():
    run = made()
    with pytest.raises(BadInput, match=r"torch\.optim\.AdamW"):
        Fuyou().open(Run(run.model, torch.optim.SGD(run.model.parameters())))
    with pytest.raises(BadInput, match="amsgrad"):
        Fuyou().open(Run(run.model, torch.optim.AdamW(run.model.parameters(), amsgrad=True)))
    with pytest.raises(BudgetError, match="fuyou"):
        Fuyou().open(run, 1000)
    assert run.model(batch(0)[0]).isfinite().all()
    sparse = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 9))
    with (
        Fuyou().open(Run(sparse, torch.optim.AdamW(sparse.parameters()))) as trainee,
        pytest.raises(BadInput, match="dense gradients"),
    ):
        trainee.step((torch.tensor([1, 2]), torch.tensor([2, 3])))
    for wrong in ({"norm": "x"}, {"piece": 0}, {"accumulate": 0}, {"swap": 2.0}, {"clip": -1.0}):
        with pytest.raises(BadInput):
            Fuyou(**wrong)


LAYERS = [
    Layer(flops, size, 10**6, 10**4)
    for flops, size in ((4e9, 10**7), (1e9, 10**7), (2e9, 10**7), (8e9, 10**7))
]


def test_the_plan_keeps_what_saves_most_work_a_byte():
    assert order(LAYERS) == [3, 0, 2, 1]
    assert order([Layer(1e9, 10, 0, 0)] * 3) == [2, 1, 0]
    slow, fast = Rates(1e9, 1e3, 1e3, 1e9), Rates(1e9, 1e15, 1e15, 1e15)
    plan = choose(LAYERS, fast, 10**6, memory=10**4)
    assert plan.swapped == 4 * 10**7 and len(plan.on_disk) == 4  # an infinitely fast disk: swap all
    assert choose(LAYERS, slow, 10**6, memory=10**4).swapped == 0  # a very slow one: recompute all
    plan = choose(LAYERS, slow, 0, memory=24 * 10**6)
    assert plan.kept == {3, 0} or plan.kept == {3}  # memory first, by what it saves
    assert choose(LAYERS, fast, 10**6, share=0.5).kept == {3, 0}


def test_the_time_of_a_step_is_u_shaped_in_what_is_swapped():
    rates = Rates(1e10, 2e7, 2e7, 1e12, halves=True)
    times = []
    for k in range(5):
        kept = order(LAYERS)[:k]
        stored = sum(LAYERS[i].activations for i in kept)
        times.append(sum(seconds(LAYERS, rates, 10**6, range(4), stored, sum(LAYERS[i].flops for i in kept))))
    best = times.index(min(times))
    assert 0 < best < 4 and times[0] > min(times) < times[4]
    plan = choose(LAYERS, rates, 10**6, memory=0, all_stay=True)
    assert len(plan.on_disk) == best and plan.seconds == pytest.approx(min(times))
