"""Eight-bit formats: grids and casts to the bit, theory against samples, the choice of a format by what it loses."""

import numpy as np
import pytest
import torch

from holdall import BadInput, BudgetError
from holdall.weights import Formats, Model, coded_file
from holdall.weights.float_formats import (
    BY_NAME,
    E2M5,
    E3M4,
    E4M3,
    E5M2,
    FORMATS,
    INT8,
    Format,
    codes,
    errors,
    from_e4m3,
    from_e5m2,
    naive_errors,
    quantised,
    searched,
    sqnr,
    to_e4m3,
    to_e5m2,
)  # fmt: skip
from holdall.weights.format_theory import (
    GAUSSIAN,
    UNIFORM,
    best,
    dearer,
    expected_error,
    product_bits,
    recommended,
    student,
)
from holdall.weights.formats import chosen

CASTS = [(torch.float8_e4m3fn, to_e4m3, from_e4m3), (torch.float8_e5m2, to_e5m2, from_e5m2)]


def by_bits(form, code):
    """A number of a format, from its sign, exponent and mantissa, one at a time; the largest is not scaled."""
    m = form.mantissa
    power, part = code >> m, code & ((1 << m) - 1)
    return part * 2.0 ** (1 - m) if power == 0 else (1 + part / 2**m) * 2.0**power


@pytest.mark.parametrize("form", [E2M5, E3M4, E4M3, E5M2, Format("E3M2", 3, 2), Format("E2M3", 2, 3)])
def test_every_code_is_a_fixed_point_and_nothing_else_is(form):
    numbers = np.array([by_bits(form, c) for c in range(1 << (form.bits - 1))])
    np.testing.assert_allclose(form.positive(), numbers / numbers[-1], rtol=1e-12)
    for c in (1.0, 0.37, 448.0):
        grid = form.positive() * c
        np.testing.assert_allclose(quantised(grid, form, c), grid, rtol=1e-12)
        x = np.random.default_rng(0).uniform(-c, c, 2000)
        near = grid[np.abs(np.abs(x)[:, None] - grid).argmin(1)]
        np.testing.assert_allclose(np.abs(quantised(x, form, c)), near, atol=1e-12 * c)
        assert float(np.abs(quantised(np.array([5 * c, -5 * c]), form, c)).max()) == pytest.approx(c)


def test_tables_are_exact_in_half_precision():
    for form in (E2M5, E3M4, E4M3, E5M2):
        table = form.table()
        assert table.shape == (256,) and np.array_equal(table.astype(np.float16).astype(np.float64), table)
        x = np.random.default_rng(0).normal(size=1000)
        np.testing.assert_allclose(
            table[codes(x, form, 2.0)] / form.reach * 2.0, quantised(x, form, 2.0), atol=1e-12
        )


@pytest.mark.parametrize(("kind", "to", "of"), CASTS, ids=["e4m3", "e5m2"])
def test_casts_are_torchs_to_the_bit(kind, to, of):
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(of(every), torch.from_numpy(every.copy()).view(kind).float().numpy())
    rng = np.random.default_rng(0)
    top = 448.0 if kind is torch.float8_e4m3fn else 57344.0
    x = (
        (rng.normal(size=1_000_000) * 10.0 ** rng.uniform(-8, 5, 1_000_000))
        .clip(-top, top)
        .astype(np.float32)
    )
    values = of(every)[np.isfinite(of(every))]
    x[:2000] = np.resize((values[1:] + values[:-1]) / 2, 2000)  # halfway: the even one
    x[2000:2010] = [0.0, -0.0, np.nan, 2.0**-9, 2.0**-10, 2.0**-16, 2.0**-17, 2.0**-18, 1e-30, -1e-30]
    np.testing.assert_array_equal(to(x), torch.from_numpy(x).to(kind).view(torch.uint8).numpy())


