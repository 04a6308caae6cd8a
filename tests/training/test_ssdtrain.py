"""SSDTrain: the same gradients, each memory written once, really gone and back in time; what goes is what fits."""

import copy
import errno
import gc
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdall.errors import BadInput, BudgetError
from holdall.memory import release
from holdall.meter import Meter, resident_bytes
from holdall.training import ssdtrain_plan
from holdall.training.ssdtrain import SSDTrain, offloaded
from holdall.training.ssdtrain_plan import Timed, affordable, life_years, needed
from tests.small_gpt import GPT, windows

TEXT = Path(nn.Module.__init__.__code__.co_filename).read_text()
SMALL = 1 << 12


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    return GPT(d=36, layers=3), list(windows(TEXT, 3, 3, 63))


def grads(model, act):
    model.zero_grad()
    act(model)
    return [p.grad.clone() for p in model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def trained(batch):
    return lambda model: model(*batch).backward()


@pytest.mark.parametrize(
    "knobs", [{}, {"choose": "all"}, {"choose": "all", "window": 1}, {"ahead": 0}, {"ahead": 99}]
)
def test_gradients_are_the_same_bit_for_bit(gpt, knobs):
    model, batches = gpt
    with offloaded(model, small=SMALL, **knobs) as cache:
        for batch in batches * 2:
            mine = grads(model, trained(batch))
            assert same(mine, seen := mine) and len(seen) > 10
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                assert same(mine, grads(model, trained(batch)))
        told, flow = cache.traffic(), cache.flow()
    assert told["written_bytes"] > 0
    if knobs.get("choose") == "all":
        assert told["written_bytes"] == told["unique_bytes"] and flow["read_bytes"] > 0
        assert (flow["prefetched"] > 0) == (knobs.get("window") != 1)
    if knobs.get("ahead") == 0:
        assert flow["prefetched"] == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_regions_are_run_again_from_inputs_that_were_on_disk(gpt, reentrant):
    model, (batch, *_) = gpt

    def act(model, between=lambda: None):
        x = model.wte(batch[0]) + model.wpe.weight[: batch[0].shape[1]]
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=reentrant)
        loss = F.cross_entropy(model.head(model.ln(x)).flatten(0, 1), batch[1].flatten())
        del x
        between()
        loss.backward()

    wanted = grads(model, act)
    with offloaded(model, small=SMALL, choose="all") as cache:
        assert same(wanted, grads(model, lambda m: act(m, cache.disk.drain)))
        inputs = cache.traffic()["written_bytes"]
        assert cache.flow()["read_bytes"] == inputs >= 3 * 3 * 63 * 36 * 4  # three blocks' inputs at least
        assert same(wanted, grads(model, trained(batch)))
        assert cache.traffic()["written_bytes"] > 3 * inputs


@pytest.mark.parametrize("order", ["last first", "first first", "one at a time"])
def test_microbatches_are_apart(gpt, order):
    model, batches = gpt

    def act(m, between=lambda: None):
        if order == "one at a time":
            for b in batches:
                m(*b).backward()
            return
        losses = [m(*b) for b in batches]
        between()
        for loss in reversed(losses) if order == "last first" else losses:
            loss.backward()

    wanted = grads(model, act)
    with offloaded(model, small=SMALL, choose="all") as cache:
        assert same(wanted, grads(model, lambda m: act(m, cache.disk.drain)))
        written = cache.traffic()["written_bytes"]
        assert written > 0 and cache.flow()["read_bytes"] >= (
            0 if order == "one at a time" else 0.8 * written
        )


class Views(nn.Module):
    """One memory of 64 kB, saved as it is, transposed, cut and reshaped, and a small part of another."""

    def forward(self, x, w):
        y = x * w  # [128, 128], saves x and w
        a, b, c, d = y.exp(), y.T.exp(), y[:100].sin(), y.view(64, 256).cos()
        big = torch.cat([x, x, x, x]) * w  # saves what it multiplies, and w
        part = big[130:150].sin()
        return a.sum() + (b * y).sum() + c.sum() + d.sum() + part.sum()


