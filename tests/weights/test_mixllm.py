"""MixLLM: rows that the whole model's loss feels most get more bits; what that buys, and that nothing is invented."""

import numpy as np
import pytest
import torch

from holdall import BadInput, BudgetError
from holdall.packed import Packed
from holdall.weights import MixLLM, Model, by_column, coded_file, two_step
from holdall.weights.allotment import widths_of
from holdall.weights.clipping import laid, spans, zeros
from holdall.weights.coded import Coded
from holdall.weights.coded_linear import Inputs
from holdall.weights.mixing import plain_errors
from holdall.weights.perplexity import mean_loss
from holdall.weights.row_steps import RowSteps
from holdall.weights.scaling import windows
from holdall.weights.sensitivity import feel, salience_of

FEW = {"windows": 4, "window": 64}
UP = "model.layers.1.mlp.up_proj.weight"


def packed_rows(packed, name):
    """Of each row of a matrix, the width."""
    coded = coded_file.read(packed)[1][name]
    found = np.zeros(coded.shape[0], int)
    for band in coded.bands:
        found[band.rows] = band.bits
    return found


def test_salience_is_what_autograd_says_of_the_loss(corner):
    """|g.e + (g.e)^2 / 2| a window, with g of the mean loss, summed over tokens before it is squared."""
    tokens = windows(corner, 3, 48)
    names = [n for n in corner.linears() if "layers.1" in n] + ["lm_head.weight"]
    table = corner.embeddings()[0]
    delta = {
        n: torch.from_numpy(plain_errors(corner.state[n if "lm" not in n else table].numpy(), 2, 64))
        for n in names
    }
    for kind in ("first", "second", "diagonal"):
        felt, looked = feel(corner, tokens, lambda n: {2: delta[n]} if n in delta else {}, kind=kind)
        for name in (n for n in names if "lm_head" not in n):
            expected = torch.zeros(len(delta[name]))
            for ids in tokens:
                module = corner.build()
                weight = module.get_parameter(name).requires_grad_(True)
                logits = module(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
                torch.nn.functional.cross_entropy(logits, ids[1:]).backward()
                expected += salience_of(weight.grad, delta[name], kind)
            torch.testing.assert_close(felt[name].salience[2], expected, rtol=2e-3, atol=1e-7)
    assert int(looked.counts.sum()) == tokens.numel() and bool((looked.slope > 0).all())


def test_second_moments_foretell_what_an_error_costs(corner):
    """share[o] e^T gram e, with each token weighed by its gradient: near the mean of (dY e^T x)^2."""
    tokens = windows(corner, 4, 64)
    felt, _ = feel(corner, tokens, weighted=True)
    plain, _ = feel(corner, tokens, weighted=False)
    assert float(felt[UP].share.mean()) == pytest.approx(1, rel=1e-4)
    # the trace of both says the same up to how gradients and inputs go together
    ratio = float(felt[UP].gram.trace() / plain[UP].gram.trace())
    assert 0.2 < ratio < 5 and not torch.allclose(felt[UP].gram, plain[UP].gram * ratio, rtol=0.05)


def test_rows_are_chosen_over_the_whole_model():
    scores = {"a": {4: np.array([9.0, 8, 7, 6])}, "b": {4: np.array([1.0, 2, 0, 5])}}
    found = widths_of(scores, (8, 4), (0.5,))
    assert found["a"].tolist() == [8, 8, 8, 8] and found["b"].tolist() == [4, 4, 4, 4]
    found = widths_of(scores, (8, 4), (0.5,), by="layer")
    assert found["a"].tolist() == [8, 8, 4, 4] and found["b"].tolist() == [4, 8, 4, 8]
    three = widths_of({n: {4: s[4], 2: -s[4]} for n, s in scores.items()}, (8, 4, 2), (0.25, 0.25))
    assert three["a"].tolist() == [8, 8, 2, 2] and three["b"].tolist() == [
        4,
        2,
        4,
        2,
    ]  # what has 8 is not asked again
    assert sum((w == 8).sum() for w in widths_of(scores, (8, 4), (0.25,), by="random").values()) == 2
    for widths, shares in (((4, 8), (0.1,)), ((8, 4), ()), ((8, 8), (0.1,)), ((8, 4), (-0.1,))):
        with pytest.raises(BadInput):
            widths_of(scores, widths, shares)


def test_a_tenth_of_the_rows_is_wide_and_layers_differ(corner):
    packed = MixLLM(**FEW).encode(corner)
    coded = coded_file.read(packed)[1]
    wide = {n: float((packed_rows(packed, n) == 8).mean()) for n in coded}
    rows = {n: c.shape[0] for n, c in coded.items()}
    assert sum(wide[n] * rows[n] for n in coded) == round(0.1 * sum(rows.values()))
    shares = sorted(wide[n] for n in corner.linears())
    assert shares[-1] > 5 * max(shares[0], 1 / 200)


def rise(x, method, budget=None):
    """What packing adds to the loss on windows between those that were calibrated on; and the file's bytes."""
    tokens = windows(x, 6, 96, skip=192)
    packed = method.encode(x, budget)
    return mean_loss(method.decode(packed).build(), tokens) - mean_loss(x.build(), tokens), packed.nbytes


@pytest.mark.parametrize("narrow", [3, 2])
def test_salient_rows_are_worth_more_than_others(learned, narrow):
    """A fifth of the rows in 8 bits, by what chooses them; and none."""
    some = {"windows": 16, "window": 96}
    found = {
        by: rise(learned, MixLLM(widths=(8, narrow), shares=(0.2,), by=by, **some))[0]
        for by in ("global", "layer", "random")
    }
    none = rise(learned, MixLLM(widths=(narrow,), shares=(), **some))[0]
    assert 0 < found["global"] < found["random"] < none
    assert found["global"] < 0.6 * none and found["global"] < found["layer"]


@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "group"), [(1, 1, 1, 1), (3, 7, 63, 64), (4, 9, 130, 64), (2, 5, 256, 128)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_two_step_product_is_the_float_product(tokens, rows, columns, group, bits):
    rng = np.random.default_rng([bits, columns])
    w, x = (
        rng.normal(size=(rows, columns)).astype(np.float32),
        rng.normal(size=(tokens, columns)).astype(np.float32),
    )
    grid = laid(*spans(w, group), bits, group)
    codes = grid.nearest(w)
    p, steps = two_step.activations(x, group)
    owner = np.arange(columns) // group
    truth = (p * steps[:, owner]).astype(np.float64) @ grid.values(codes).astype(np.float64).T
    got = two_step.product(p, steps, codes, grid.step, zeros(grid), group, bits)
    assert np.abs(got - truth).max() <= 1e-5 * np.abs(truth).max()


def test_the_magic_number_makes_floats_of_whole_numbers_exactly():
    edge = two_step.LIMIT - 1
    sums = np.concatenate(
        [np.arange(-3, 4), [edge, -edge], np.random.default_rng(0).integers(-edge, edge, 10_000)]
    )
    started = (sums + int(two_step.MAGIC_BITS)).astype(np.int32)
    np.testing.assert_array_equal(two_step.to_float(started), sums.astype(np.float32))
    assert two_step.largest(4, 128) == 243_840 and two_step.largest(8, 128) <= two_step.LIMIT
    with pytest.raises(BadInput):
        two_step.product(*(np.zeros((1, 1), np.int8),) * 5, group=512, bits=8)


def test_bytes_are_those_of_the_formula():
    """Two widths without entropy coding: bits, 16 a group for steps and 16 more for zeros (whole in the container)."""
    w = torch.randn(160, 256, generator=torch.Generator().manual_seed(0))
    method = MixLLM(widths=(8, 4))
    coded = coded_file.read(method.encode(Model({"w": w})))[1]["w"]
    wide, narrow = sorted(coded.bands, key=lambda b: -b.bits)
    assert (len(wide.rows), wide.level, len(narrow.rows), narrow.level) == (16, "middle", 144, "zero")
    expected = 16 * (256 + 4 * 2) + 144 * (128 + 4 * 4) + 4 * 160
    assert coded.nbytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("share", ["8.5%", "9.5%"])
def test_a_budget_is_used_and_a_step_for_each_row_beats_two_widths(learned, share):
    some, limit = {"windows": 16, "window": 96}, int(float(share[:-1]) * learned.nbytes / 100)
    steps, used = rise(learned, MixLLM(**some), share)
    pair, paired = rise(learned, MixLLM(widths=(8, 4, 3, 2), shares=(0.1, 0.1, 0.1), **some), share)
    assert 0.97 * limit < used <= limit and 0.9 * limit < paired <= limit
    assert 0 < steps < 0.8 * pair


def divergence(x, packed):
    """KL from the float model, mean over windows between those that were calibrated on: less noisy than losses."""
    ids = windows(x, 30, 96, skip=192)
    with torch.no_grad():
        wanted, told = (m.build()(input_ids=ids).logits.log_softmax(-1) for m in (x, MixLLM().decode(packed)))
    return float((wanted.exp() * (wanted - told)).sum(-1).mean())


def test_each_part_of_a_step_a_row_earns_its_place(learned):
    """Scaled columns do so on real models only, whose channels differ: benchmarks/weights_rows.py."""
    some = {"windows": 16, "window": 96}
    whole = divergence(learned, MixLLM(**some).encode(learned, "10%"))
    for less, bar in (({"compensate": False}, 0.96), ({"trust": 0.0}, 0.8)):
        assert whole < bar * divergence(learned, MixLLM(**some, **less).encode(learned, "10%")), less


def test_rows_and_columns_learn_and_codes_stay(learned):
    """Less divergence from the float model at the same bytes; codes are what they were, steps and columns are not."""
    some = {"windows": 16, "window": 96}
    budget = int(0.1 * learned.nbytes)
    far, files = [], []
    for tune in (0, 80):
        packed = MixLLM(tune=tune, rate=1e-2, **some).encode(learned, budget)
        assert 0.95 * budget < packed.nbytes <= budget
        far.append(divergence(learned, packed))
        files.append(packed)
    assert far[1] < 0.9 * far[0]
    (a, before), (b, after) = ((coded_file.read(p)[1][UP], by_column.scales(p)[UP]) for p in files)
    assert not np.array_equal(before, after)
    assert not np.array_equal(a.bands[0].scale, b.bands[0].scale)


def test_a_step_a_row_is_what_autograd_says():
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(20, 33, generator=draw).numpy()
    step = np.full((20, 1), 0.25, np.float32)
    codes = np.clip(np.rint(w / step), -8, 7).astype(np.int16)
    parts = [(np.arange(0, 20, 2), 4), (np.arange(1, 20, 2), 5)]
    coded = Coded.mixed(
        [(r, Coded.of((codes[r] + (1 << b - 1)).astype(np.uint8), b, scale=step[r])) for r, b in parts]
    )
    columns = np.linspace(0.5, 2, 33).astype(np.float16)
    rows = RowSteps(coded, columns)
    s, c = (p.detach().clone().requires_grad_(True) for p in (rows.step, rows.columns))
    truth = torch.from_numpy(codes.astype(np.float32)) * s * c
    np.testing.assert_allclose(rows.dense().detach().numpy(), truth.detach().numpy(), rtol=1e-6)
    up = torch.randn(20, 33, generator=draw)
    truth.backward(up)
    rows.dense().backward(up)
    torch.testing.assert_close(rows.step.grad, s.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows.columns.grad, c.grad, rtol=1e-4, atol=1e-5)
    settled, wide = rows.settled()
    np.testing.assert_array_equal(settled.dense(), coded.dense())
    np.testing.assert_array_equal(wide, columns)
    assert RowSteps(coded, None).settled()[1] is None


def test_columns_are_scaled_and_what_runs_is_what_is_decoded(corner):
    packed = MixLLM(**FEW).encode(corner, "14%")
    assert any(n.startswith("c/") for n in packed.arrays)
    back = MixLLM().decode(packed).state[UP]
    shell, held = MixLLM().held(packed)
    x = torch.randn(5, back.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(held[UP].multiply(x), x @ back.T, rtol=1e-2, atol=1e-2)
    out = np.zeros((5, len(back)), np.float32)
    held[UP].into(Inputs(x.numpy()), out)
    np.testing.assert_array_equal(out, held[UP].multiply(x).numpy())
    np.testing.assert_allclose(held[UP].dense(), back.numpy(), rtol=1e-6)
    np.testing.assert_allclose(held[UP].rows(np.array([3, 0])), back.numpy()[[3, 0]], rtol=1e-6)
    assert UP not in shell.state and held[UP].nbytes > 0
    bad = {**packed.arrays, next(n for n in packed.arrays if n.startswith("c/")): np.zeros(3, np.float16)}
    with pytest.raises(OSError, match="scale the columns"):
        by_column.scales(Packed(bad, packed.meta))


def test_bad_input_is_refused_and_odd_shapes_are_not():
    for wrong in (
        {"widths": (4, 8)}, {"widths": (7, 4)}, {"shares": (0.1, 0.2)}, {"shares": (1.5,)},
        {"salience": "third"}, {"by": "luck"}, {"group": -1}, {"even": 2.0}, {"window": 1},
        {"tune": -1}, {"distill": 2.0},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            MixLLM(**wrong)
    with pytest.raises(BadInput, match="tensor w"):
        MixLLM().encode(Model({"w": torch.full((4, 4), float("nan"))}))
    x = Model({"w": torch.randn(5, 100, generator=torch.Generator().manual_seed(0))})  # 64 and 36 columns
    assert float((MixLLM().decode(MixLLM().encode(x)).state["w"] - x.state["w"]).abs().max()) < 0.6
    with pytest.raises(BudgetError) as caught:
        MixLLM().encode(x, 100)
    assert MixLLM().encode(x, int(caught.value.least)).nbytes <= caught.value.least


def test_an_empty_calibration_text_is_refused(corner):
    corner.calibration = ""
    with pytest.raises(BadInput, match="calibration"):
        MixLLM(**FEW).encode(corner)
    with pytest.raises(BadInput, match="calibration"):
        feel(corner, torch.zeros(0, 8, dtype=torch.long))
    corner.calibration = None