def test_what_is_too_large_saturates_or_is_infinite():
    x = np.array([464, 1e9, -1e9, np.inf], np.float32)
    assert from_e4m3(to_e4m3(x)).tolist() == [448, 448, -448, 448]
    assert from_e5m2(to_e5m2(np.array([57344, 61439, 61440, np.inf], np.float32))).tolist() == [
        57344,
        57344,
        np.inf,
        np.inf,
    ]


def quantiles_of_t4(shares):
    """In closed form, as there is for four degrees of freedom."""
    root = np.sqrt(4 * shares * (1 - shares))
    return np.sign(shares - 0.5) * 2 * np.sqrt(np.maximum(np.cos(np.arccos(root) / 3) / root - 1, 0))


@pytest.mark.parametrize("form", FORMATS, ids=[f.name for f in FORMATS])
@pytest.mark.parametrize("density", ["uniform", "gaussian", "t4"])
def test_theory_is_what_samples_say(form, density):
    """A million samples; how rare they are is drawn evenly on a logarithmic scale, for clipping is all about tails."""
    n, most = 1_000_000, 60.0
    rare = np.exp(-most * (np.arange(n) + np.random.default_rng(0).random(n)) / n)  # P(|X| > |x|)
    weight = most * rare / n
    p, x = {
        "uniform": (UNIFORM, 1 - rare),
        "gaussian": (GAUSSIAN, torch.special.ndtri(torch.from_numpy(rare / 2)).numpy()),
        "t4": (student(4), quantiles_of_t4(rare / 2)),
    }[density]
    decibels, c = best(form, p)
    error = float((np.square(quantised(x, form, c) - x) * weight).sum())
    assert float((x * x * weight).sum()) == pytest.approx(p.power, rel=0.01)
    assert 10 * np.log10(p.power / error) == pytest.approx(decibels, abs=0.1)
    for other in (0.7 * c, 1.4 * c):
        assert expected_error(form, p, other) >= expected_error(form, p, c) * (1 - 1e-9)


def test_the_order_of_formats_is_the_papers():
    table = {
        f.name: {n: best(f, p)[0] for n, p in (("u", UNIFORM), ("g", GAUSSIAN), ("t3", student(3)))}
        for f in FORMATS
    }
    order = {n: sorted(table, key=lambda f: -table[f][n]) for n in ("u", "g", "t3")}
    assert order["u"][0] == "INT8"
    assert order["g"][0] == "E2M5" and order["g"].index("E3M4") < order["g"].index("E4M3") < order["g"].index(
        "E5M2"
    )
    assert table["E2M5"]["g"] - table["E4M3"]["g"] > 5
    assert order["t3"][0] in ("E3M4", "E4M3") and table[order["t3"][0]]["t3"] > table["INT8"]["t3"] + 2


def test_cost_grows_with_the_exponent_and_the_rule_asks_for_a_gain():
    assert [product_bits(f) for f in (INT8, E2M5, E3M4, E4M3, E5M2)] == [16, 16, 22, 36, 66]
    assert 0 < dearer(E4M3) < dearer(E5M2) and dearer(INT8) == 0
    told = {"INT8": 20.0, "E2M5": 25.0, "E3M4": 41.0, "E4M3": 30.0}
    assert recommended(told, 20.0) == "E3M4" and recommended(told, 21.5) == "INT8"


def test_ranges_are_searched_alike_and_never_worse_than_the_largest():
    w = np.random.default_rng(0).standard_t(3, (20, 300))
    for form in FORMATS:
        c = searched(w, form, 1)
        top = np.abs(w).max(1, keepdims=True)
        found, plain = (np.square(quantised(w, form, r) - w).sum() for r in (c, top))
        assert found <= plain and bool((c <= 1.2 * top + 1e-12).all())
    with pytest.raises(BadInput):
        searched(np.array([np.nan]), INT8)