def test_views_and_savers_of_one_memory_are_written_once():
    w = nn.Parameter(torch.linspace(0.5, 1.5, 128))
    x = torch.linspace(-1, 1, 128 * 128).view(128, 128)

    def loss(module):
        module.zero_grad()
        w.grad = None
        module(x, w).backward()
        return w.grad

    module, seen = Views(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        wanted = loss(module)
    large = [t for t in seen if t.nbytes >= SMALL and not (t.is_leaf and t.requires_grad)]
    naive = sum(t.nbytes for t in large if t.untyped_storage().data_ptr() != x.untyped_storage().data_ptr())
    memories = {t.untyped_storage().data_ptr() for t in large} - {x.untyped_storage().data_ptr()}
    with offloaded(module, small=SMALL, choose="all") as cache:
        assert torch.equal(loss(module), wanted)
        told = cache.traffic()
    assert told["saved_bytes"] == naive
    whole = 64 << 10
    # y, exp y, exp y.T, (what cat made) and 20 of its rows
    assert told["unique_bytes"] == told["written_bytes"] <= 0.8 * naive
    assert told["unique_bytes"] == 3 * whole + 4 * whole + 20 * 512, (len(memories), naive)


def test_parameters_inputs_and_what_is_small_stay():
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    x = torch.randn(100, 64)
    with offloaded(module, small=100 * 64 * 4, choose="all") as cache:
        module(x).sum().backward()
        assert (
            cache.traffic()["written_bytes"] == 100 * 64 * 4
        )  # the input of the second layer, and nothing else
    with offloaded(module, small=100 * 64 * 4 + 1, choose="all") as cache:
        module(x).sum().backward()
        assert cache.traffic()["written_bytes"] == 0 and cache.traffic()["saves"] == 3


class Deep(nn.Module):
    """Twice eight times 4 MB are kept, of which nobody else holds one."""

    def __init__(self, count=8):
        super().__init__()
        self.w, self.count = nn.Parameter(torch.ones(1024)), count

    def forward(self, x):
        for _ in range(self.count):
            x = (x * self.w).sin()
        return x.sum()


def alone(act):
    """In a process of its own: holes that other tests leave in memory would count."""
    begin = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; from holdall.memory import return_early"
    code = (
        f"{begin}; return_early(); import test_ssdtrain; test_ssdtrain.{act}()"  # what is freed is not held
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_memory_is_really_gone_and_comes_back():
    alone("gone_and_back")


def gone_and_back():
    module, x = Deep(), torch.ones(1024, 1024)
    module(x).backward()
    with Meter() as plain:
        module(x).backward()
    with offloaded(module, choose="all", window=8 << 20) as cache:
        for _ in range(3):  # what the interpreter and the libraries take at first
            module(x).backward()
        release()
        before = resident_bytes()
        with Meter() as less:
            loss = module(x)
            cache.disk.drain()
            release()
            held = resident_bytes() - before
            loss.backward()
        told = cache.traffic()
    assert told["unique_bytes"] == told["written_bytes"] >= 4 * 14 * (4 << 20) and plain.peak_bytes > 60e6
    assert held < 12e6 and less.peak_bytes < 0.5 * plain.peak_bytes


def test_what_waits_or_is_alive_is_handed_over_without_a_read():
    module, x = Deep(3), torch.ones(256, 1024)
    with offloaded(module, choose="all", rate=4e6) as cache:  # slow: nothing of the last ones is written yet
        module(x).backward()
        flow = cache.flow()
        assert flow["forwarded"] >= 3 and flow["read_bytes"] < cache.traffic()["unique_bytes"]
    with offloaded(module, small=SMALL, choose="all") as cache:
        y = (torch.ones(64, 64) * nn.Parameter(torch.ones(64))).exp()  # saves its output, which is alive
        cache.disk.drain()
        y.sum().backward()
        # of the two memories, what was multiplied is gone
        assert cache.flow()["read_bytes"] == 1 << 14 and cache.traffic()["written_bytes"] == 2 << 14


def test_changes_in_place_after_saving_are_never_used():
    """Plain torch refuses these; what was on disk before the change is right, all else raises."""

    def graph(module, x):
        y = module(x).exp()
        return y, (y * 1).sum()

    module, x = nn.Linear(64, 64), torch.linspace(-1, 1, 6400).view(100, 64)
    y, loss = graph(module, x)
    loss.backward()
    wanted = module.weight.grad.clone()
    with offloaded(module, small=SMALL, choose="all") as cache:
        module.zero_grad()
        y, loss = graph(module, x)
        cache.disk.drain()
        y.detach().add_(1)
        loss.backward()
        assert torch.equal(module.weight.grad, wanted) and cache.flow()["read_bytes"] == 100 * 64 * 4
    with offloaded(module, small=SMALL, choose="all", rate=1e5) as cache:
        y, loss = graph(module, x)
        y.detach().add_(1)
        with pytest.raises(BadInput, match="changed in place"):
            loss.backward()
    with offloaded(module, small=SMALL) as cache:
        loss = module(module(x)).sum()
        with torch.no_grad():
            module.weight.add_(1)
        with pytest.raises(BadInput, match="changed in place"):
            loss.backward()


def test_a_graph_that_is_kept_is_read_again(gpt):
    model, (batch, *_) = gpt

    def act(model, between=lambda: None):
        loss = model(*batch)
        between()
        loss.backward(retain_graph=True)
        loss.backward()

    wanted = grads(model, act)
    with offloaded(model, small=SMALL, choose="all") as cache:
        assert same(wanted, grads(model, lambda m: act(m, cache.disk.drain)))
        written = cache.traffic()["written_bytes"]
        # the second backward reads nearly all again; what the first read last may still be in memory
        assert cache.flow()["read_bytes"] >= 1.6 * written > 0
        cache.disk.sweep()
        assert cache.disk.arena.nbytes == 0 and cache.disk.buffers.held() == 0


def test_gradients_of_gradients():
    module = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1, bias=False)
    )
    x = torch.linspace(-1, 1, 6400).view(100, 64).requires_grad_()

    def act(module):
        (g,) = torch.autograd.grad(module(x * 1).square().sum(), x, create_graph=True)
        g.square().sum().backward()

    wanted = grads(module, act)
    with offloaded(module, small=SMALL, choose="all") as cache:
        assert same(wanted, grads(module, act))
        assert cache.traffic()["written_bytes"] > 0


