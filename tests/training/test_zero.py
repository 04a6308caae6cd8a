"""ZeRO trains as one process does, holds and sends what its formulas say, and names a rank that does not come.

Three processes run `zero_workers.py` once; each test looks at what they saw.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from holdall.errors import BadInput, BudgetError
from holdall.training import zero_plan
from holdall.training.base import Run
from holdall.training.zero import ZeRO
from holdall.training.zero_activations import Arena

SCRIPT = Path(__file__).parents[1] / "zero_workers.py"
SENT = (2, 2, 2, 3)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SCRIPT.parents[1],
    )
    found = {r: json.loads((folder / f"told-{r}.json").read_text()) for r in (0, 2)}
    assert all("died" in f for f in found.values()), ran.stderr
    return found[0], found[2]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_stage_trains_as_one_process_with_all_batches(told, workers):
    seen = told[0][f"equal-{workers}"]
    assert seen["count"] % 3 and min(seen["norms"]) > 0.5  # clipping matters, and slices have padding
    for way, found in seen["stages"].items():
        assert found["params"] < 1e-5 and found["losses"] < 1e-5 and found["states"] < 1e-8, way
    if workers == 3:  # parameters are the same on all ranks, bit for bit
        for way, found in seen["stages"].items():
            assert found["sums"] == told[1]["equal-3"]["stages"][way]["sums"], way


@pytest.mark.parametrize("workers", [2, 3])
def test_what_a_step_sends_is_the_formula(told, workers):
    seen = told[0][f"equal-{workers}"]
    for way, found in seen["stages"].items():
        stage, bucket = map(int, way.split("-"))
        wanted = SENT[stage] * seen["count"] * (workers - 1) / workers
        padding = 3 * workers * found["held"]["reductions"] / found["held"]["steps"]
        assert wanted <= found["sent"] <= 1.02 * wanted + padding and found["bytes"] == 4 * found["sent"], way
        if bucket == 10**6:  # as the kernel counts it, with the messages' own heads
            assert found["bytes"] <= found["wire"] <= 1.06 * found["bytes"], way


def test_what_lives_before_an_update_is_the_table(told):
    count = told[0]["equal-3"]["count"]
    plans = zero_plan.planned(count, 3, **zero_plan.FP32)
    for stage, plan in enumerate(plans):
        seen = told[0]["memory"][str(stage)]
        assert seen["params"] == pytest.approx(plan.weights, rel=0.02)
        assert seen["grads"] == pytest.approx(plan.gradients, rel=0.02)
        assert seen["states"] == pytest.approx(plan.states, rel=0.02)
        whole = sum(v for k, v in seen.items() if k != "alive")
        assert seen["alive"] - seen["buffers"] == pytest.approx(
            plan.total, rel=0.02
        )  # all tensors of the process
        assert seen["alive"] <= whole * 1.02
    assert told[0]["equal-3"]["stages"]["3-1300"]["runs"] > 10


@pytest.mark.parametrize("workers", [2, 3])
def test_what_it_says_it_needs_is_enough_and_not_far_off(told, workers):
    for way, found in told[0][f"equal-{workers}"]["stages"].items():
        need = sum(found["need"].values())
        held = sum(found["held"][f"{k}_bytes"] for k in ("params", "grads", "states", "buffers"))
        assert 0.6 * need < held < 1.01 * need, way


def test_a_loop_of_ones_own_accumulates_and_clips(told):
    for way in ("AdamW-1", "AdamW-3", "SGD-2", "Adagrad-3"):
        params, norms = told[0]["loops"][way]
        assert params < 1e-5 and norms < 1e-4, way
    params, sent = told[0]["loops"]["checkpoints"]  # computed again, but not fetched again
    assert params < 1e-5 and sent <= 1.02 * 3 * told[0]["equal-3"]["count"] * 2 / 3


def test_frozen_parameters_are_spread_too_and_leave_when_they_are_done(told):
    params, share, kept = told[0]["frozen"]
    assert params < 1e-5 and share == pytest.approx(1 / 3, rel=0.02) and kept == 0


def test_short_types_have_float32_copies_in_slices(told):
    seen, count = told[0]["mixed"], told[0]["equal-3"]["count"]
    plan = zero_plan.planned(count, 3)[2]
    assert seen["held"]["states_bytes"] == pytest.approx(plan.states, rel=0.02)
    assert seen["held"]["params_bytes"] == pytest.approx(plan.weights, rel=0.02)
    assert seen["held"]["grads_bytes"] == pytest.approx(plan.gradients, rel=0.02)
    assert seen["type"] == "torch.float32" and seen["fine"] > 0.5 and seen["moved"] > 0


def test_an_overflow_on_one_worker_is_left_out_by_all(told):
    for seen in (told[0]["overflow"], told[1]["overflow"]):
        assert seen["same"] and seen["skipped"] == 1 and seen["scale"] == 128.0 and seen["apart"] < 1e-5


def test_shards_of_three_go_on_as_two_at_any_stage(told):
    before = told[0]["shards"]
    assert before["merged"]
    for stage, after in told[0]["again"].items():
        assert after["rest"] == pytest.approx(before["rest"], abs=1e-5), stage
        assert after["sums"] == pytest.approx(before["sums"], abs=1e-2), stage
        assert "ranks [0, 1]" in after["fault"] and "all 3 ranks" in after["fault"]


def test_two_workers_keep_half_of_each_activation(told):
    seen = told[0]["activations"]
    for way in ("whole", "part", "arena"):
        pairs = zip(seen[way]["grads"], seen["all"]["grads"], strict=True)
        assert all(a == pytest.approx(b, abs=1e-6) for a, b in pairs), way
    assert seen["part"]["kept"] * 2 == seen["whole"]["kept"] < seen["all"]["kept"] / 2
    assert seen["arena"]["arena"] == [seen["part"]["kept"], 0]


def test_a_rank_that_hangs_or_is_killed_is_named_by_the_others(told):
    for rank in told:
        fault = rank["hung"]["fault"]
        assert (
            fault.startswith("rank 1 did not come to ") and "\n" not in fault and rank["hung"]["seconds"] < 8
        )
        assert rank["died"]["fault"].startswith("rank 1 did not come to ")


def test_the_plan_is_the_papers_table():
    plans = zero_plan.planned(7.5e9, 64, bandwidth=100e9, compute=0.1)
    assert [round(p.total / 1e9, 1) for p in plans] == [120.0, 31.4, 16.6, 1.9]
    assert [p.sent / 7.5e9 * 64 / 63 for p in plans] == pytest.approx([2, 2, 2, 3])
    assert plans[3].seconds == pytest.approx(3 * 7.5e9 * 2 * 63 / 64 / 100e9)
    slow = zero_plan.planned(7.5e9, 64, bandwidth=100e9, compute=1.0, overlap=False)
    assert slow[1].seconds == pytest.approx(1.0 + plans[1].seconds)
    assert zero_plan.lowest(plans, 32e9).stage == 1 and zero_plan.lowest(plans, 32e9, beside=2e9).stage == 2
    with pytest.raises(BudgetError, match="stage 3"):
        zero_plan.lowest(plans, 1e9)
    assert zero_plan.activations(2, 3, 5, 7) == 12 * 30 * 7
    assert zero_plan.activations(2, 3, 5, 7, checkpointed=True, parallel=2) == 30 * 7 / 2 + 12 * 30


def test_activations_that_do_not_fit_end_the_step_before_its_backward():
    run, steps = ZeRO.rehearsal()
    with ZeRO(stage=3).open(run) as session:
        need = sum(session.need.values())
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(BudgetError, match="no activations yet"):
        ZeRO(stage=3).open(run, need - 1)
    with ZeRO(stage=3).open(run, need + 1000) as session, pytest.raises(BudgetError, match="activations of"):
        session.step(steps[0])
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, run.model.parameters(), strict=True))
    with ZeRO(stage=3).open(run, need + (4 << 20)) as session:
        session.step(steps[0])


def test_training_goes_on_with_the_states_that_there_were():
    def trained(openings):
        run, steps = ZeRO.rehearsal()
        batches = iter([*steps, *steps])
        for stage, count in openings:
            with ZeRO(stage=stage, bucket=50_000).open(run) as session:
                losses = [session.step(next(batches)) for _ in range(count)]
        return losses[-1], [p.detach() for p in run.model.parameters()]

    (a, one), (b, two) = trained([(0, 4)]), trained([(3, 2), (1, 1), (2, 1)])
    assert a == b and all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["Adafactor", "LBFGS"])
def test_an_optimizer_that_looks_at_whole_tensors_is_refused(name):
    model = torch.nn.Linear(3, 3)
    optimizer = getattr(torch.optim, name)(model.parameters())
    with pytest.raises(BadInput, match="each number by itself"):
        ZeRO().open(Run(model, optimizer))


def test_other_modules_and_foreign_parameters_are_refused():
    model, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 4)
    with pytest.raises(BadInput, match="not the model's"):
        ZeRO().open(Run(model, torch.optim.SGD(other.parameters(), lr=0.1)))
    with ZeRO().open(Run(model, torch.optim.SGD(model.parameters(), lr=0.1))) as session:
        saved = session.state_dict()
        with (
            pytest.raises(BadInput, match="closed"),
            ZeRO().open(Run(other, torch.optim.SGD(other.parameters()))) as o,
        ):
            with pytest.raises(BadInput, match=r"parameter weight: got \(3, 3\)"):
                o.load_state_dict(saved)
            o.close()
            o.state_dict()


def test_an_arena_fills_its_holes():
    arena = Arena(10, torch.float32)
    a, b, _ = arena.take(4), arena.take(2), arena.take(4)
    with pytest.raises(BudgetError, match="an arena"):
        arena.take(1)
    arena.give(b)
    arena.give(a)
    assert arena.take(6).data_ptr() == arena.block.data_ptr() and arena.used == 40