@pytest.mark.parametrize("form", FORMATS, ids=[f.name for f in FORMATS])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (7, 333)])
def test_the_kernel_finds_the_errors_of_the_formula(form, shape):
    x = np.random.default_rng(0).standard_t(4, shape) * np.geomspace(1e-6, 1e3, shape[0])[:, None]
    tops = np.abs(x).max(1)
    truth = naive_errors(x, form, tops)
    np.testing.assert_allclose(
        errors(x, form, tops), truth, rtol=2e-3, atol=1e-6 * float((x * x).sum(1).max())
    )
    assert np.isfinite(errors(np.zeros((2, 5)), form, np.zeros(2))).all()


@pytest.mark.parametrize("name", [*BY_NAME, "auto"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (20, 130)])
def test_what_is_stored_is_what_the_quantiser_says(name, shape):
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.05
    method = Formats(format=name)
    packed = method.encode(Model({"w": w}))
    form = BY_NAME[chosen(packed)["w"]]
    truth = quantised(w.numpy(), form, method.ranges(w.numpy(), form))
    back = method.decode(packed).state["w"].numpy()
    np.testing.assert_allclose(back, truth, rtol=1e-5, atol=1e-6 * float(w.abs().max()))


def test_each_matrix_gets_the_format_that_loses_least():
    rng = np.random.default_rng(0)
    heavy = rng.normal(size=(40, 200)) * np.exp(1.5 * rng.normal(size=(40, 200)))
    x = Model(
        {
            "even": torch.from_numpy(rng.uniform(-1, 1, (40, 200))).float(),
            "heavy": torch.from_numpy(heavy).float(),
        }
    )
    auto = Formats().encode(x)
    assert chosen(auto)["even"] == "INT8" and chosen(auto)["heavy"] in ("E3M4", "E4M3")
    loss = {}
    for n in (*BY_NAME, "auto"):
        back = Formats().decode(Formats(format=n).encode(x)).state["heavy"]
        loss[n] = sqnr(x.state["heavy"].numpy(), back.numpy())
    assert loss["auto"] == max(loss.values()) and loss["auto"] > loss["INT8"] + 2
    assert chosen(Formats(limit=40.0).encode(x)) == {"even": "INT8", "heavy": "INT8"}


def test_int8_by_way_of_e4m3_is_no_better_than_at_once():
    x = Model({"w": torch.randn(60, 200, generator=torch.Generator().manual_seed(0))})
    at_once, first = Formats(format="INT8"), Formats(format="E4M3")
    direct = at_once.decode(at_once.encode(x))
    between = first.decode(first.encode(x))
    later = at_once.decode(at_once.encode(between))
    original = x.state["w"].numpy()
    losses = [sqnr(original, y.state["w"].numpy()) for y in (direct, later, between)]
    assert losses[0] > losses[1] and losses[1] > losses[2] - 1.0


def test_what_runs_is_what_is_decoded(corner):
    name = "model.layers.1.mlp.up_proj.weight"
    for kind in ("INT8", "E4M3"):
        packed = Formats(format=kind).encode(corner)
        _, held = Formats().held(packed)
        back = Formats().decode(packed).state[name]
        x = torch.randn(5, back.shape[1], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(held[name].multiply(x), x @ back.T, rtol=1e-3, atol=1e-3)
        assert coded_file.read(packed)[1][name].bands[0].level == ("middle" if kind == "INT8" else "table")


def test_bad_input_is_refused():
    with pytest.raises(BadInput):
        Formats(format="E6M1")
    with pytest.raises(BadInput, match="tensor w"):
        Formats().encode(Model({"w": torch.full((4, 4), float("inf"))}))
    with pytest.raises(BadInput, match="half precision"):
        Formats().encode(Model({"w": torch.full((4, 4), 1e6)}))
    with pytest.raises(BadInput):
        student(2)
    with pytest.raises(BudgetError, match="eight bits"):
        Formats().encode(Model({"w": torch.randn(40, 40)}), "10%")
