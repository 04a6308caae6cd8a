"""ZeRO-Offload: what ordinary training gives, from a device that holds weights and two buckets; and its AdamW."""

import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from offload_runs import GPT, assert_equal, batch, loss_of, made, plain  # noqa: E402

from holdall.errors import BadInput, BudgetError  # noqa: E402
from holdall.training.adam_kernel import Hyper, adamw, naive_adamw, raw, squares, tail_of  # noqa: E402
from holdall.training.base import Run  # noqa: E402
from holdall.training.zero_offload import ZeROOffload  # noqa: E402
from holdall.training.zero_offload_host import Cut  # noqa: E402
from holdall.training.zero_offload_link import Device, Link  # noqa: E402
from holdall.training.zero_offload_plan import plan  # noqa: E402

SMALL = {"bucket": 700, "tile": 900}  # neither divides anything
GROUP = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def vectors(n, seed=0):
    torch.manual_seed(seed)
    return torch.randn(n) * 0.05, torch.zeros(n), torch.zeros(n)


@pytest.mark.parametrize("n", [1, 3, 7, 8, 63, 1024, 4101, 100_003])
def test_the_kernel_is_torchs_fused_adamw_bit_for_bit(n):
    (p, m, v), (slow, low, mid) = vectors(n), (x.double().numpy() for x in vectors(n))
    theirs = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([theirs], **GROUP, fused=True)
    with ThreadPoolExecutor(3) as pool:
        for t in range(1, 5):
            g, hyper = torch.randn(n), Hyper.of(GROUP, t)
            theirs.grad = g * 0.5
            optimizer.step()
            adamw(p, m, v, g, hyper, None, 0.5, tail_of(n, 0, n), pool, 3)
            naive_adamw(slow, low, mid, g.numpy(), hyper, 0.5)
    state = optimizer.state[theirs]
    assert torch.equal(p, theirs.detach())
    assert torch.equal(m, state["exp_avg"]) and torch.equal(v, state["exp_avg_sq"])
    assert np.abs(slow - p.numpy()).max() < 1e-6


def test_the_kernel_reads_and_writes_half_formats():
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        p, m, v = vectors(4101)
        g = torch.randn(4101).to(kind)
        q, r, s, out = p.clone(), m.clone(), v.clone(), torch.empty(4101, dtype=kind)
        hyper = Hyper.of({**GROUP, "maximize": True}, 1)
        adamw(p, m, v, g, hyper, out)
        adamw(q, r, s, -g.float(), Hyper.of(GROUP, 1))
        assert torch.equal(p, q) and torch.equal(m, r) and torch.equal(v, s)
        assert torch.equal(out, p.to(kind))
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, 3.4e38, 65520.0, 0.0, -0.0])
    for kind in (torch.bfloat16, torch.float16):
        out = torch.empty(8, dtype=kind)
        still = Hyper(1.0, 0.0, 1.0, 0.0, 1.0, 1.0, -0.0, 1.0)  # p stays as it is
        adamw(odd.clone(), torch.zeros(8), torch.zeros(8), torch.zeros(8), still, out)
        assert out.isnan().tolist() == odd.to(kind).isnan().tolist()
        assert out.nan_to_num(7).equal(odd.to(kind).nan_to_num(7))
    assert squares(torch.full((5000,), 3.0), 2.0) == pytest.approx(180_000)
    for wrong in (float("inf"), float("nan")):
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            assert not squares(torch.tensor([1.0] * 99 + [wrong]).to(kind)) < float("inf")
    with pytest.raises(BadInput, match="one size"):
        adamw(p, m, v, g[1:], hyper)
    with pytest.raises(BadInput, match="fp32, bf16 or fp16"):
        raw(torch.zeros(3, dtype=torch.float64))


def trained(steps, budget=None, run=None, **knobs):
    run = run or made()
    recipe = ZeROOffload(**{**SMALL, **knobs})
    torch.manual_seed(1)
    with recipe.open(run, budget) as trainee:
        losses = [trainee.step(batch(i)) for i in range(steps * recipe.accumulate)]
        told = dict(trainee.traffic())
    return run, losses, told


