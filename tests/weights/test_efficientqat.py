"""EfficientQAT: its gradients, its two phases, and what is stored."""

import numpy as np
import pytest
import torch

from holdall.errors import BadInput, BudgetError
from holdall.weights import EfficientQAT, Model
from holdall.weights.block_training import BlockTraining
from holdall.weights.coded_file import read
from holdall.weights.end_to_end import EndToEnd, Schedule, Steps
from holdall.weights.fake_quant import Dequantise, FakeQuant, codes_of, dequantised, naive_fake_quant, starts
from holdall.weights.qat_plan import table
from holdall.weights.qat_run import Run
from holdall.weights.qat_starts import compensated
from holdall.weights.scaling import windows
from holdall.weights.unfinished import Unfinished

QUICK = EfficientQAT(windows=8, window=64, steps=4)


def drawn(rows, columns, bits, group, seed=0):
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=draw) * 0.05
    s, z = starts(w, bits, group, (0.6,))  # shrunk: some weights are clipped
    return w, s, z + torch.rand(z.shape, generator=draw) * 0.8 - 0.4, draw


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 1, 1), (3, 63, 16), (40, 130, 64), (16, 64, 64)])
def test_gradients_are_autograds_and_the_cards(rows, columns, group, bits):
    w, s, z, draw = drawn(rows, columns, bits, group)
    given = torch.randn(rows, columns, generator=draw)
    fast, slow = ([t.clone().requires_grad_() for t in (w, s, z)] for _ in range(2))
    a, b = FakeQuant.apply(*fast, bits, group), naive_fake_quant(*slow, bits, group)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    (a * given).sum().backward()
    (b * given).sum().backward()
    wide = torch.arange(columns) // group
    step, zero, top = s[:, wide], z.round()[:, wide], (1 << bits) - 1
    q = (w / step).round() + zero
    inside = (q >= 0) & (q <= top)
    of_step = torch.where(inside, (w / step).round() - w / step, torch.where(q < 0, -zero, top - zero))
    card = [torch.where(inside, given, 0.0), torch.zeros_like(s), torch.zeros_like(z)]
    card[1].index_add_(1, wide, given * of_step)
    card[2].index_add_(1, wide, torch.where(inside, 0.0, -step) * given)
    for mine, auto, told in zip(fast, slow, card, strict=True):
        torch.testing.assert_close(mine.grad, auto.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.grad, told, rtol=1e-5, atol=1e-5)
    assert columns == 1 or not bool(inside.all())


def test_only_steps_learn_from_packed_numbers():
    w, s, z, draw = drawn(20, 130, 2, 64)
    z = z.round().clamp(0, 3)
    codes = codes_of(w, s, z, 2, 64)
    given, step = torch.randn(20, 130, generator=draw), s.clone().requires_grad_()
    (Dequantise.apply(codes.numpy, step, z, 64) * given).sum().backward()
    truth = torch.zeros_like(s).index_add_(
        1, torch.arange(130) // 64, given * (codes.float() - z[:, torch.arange(130) // 64])
    )
    torch.testing.assert_close(step.grad, truth, rtol=1e-5, atol=1e-5)


def test_error_feedback_rounds_outputs_better_than_nearest():
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(96, 96, generator=draw) * 0.2 + torch.eye(96)
    x, w = torch.randn(600, 96, generator=draw) @ mix, torch.randn(40, 96, generator=draw)
    wrong = {}
    for kind in ("feedback", "search"):
        given, s, z = (
            (w, *starts(w, 2, 32, (1.0, 0.8, 0.6))) if kind == "search" else compensated(w, x.T @ x, 2, 32)
        )
        hat = dequantised(codes_of(given, s, z, 2, 32), s, z, 32)
        wrong[kind] = float((x @ (hat - w).T).square().mean())
    assert wrong["feedback"] < 0.7 * wrong["search"]


def trained(corner, folder, recipe, bits=2):
    tables = {n: table(corner.state[n], 0.3) for n in corner.embeddings()}
    widths = dict.fromkeys(corner.linears(), bits)
    work = Unfinished(folder, "test")
    training = BlockTraining(
        recipe, corner, windows(corner, recipe.windows, recipe.window), widths, tables, work
    )
    return training, training.run()


def test_blocks_learn_three_times_less_error_than_min_max(corner, tmp_path):
    recipe = EfficientQAT(windows=64, window=128)
    before, _ = trained(corner, tmp_path / "a", recipe.but(start="minmax", learned="nothing"))
    after, _ = trained(corner, tmp_path / "b", recipe)
    for a, b in zip(before.told, after.told, strict=True):
        assert a["before"] == a["after"]  # no training, no gain
        assert b["after"] < a["after"] / 3
        assert b["after"] < 0.9 * b["before"]  # nor is it the start alone


def test_the_papers_own_start_learns_too(corner, tmp_path):
    paper = EfficientQAT(windows=32, window=128, start="minmax", weight_rate=2e-2, grid_rate=5e-3)
    every, _ = trained(corner, tmp_path / "a", paper)
    grids, _ = trained(corner, tmp_path / "b", paper.but(learned="grids"))
    for a, b in zip(every.told, grids.told, strict=True):
        assert b["after"] < 0.95 * b["before"]
        assert a["after"] < 0.9 * b["after"]  # all of W, s and z against s and z alone


