"""The room's measures: exact where the answer is known, and what `holdall measure` prints."""

import math

import pytest
import torch

from holdall.weights import BitStack, Model, quality
from holdall.weights.perplexity import compare, losses, spread


def test_loss_is_zero_for_equal_one_for_nothing_and_weighted_by_numbers():
    x = Model({"a": torch.ones(3, 4), "b": torch.full((2, 6), 5.0), "i": torch.arange(3)})
    gone = Model({"a": torch.zeros(3, 4), "b": x.state["b"], "i": x.state["i"]})
    assert quality.loss(x, x) == 0.0 and quality.same(x, x)
    assert quality.loss(x, gone) == pytest.approx(0.5) and not quality.same(x, gone)


def test_perplexity_of_a_model_with_itself_and_of_chance(corner):
    tokens = spread(
        corner.tokenizer().encode("Some words that are long enough to be cut into windows. " * 8), 3, 40
    )
    module = corner.build()
    row = compare(module, module, tokens)
    assert row["perplexity_ratio"] == pytest.approx(1.0) and row["top1"] == 1.0
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)
    blank = Model(
        {n: torch.zeros_like(t) if "embed" in n else t for n, t in corner.state.items()}, corner.files
    )
    assert float(losses(blank.build(), tokens).mean()) == pytest.approx(math.log(1024), rel=1e-4)


def test_windows_are_equally_spaced_and_every_other_is_a_subset():
    ids = list(range(1000))
    all_of_them, half = spread(ids, 5, 100), spread(ids, 5, 100, every=2)
    assert all_of_them[:, 0].tolist() == [0, 225, 450, 675, 900]
    assert torch.equal(half, all_of_them[::2])
    assert spread(ids[:30], 16, 1024).shape == (1, 30)


@pytest.mark.slow
def test_measure_tells_what_the_file_and_the_running_model_cost(corner, tmp_path):
    corner.write(str(tmp_path / "corner"))
    text = tmp_path / "text.txt"
    text.write_text("It was said that the measure of a model is what it answers, and what it costs. " * 20)
    method = BitStack(windows=2, window=64, slope_windows=1)
    report = quality.measure(method, "14%", model=str(tmp_path / "corner"), on=str(text), quick=True)
    assert report["bytes"] <= 0.14 * corner.nbytes
    for key in ("perplexity", "perplexity_ratio", "top1", "kl", "peak_bytes", "tokens_per_second"):
        assert math.isfinite(report[key]) and report[key] > 0, key
    assert report["read_bytes"] == report["bytes"]
    assert report.baseline in report.rows and report.unit("tokens_per_second") == "1/s"