@pytest.mark.parametrize("knobs", [{}, {"overlap": False}, {"accumulate": 3}, {"threads": 2}, {"link": 3e6}])
def test_with_fp32_weights_it_is_plain_training_bit_for_bit(knobs):
    """Tied weights, dropout, odd sizes, a frozen and an unused parameter, groups; a slow link changes nothing."""
    run, _, told = trained(4, weights="float32", **knobs)
    assert_equal(run, plain(made(), 4, accumulate=knobs.get("accumulate", 1)))
    numbers = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert (
        told["down_bytes"] == 4 * numbers * 4 * knobs.get("accumulate", 1)
        and told["up_bytes"] == 4 * numbers * 4
    )
    assert (told["buckets_in_backward"] > 10) == knobs.get("overlap", True)


def test_clipping_is_by_the_norm_of_all():
    run, _, _ = trained(4, weights="float32", clip=0.3)
    for p, q in zip(run.model.parameters(), plain(made(), 4, clip=0.3).model.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-6


def mixed(steps, kind, late_from=None):
    """Ordinary mixed precision: half weights, fp32 masters. late_from: updates reach the weights a step later."""
    run = made()
    masters = [p.detach().clone().requires_grad_(p.requires_grad) for p in run.model.parameters()]
    homes = {id(p): g for g in run.optimizer.param_groups for p in g["params"]}
    named = ("lr", "betas", "eps", "weight_decay")
    groups = [
        {"params": [m], **{k: homes[id(p)][k] for k in named}}
        for m, p in zip(masters, run.model.parameters(), strict=True)
    ]
    adam, model, losses = torch.optim.AdamW(groups, fused=True), run.model, []
    model.to(kind)
    torch.manual_seed(1)
    for i in range(steps):
        loss = loss_of(model, batch(i))
        losses.append(float(loss.detach()))
        loss.backward()
        late = late_from is not None and i + 1 >= late_from
        if late:  # the update before this one arrives now
            _put(model, masters)
        for m, p in zip(masters, model.parameters(), strict=True):
            m.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        adam.step()
        if not late:
            _put(model, masters)
    return masters, losses


def _put(model, masters):
    with torch.no_grad():
        for m, p in zip(masters, model.parameters(), strict=True):
            p.copy_(m)


@pytest.mark.parametrize("late_from", [None, 1, 3])
@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_it_equals_mixed_precision_and_late_updates_are_late_by_exactly_one(kind, late_from):
    masters, losses = mixed(6, getattr(torch, kind), late_from)
    run = made()
    seen = []
    torch.manual_seed(1)
    with ZeROOffload(**SMALL, weights=kind, delay=late_from).open(run) as trainee:
        ours = []
        for i in range(6):
            ours.append(trainee.step(batch(i)))
            seen.append(trainee.pending)
        assert trainee.traffic()["late_updates"] == sum(seen)
    assert seen == [int(late_from is not None and i + 1 >= late_from) for i in range(6)]
    assert ours == losses  # each forward pass had the weights that it should
    for p, m in zip(run.model.parameters(), masters, strict=True):
        assert torch.equal(p.detach(), m.detach())


def test_the_device_holds_weights_two_buckets_one_gradient_and_activations():
    run = made()
    numbers = sum(p.numel() for p in run.model.parameters())
    largest = max(p.numel() for p in run.model.parameters())
    sizes = {}

    def count(x):
        if not (x.is_leaf and x.requires_grad):
            sizes[x.untyped_storage()._cdata] = (x.untyped_storage().nbytes(), x)
        return x

    half = copy.deepcopy(run.model).bfloat16()
    own = {p.untyped_storage().data_ptr() for p in half.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss_of(half, batch(0))
    activations = sum(n for n, x in sizes.values() if x.untyped_storage().data_ptr() not in own)
    _, _, told = trained(2, run=run)
    bound = 2 * numbers + 2 * 2 * SMALL["bucket"] + 2 * largest + activations
    assert 2 * numbers + activations // 2 < told["device_peak_bytes"] <= bound * 1.02
    assert told["host_bytes"] >= 14 * numbers

    limit = int(bound * 1.02)
    assert limit < 16 * numbers  # plain training has no place there, without any activations
    with pytest.raises(BudgetError, match="the device"):
        Device(limit).take(16 * numbers, "weights, gradients, masters and moments")
    trained(1, budget=limit)


def test_what_does_not_fit_is_refused_and_leaves_nothing_on_the_account():
    run = made()
    with pytest.raises(BudgetError, match="weights and buckets") as told:
        ZeROOffload(**SMALL).open(run, 1000)
    with ZeROOffload(**SMALL).open(run, told.value.least + 60_000) as trainee:
        with pytest.raises(BudgetError, match="activations"):
            trainee.step(batch(0, rows=40))
        assert trainee.device.held == trainee._weights.nbytes
        trainee.step(batch(0, rows=1, length=7))
        assert trainee.device.held == trainee._weights.nbytes and trainee.steps == 1


def test_gradients_that_overflow_skip_the_step_and_halve_the_scale():
    run, ref = made(), plain(made(), 2)
    torch.manual_seed(1)
    with ZeROOffload(**SMALL, weights="float32", scale=512.0).open(run) as trainee:
        trainee.step(batch(0))
        kept, chance = [p.detach().clone() for p in run.model.parameters()], torch.get_rng_state()
        hook = run.model.embed.weight.register_hook(lambda g: g * float("nan"))
        trainee.step(batch(1))
        hook.remove()
        assert trainee.scale == 256 and trainee.steps == 1 and trainee.traffic()["overflows"] == 1
        assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), kept, strict=True))
        torch.set_rng_state(chance)
        trainee.step(batch(1))
    assert_equal(run, ref)  # Adam's count of steps too
    with ZeROOffload(**SMALL).open(made()) as trainee:
        trainee.model.embed.weight.register_hook(lambda g: g * float("nan"))
        with pytest.raises(BadInput, match="finite ones"):
            trainee.step(batch(0))