def test_the_choice_is_the_inequality():
    """The last ones stay: those whose write would end after backward wants them."""
    write = read = 10.0
    few = [
        Timed(10, float(i), 20.0 - i) for i in range(8)
    ]  # saved each second, wanted again from second 13 on
    # one after another they are written until second 1 + count; then each takes a second to be read
    assert affordable(few, write, read) == 8
    assert affordable(few, 2.0, 1e9) == max(k for k in range(9) if 5 * k <= 20 - (k - 1))
    # reads are slow instead
    assert affordable(few, 1e9, 2.0) == max(k for k in range(9) if k - 1 + 5 * k <= 20)
    assert affordable([], 1, 1) == 0 and affordable(few, 1e-3, 1) == 0
    for n, w, r in itertools.product((1, 5, 8), (1.0, 3.0, 10.0), (1.0, 3.0, 10.0)):
        assert affordable(few[:n], w, r) == naive_affordable(few[:n], w, r)
    assert needed(few, 80) == 0 and needed(few, 79) == 1 and needed(few, 5) == 8 and needed(few, -1) == 8
    with pytest.raises(BadInput):
        affordable(few, 0, 1)


def naive_affordable(tensors, write, read):
    """All counts are played through, one event after another."""

    def fits(count):
        now, ends = 0.0, {}
        for i, t in enumerate(tensors[:count]):
            now = max(now, t.saved) + t.nbytes / write
            ends[i] = now
        for i in sorted(ends, key=lambda i: tensors[i].used):
            now += tensors[i].nbytes / read
            if now > tensors[i].used:
                return False
        return True

    return max(c for c in range(len(tensors) + 1) if fits(c))


def test_life_of_a_disk():
    year = ssdtrain_plan.YEAR
    assert life_years(600e12, 1e9, 10) == pytest.approx(600e12 / 1e9 * 10 / year)
    assert life_years(1.0, 0.0, 1.0) == math.inf


