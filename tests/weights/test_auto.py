"""Auto chooses what measures best, at every budget anew, and remembers it without trusting what it remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import tiny

from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.registry import get
from holdall.verbs import codec_for, method_of
from holdall.weights import Auto, Formats, Model, RoundToNearest, auto, quality, search_cache, trial
from holdall.weights.perplexity import compare, spread
from holdall.weights.sample import sample
from holdall.weights.texts import calibration_text

QUICK = Auto(among=("weights.rtn",), windows=2, window=128)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "_WORTH", 0)
    return tmp_path / "cache" / "holdall" / "auto"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every method that is tried."""
    seen, real = [], trial.attempt

    def attempt(method, *rest, **more):
        seen.append(trial.called(method))
        return real(method, *rest, **more)

    monkeypatch.setattr(trial, "attempt", attempt)
    return seen


@pytest.fixture(scope="module")
def matrix() -> Model:
    """The quickest thing to search for."""
    return Model({"w": torch.randn(64, 128, generator=torch.Generator().manual_seed(0))})


def test_the_choice_flips_where_the_order_of_methods_flips() -> None:
    """The truth is found by packing the whole with each method and judging on another text."""
    model = tiny(spread=0.15)
    reference = model.build()
    tokens = spread(model.tokenizer().encode(calibration_text()[:20_000]), 4, 128)
    loss: dict[str, dict[str, float]] = {"5.7bit": {}, "6.2bit": {}}
    for budget, found in loss.items():
        for method in trial.candidates(QUICK.among):
            back = method.decode(method.encode(model, budget))
            found[trial.called(method)] = compare(reference, back.build(), tokens)["kl"]
        chosen = trial.called(method_of(QUICK.encode(model, budget)))  # type: ignore[arg-type]
        assert found[chosen] < 1.1 * min(found.values())
    fine = (
        "weights.rtn --group 32"  # its steps cost a bit a weight: worth it where that bit buys nothing else
    )
    assert loss["5.7bit"].pop(fine) < 0.8 * min(loss["5.7bit"].values())
    assert loss["6.2bit"].pop(fine) > 2 * max(loss["6.2bit"].values())


def test_the_file_is_the_chosen_methods_own(matrix) -> None:
    packed = QUICK.encode(matrix, "6bit")
    method = method_of(packed)
    assert not isinstance(method, Auto)
    assert packed.to_bytes() == method.encode(matrix, "6bit").to_bytes()
    assert quality.same(QUICK.decode(packed), method.decode(packed))
    report = packed.notes["search"]
    assert report.provenance["chosen"] == method.to_dict() and len(report.rows) == len(RoundToNearest.tries)
    assert "search" not in json.dumps(packed.meta)


def test_it_is_what_models_are_packed_with(tmp_path: Path) -> None:
    tiny().write(str(tmp_path / "model"))
    assert type(codec_for(str(tmp_path / "model"))) is Auto


def test_a_search_is_made_once(matrix, counted: list[str], cache: Path) -> None:
    first = QUICK.encode(matrix, "6bit")
    made = len(counted)
    assert made == len(RoundToNearest.tries) and len(list(cache.iterdir())) == 1
    again = QUICK.encode(matrix, "6bit")
    assert len(counted) == made and again.to_bytes() == first.to_bytes()
    assert again.notes["search"].rows == first.notes["search"].rows
    assert [p.notes["search"].provenance["looked_up"] for p in (first, again)] == [False, True]
    other = Model(dict(matrix.state), matrix.files, matrix.name)
    other.state["w"] = other.state["w"].clone()
    other.state["w"][3, 5] += 1e-3
    learned = Model(matrix.state, matrix.files, matrix.name, calibration_text()[:9000])
    for x, method, budget in (
        (other, QUICK, "6bit"), (learned, QUICK, "6bit"), (matrix, QUICK, "6.1bit"),
        (matrix, QUICK.but(windows=1), "6bit"),
    ):  # fmt: skip
        counted.clear()
        method.encode(x, budget)
        assert counted, (x.name, budget)