def test_a_loop_of_ones_own_and_torchs_states():
    run, ref = made(), plain(made(), 3)
    torch.manual_seed(1)
    with ZeROOffload(**SMALL, weights="float32").open(run) as trainee:
        for i in range(2):
            loss_of(run.model, batch(i)).backward()
            trainee.optimizer.step()
            trainee.optimizer.zero_grad()
        kept, chance = copy.deepcopy(trainee.optimizer.state_dict()), torch.get_rng_state()
        halfway = copy.deepcopy(run.model.state_dict())
    again = made()
    again.model.load_state_dict(halfway)
    with ZeROOffload(**SMALL, weights="float32").open(again) as trainee:
        trainee.optimizer.load_state_dict(kept)
        torch.set_rng_state(chance)
        trainee.step(batch(2))
    assert_equal(again, ref)


def test_a_copy_that_fails_is_told_and_the_device_is_made_right(monkeypatch):
    run, ref = made(), plain(made(), 2)
    torch.manual_seed(1)
    with ZeROOffload(**SMALL, weights="float32").open(run) as trainee:
        real, link = Link._moved, trainee._weights.link

        def fails(self, target, source, add, then):
            if self is link and link.copies == 2:
                raise OSError("the link is down")
            return real(self, target, source, add, then)

        monkeypatch.setattr(Link, "_moved", fails)
        with pytest.raises(OSError, match="link is down"):
            trainee.step(batch(0))
        monkeypatch.setattr(Link, "_moved", real)
        assert trainee.steps == 1  # host memory has the step
        trainee.step(batch(1))
    assert_equal(run, ref)


RANKS = """
import json, os, sys
import torch, torch.distributed as dist
sys.path[:0] = sys.argv[3].split(os.pathsep)
from offload_runs import batch, made
from holdall.training.zero_offload import ZeROOffload
SMALL = {"bucket": 700, "tile": 900}
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
told = {}
run = made()
for module in run.model.modules():
    module.eval()  # without dropout, whose numbers are each rank's own
with ZeROOffload(**SMALL, weights="float32", clip=0.3, scale=64.0, delay=3).open(run) as trainee:
    for i in range(4):
        ids, wanted = batch(i, rows=4)
        if i == 1:  # one rank overflows: both skip
            hook = run.model.idle.register_hook(lambda g: g)
            if rank:
                bad = run.model.embed.weight.register_hook(lambda g: g * float("inf"))
        trainee.step((ids[2 * rank : 2 * rank + 2], wanted[2 * rank : 2 * rank + 2]))
        if i == 1 and rank:
            bad.remove()
    told = dict(trainee.traffic(), scale=trainee.scale, own=trainee._host.p.numel())
told["equal"] = [p.detach().double().sum().item() for p in run.model.parameters()]
torch.save([p.detach().clone() for p in run.model.parameters()], f"{sys.argv[2]}/rank{rank}.pt")
torch.save({n: run.optimizer.state[p]["exp_avg"] for n, p in run.model.named_parameters() if p in run.optimizer.state},
           f"{sys.argv[2]}/states{rank}.pt")
open(f"{sys.argv[2]}/told{rank}.json", "w").write(json.dumps(told))
dist.destroy_process_group()
"""