def fitted(steps, budget=None, **knobs):
    run, batches = SSDTrain.rehearsal()
    with SSDTrain(**knobs).open(run, budget) as session:
        losses = [session.step(b) for b in (batches * 3)[:steps]]
        told = dict(session.traffic())
    return losses, [p.detach() for p in run.model.parameters()], told


def test_a_run_trains_as_plain_torch_does_and_counts_the_same_each_time():
    run, batches = SSDTrain.rehearsal()
    losses = []
    for b in (batches * 3)[:5]:
        loss = F.cross_entropy(run.model(b[0]).flatten(0, 1), b[1].flatten())
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        losses.append(float(loss.detach()))
    whole = [p.detach() for p in run.model.parameters()]
    first, second, lean = fitted(5, choose="all"), fitted(5, choose="all"), fitted(5, small=SMALL)
    for found, params, told in (first, second, lean):
        assert found == losses and same(params, whole) and told["steps"] == 5
    counts = [{k: v for k, v in t.items() if not k.endswith("seconds")} for _, _, t in (first, second)]
    assert counts[0] == counts[1] and counts[0]["written_bytes"] > 5 << 20
    assert counts[0]["life_steps"] == 600e12 / counts[0]["written_bytes_a_step"]


def test_budgets_say_how_much_goes_and_are_kept():
    alone("budgets")


def budgets():
    module, x = Deep(), torch.ones(512, 1024)

    def rise(budget):
        with offloaded(module, budget) as cache:
            for _ in range(3):
                before = cache.traffic()["written_bytes"]
                with Meter() as meter:
                    module(x).backward()
                module.zero_grad()
            return meter.peak_bytes, cache.traffic()["written_bytes"] - before

    (much, none), (less, some), (least, most) = rise("1GB"), rise("30MB"), rise("18MB")
    assert none == 0 < some < most and most <= 15 * (2 << 20)
    assert much > 30e6 and less <= 30e6 + (1 << 20) and least <= 18e6 + (1 << 20)
    with pytest.raises(BudgetError, match="keeps nothing") as fault:
        rise("4MB")
    assert 4e6 < fault.value.least < 18e6
    with pytest.raises(BadInput, match="bytes"):
        offloaded(module, "50%")


def test_a_step_that_does_not_fit_leaves_the_run_as_it_was():
    run, batches = SSDTrain.rehearsal()
    least = SSDTrain(window=1 << 20).whole(run)
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(BudgetError, match="no activations"):
        SSDTrain(window=1 << 20).open(run, least - 1)
    with SSDTrain(window=1 << 20).open(run, least) as session:
        with pytest.raises(BudgetError, match="keeps nothing"):
            session.step(batches[0])
        assert all(p.grad is None for p in run.model.parameters()) and not run.optimizer.state
        assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())


def test_a_full_disk_is_one_clear_line_and_the_next_step_works():
    run, batches = SSDTrain.rehearsal()
    real, calls = os.pwrite, [0]

    def full(*args):
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with SSDTrain(choose="all").open(run) as session:
        with mock.patch("os.pwrite", full), pytest.raises(OSError, match="free some space"):
            session.step(batches[0])
            session.traffic()
        run.optimizer.zero_grad()
        assert session.step(batches[0]) > 0 and session.traffic()["written_bytes"] > 0


def test_after_it_is_closed_nothing_stays():
    run, batches = SSDTrain.rehearsal()
    with SSDTrain().open(run) as session:
        session.step(batches[0])
    gc.collect()
    release()
    before, files = resident_bytes(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with SSDTrain(choose="all").open(run) as session:
            session.step(batches[0])
            with session.saving():
                loss = run.model(batches[0][0]).sum()
            session.cache.disk.drain()
    gc.collect()
    release()
    assert resident_bytes() - before < 4 << 20 and len(os.listdir("/proc/self/fd")) <= files
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())
    with pytest.raises(BadInput, match="a block that has ended"):
        loss.backward()


def test_bad_knobs_are_refused():
    for bad in ({"choose": "some"}, {"window": 0}, {"ahead": -1}, {"endurance": 0.0}):
        with pytest.raises(BadInput):
            SSDTrain(**bad)