def test_a_block_is_given_what_packed_blocks_made_and_learns_what_float_ones_made(
    corner, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        BlockTraining, "_learn", lambda self, k, block, fakes, x, y: seen.append((x.rows([0]), y.rows([0])))
    )
    training, coded = trained(corner, tmp_path / "a", QUICK)
    ids = training.tokens[:1]
    dense = {n: torch.from_numpy(c.dense()) for n, c in (coded | training.tables).items()}
    packed = Model({**corner.state, **dense}, corner.files).build()
    with torch.no_grad():
        of_float = corner.build()(input_ids=ids, output_hidden_states=True).hidden_states
        of_packed = packed(input_ids=ids, output_hidden_states=True).hidden_states
    for k, (given, wanted) in enumerate(seen):
        torch.testing.assert_close(given, of_packed[k], rtol=2e-3, atol=2e-3)  # half precision on disk
        if k == 0:
            torch.testing.assert_close(wanted, of_float[1], rtol=2e-3, atol=2e-3)
            assert float((given - of_float[0]).abs().max()) > 0.02
            assert float((wanted - of_packed[1]).abs().max()) > 0.05


def test_fake_quantised_logits_are_the_packed_models(corner, tmp_path):
    """What was trained is what is stored, to the number; packed kernels round their inputs, so they are nearly it."""
    run = Run(QUICK, corner, None, None)
    packed = run.packed()
    _, coded = read(packed)
    work = Unfinished(tmp_path / "w", "test")
    steps = {n: Steps(c) for n, c in coded.items()}
    learner = EndToEnd(Schedule(0, 2, 1e-3, 0.3, 0.0), corner, run.tokens, steps, work)
    with torch.no_grad():
        fake = learner.module(input_ids=run.tokens[:2]).logits
        stored = EfficientQAT().decode(packed).build()(input_ids=run.tokens[:2]).logits
        opened = EfficientQAT().open(packed)(input_ids=run.tokens[:2]).logits
    assert float((fake - stored).abs().max()) < 1e-4 * float(stored.abs().max())
    assert float((opened - stored).norm() / stored.norm()) < 0.01
    for name in corner.linears():
        (band,) = coded[name].bands
        assert band.bits == 2 and band.level == "zero" and int(band.codes().max()) <= 3


def test_end_to_end_moves_steps_and_nothing_else(corner):
    run = Run(QUICK.but(steps=12, step_rate=5e-3), corner, None, None)
    packed = run.packed()
    _, after = read(packed)
    moved = 0
    for name, before in run.blocks.items():
        (a,), (b,) = before.bands, after[name].bands
        np.testing.assert_array_equal(a.codes(), b.codes())
        np.testing.assert_array_equal(a.low, b.low)
        moved += not np.array_equal(a.scale, b.scale)
    assert moved == len(run.blocks)
    losses = []
    for state in (run.blocks, after):
        dense = {n: torch.from_numpy(c.dense()) for n, c in state.items()}
        module = Model({**corner.state, **dense}, corner.files).build()
        with torch.no_grad():
            losses.append(float(module(input_ids=run.tokens, labels=run.tokens).loss))
    assert losses[1] < losses[0] - 0.05


@pytest.mark.slow
def test_distilling_follows_the_float_model_closer_than_the_text(corner):
    agreement = []
    for share in (0.0, 1.0):
        packed = QUICK.but(steps=40, step_rate=5e-3, distill=share).encode(corner)
        ids = windows(corner, 8, 64)
        with torch.no_grad():
            a, b = (
                corner.build()(input_ids=ids).logits,
                EfficientQAT().decode(packed).build()(input_ids=ids).logits,
            )
        agreement.append(float((a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1).mean()))
    assert agreement[1] < 0.8 * agreement[0]


def test_a_budget_is_used_up(corner):
    for budget in ("2.5bit", "3.5bit"):
        limit = QUICK.allowed(corner, budget)
        run = Run(QUICK, corner, None, limit)
        assert 0.97 * limit < run.packed().nbytes <= limit
    assert len(set(run.plan.widths.values())) > 1  # what its outputs matter, a matrix gets
    with pytest.raises(BudgetError) as told:
        QUICK.encode(corner, "1bit")
    assert QUICK.encode(corner, int(told.value.least)).nbytes <= told.value.least


@pytest.mark.parametrize("group", [50, 0, 1000])
def test_groups_that_do_not_divide_have_a_shorter_last_one(corner, group):
    packed = QUICK.but(group=group).encode(corner)
    _, coded = read(packed)
    matrix = coded[corner.linears()[0]]
    columns = matrix.shape[1]
    assert matrix.bands[0].scale.shape[1] == -(-columns // min(group or columns, columns))
    assert torch.isfinite(EfficientQAT().decode(packed).build()(input_ids=torch.arange(9)[None]).logits).all()


def test_what_cannot_be_trained_is_refused(corner):
    broken = {n: t.clone() for n, t in corner.state.items()}
    broken[corner.linears()[3]][2, 2] = torch.nan
    with pytest.raises(BadInput, match="NaN"):
        QUICK.encode(Model(broken, corner.files))
    with pytest.raises(BadInput, match="calibration text"):
        QUICK.encode(Model(corner.state, corner.files, calibration=""))
    for wrong in (
        {"bits": 7},
        {"start": "x"},
        {"learned": "x"},
        {"window": 1},
        {"distill": 2.0},
        {"group": -1},
    ):
        with pytest.raises(BadInput):
            EfficientQAT(**wrong)
    config = corner.files["config.json"].replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 0')
    outside = {n: t for n, t in corner.state.items() if ".layers." not in n}
    with pytest.raises(BadInput, match="blocks"):
        QUICK.encode(Model(outside, {**corner.files, "config.json": config}))