def test_what_was_remembered_is_never_trusted_blindly(matrix, counted: list[str], cache: Path) -> None:
    QUICK.encode(matrix, "6bit")
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    told = json.loads(good)
    stranger = json.loads(good)
    stranger["trials"][0]["method"] = Formats().to_dict()
    body = {k: v for k, v in stranger.items() if k != "sum"}
    stranger["sum"] = search_cache._sum(body)
    lie = json.loads(good)
    lie["trials"][0]["lost"] = 0.0
    for bad in (
        b"", good[:-9], b"[]", b"\xff\xfe", json.dumps(lie).encode(), json.dumps(stranger).encode(),
        json.dumps({**told, "key": "0" * 32}).encode(), json.dumps({**told, "trials": told["trials"][:1]}).encode(),
    ):  # fmt: skip
        entry.write_bytes(bad)
        counted.clear()
        packed = QUICK.encode(matrix, "6bit")
        assert counted and not packed.notes["search"].provenance["looked_up"], bad[:60]
        assert [t["method"] for t in json.loads(entry.read_bytes())["trials"]] == [
            t["method"] for t in told["trials"]
        ]


def test_without_the_cache_nothing_is_written(matrix, cache: Path) -> None:
    QUICK.but(cache=False).encode(matrix, "6bit")
    assert not cache.exists()


def test_without_a_budget_the_smallest_file_that_loses_little(matrix) -> None:
    every = Auto(among=("weights.rtn", "weights.formats"), windows=2, window=64)
    strict, loose = (every.but(within=w).encode(matrix) for w in (1e-3, 1e9))
    assert method_of(strict).full_name() == "weights.formats"
    sizes = [r["bytes"] for r in loose.notes["search"].rows.values()]
    assert method_of(loose).full_name() == "weights.rtn" and loose.nbytes == min(sizes) < strict.nbytes


def test_methods_that_train_wait_for_text_or_permission(matrix) -> None:
    trained = {m.full_name() for m in trial.candidates(trained=True)} - {
        m.full_name() for m in trial.candidates()
    }
    assert "weights.efficientqat" in trained and all(get(n).trains for n in trained)
    assert not {"weights.none", "weights.random", "weights.auto"} & {
        m.full_name() for m in trial.candidates()
    }
    tiny = Model({"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))})
    texted = Model(tiny.state, calibration="a text")
    for x, told, expected in (
        (tiny, None, False),
        (texted, None, True),
        (texted, False, False),
        (tiny, True, True),
    ):
        trials, _ = Auto(trained=told).search(x, 10**6)
        assert any(t.method.trains for t in trials) is expected


def test_nothing_fits(matrix) -> None:
    with pytest.raises(BudgetError) as told:
        QUICK.encode(matrix, "1bit")
    assert QUICK.encode(matrix, told.value.least).nbytes <= told.value.least
    with pytest.raises(BudgetError):
        QUICK.encode(matrix, told.value.least - 1)
    with pytest.raises(BadInput, match="packs models"):
        Auto(among=("kv.snapkv",)).encode(matrix, "4bit")


def test_a_sample_is_a_small_model_of_the_same_kind() -> None:
    x = tiny(layers=6, spread=0.15)
    cut = sample(x, 60_000, 3, 64)
    assert not cut.whole and cut.model.config["num_hidden_layers"] == 2
    assert abs(cut.model.elements / x.elements - 2 / 6) < 0.02
    assert torch.equal(
        cut.model.state["model.layers.1.mlp.up_proj.weight"], x.state["model.layers.5.mlp.up_proj.weight"]
    )
    assert cut.judged is not None and cut.judged.shape == (3, 64)
    vocabulary = cut.model.config["vocab_size"]
    assert int(cut.judged.max()) < vocabulary == len(cut.model.state["model.embed_tokens.weight"])
    rows = cut.model.state["model.embed_tokens.weight"]
    assert all(bool((x.state["model.embed_tokens.weight"] == r).all(1).any()) for r in rows)
    assert len(cut.model.tokenizer().encode(cut.model.calibration or "")) > 1000
    assert float(cut.lost(cut.model)["lost"]) < 1e-6
    for size in (40_000, 200_000):
        assert abs(cut.up(cut.limit(size)) - size) < 8
    assert sample(x, 10**9, 3, 64).model is x


def test_a_forged_file_cannot_send_it_in_circles(matrix) -> None:
    packed = RoundToNearest().encode(matrix)
    forged = Packed(packed.arrays, {**packed.meta, "method": Auto().to_dict()})
    with pytest.raises(OSError, match=r"weights\.auto"):
        Auto().decode(forged)