def test_two_ranks_share_states_and_skip_together(tmp_path):
    here = str(Path(__file__).parents[1])
    paths = os.pathsep.join([here, *sys.path])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(r), str(tmp_path), paths],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for r in range(2)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=240)
        assert rank.returncode == 0, said
    alone = made()
    for module in alone.model.modules():
        module.eval()
    with ZeROOffload(**SMALL, weights="float32", clip=0.3, delay=3).open(alone) as trainee:
        for i in (0, 2, 3):
            trainee.step(batch(i, rows=4))
    told = [json.loads((tmp_path / f"told{r}.json").read_text()) for r in range(2)]
    kept = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    states = [torch.load(tmp_path / f"states{r}.pt", weights_only=True) for r in range(2)]
    for a, b, p in zip(*kept, alone.model.parameters(), strict=True):
        assert torch.equal(a, b)  # ranks never drift
        assert (a - p.detach()).abs().max() <= 1e-5
    for name, p in alone.model.named_parameters():
        if p in alone.optimizer.state:
            assert torch.equal(states[0][name], states[1][name])
            assert (states[0][name] - alone.optimizer.state[p]["exp_avg"]).abs().max() <= 1e-5
    numbers = sum(p.numel() for p in alone.model.parameters() if p.requires_grad)
    for seen in told:
        assert (
            seen["overflows"] == 1
            and seen["scale"] == 32
            and seen["steps"] == 3
            and seen["late_updates"] == 1
        )
        assert abs(seen["own"] - numbers / 2) <= 2 * numbers / SMALL["bucket"]
    assert (
        sum(seen["down_bytes"] for seen in told) == 4 * numbers * 4
    )  # all ranks together: each gradient once


@pytest.mark.parametrize(
    ("sizes", "capacity", "owners"), [([5, 0, 7, 1], 4, 3), ([63], 1000, 2), ([1, 1], 1, 1)]
)
def test_owners_have_every_element_once(sizes, capacity, owners):
    seen = np.zeros(sum(sizes), int)
    for owner in range(owners):
        cut = Cut.of(sizes, capacity, owners, owner)
        assert sum(t.stop - t.start for t in cut.mine) == cut.own
        for tile in cut.tiles(2):
            assert tile.stop - tile.start <= 2
            seen[tile.start : tile.stop] += 1
    assert (seen == 1).all()


def test_the_plan_says_what_fits_and_what_each_way_of_working_costs():
    facts = {"link": 1e9, "adam": 1e8, "compute": 1.0}
    made = plan(10**8, 10**9, 16 * 10**8, **facts)
    assert made.plain == 16 * 10**8 + 10**9 and made.fits and made.device < made.plain / 2
    assert not plan(10**8, 10**9, 10**9, **facts).fits
    assert made.serial == pytest.approx(1.0 + 0.4 + 1.0)
    assert made.delayed < 0.75 * made.overlapped < made.overlapped < made.serial
    shared = plan(10**8, 10**9, None, **facts, owners=4)
    assert shared.host == pytest.approx(made.host / 4, rel=0.01) and shared.overlapped < made.overlapped


def test_what_it_cannot_train_is_one_clear_line():
    model = GPT()
    with pytest.raises(BadInput, match=r"torch\.optim\.AdamW"):
        ZeROOffload().open(Run(model, torch.optim.SGD(model.parameters())))
    for wrong in ({"weights": "int8"}, {"bucket": 0}, {"delay": -1}, {"link": -1.0}, {"threads": 0}):
        with pytest.raises(BadInput):
            ZeROOffload(**wrong)
