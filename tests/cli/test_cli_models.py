"""Models that cannot be packed or unpacked as asked: one clear line each, and nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from small_models import letters, tiny

from holdall.weights import Model

QUICK = {
    "weights.rtn": [],
    "weights.mixllm": ["--windows", "2", "--window", "32"],
    "weights.bitstack": ["--windows", "2", "--window", "32", "--slope-windows", "1"],
    "weights.formats": [],
    "weights.auto": ["--among", "weights.rtn", "--windows", "2", "--window", "32"],
}
CODECS = tuple(QUICK)


def written(where: Path, x: Model) -> Path:
    x.write(str(where / "model"))
    return where / "model"


def pack(method: str, budget: str, out: Path, *more: object) -> list[object]:
    """The words of a quick run of pack, after the source."""
    return ["--with", method, *QUICK[method], "-b", budget, "-o", out, *more]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", CODECS)
def test_weights_that_are_not_finite(call, tmp_path: Path, method: str, value: float) -> None:
    x = tiny()
    x.state["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    told = call("pack", written(tmp_path, x), *pack(method, "6bit", tmp_path / "m.hold"))
    line = told.one_line()
    assert told.code == 2 and "layers.1.mlp.up_proj.weight" in line and "finite" in line
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("method", ["weights.mixllm", "weights.bitstack", "weights.auto"])
def test_an_empty_text_to_learn_from(call, tmp_path: Path, method: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    words = pack(method, "6bit", tmp_path / "m.hold", "--calibrate", tmp_path / "empty.txt")
    told = call("pack", written(tmp_path, tiny()), *words)
    assert told.code == 2 and "calibration text" in told.one_line()
    assert sorted(os.listdir(tmp_path)) == ["empty.txt", "model"]


@pytest.mark.parametrize("method", CODECS)
def test_an_unknown_architecture(call, tmp_path: Path, method: str) -> None:
    model = written(tmp_path, tiny())
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"}
    (model / "config.json").write_text(json.dumps(config))
    told = call("pack", model, *pack(method, "6bit", tmp_path / "m.hold"))
    assert told.code == 2 and "no_such" in told.one_line().lower().replace("nosuch", "no_such")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("method", CODECS)
def test_a_budget_below_the_least(call, tmp_path: Path, method: str) -> None:
    told = call("pack", written(tmp_path, tiny()), *pack(method, "900B", tmp_path / "m.hold"))
    assert told.code == 2 and "the least that weights." in told.one_line()
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("method", ["weights.mixllm", "weights.bitstack", "weights.auto"])
def test_a_tokenizer_of_another_model(call, tmp_path: Path, method: str) -> None:
    """Its tokens go beyond the table."""
    x, told = tiny(), letters()
    told["model"]["vocab"] = {t: i + (90 if t in "eao" else 0) for t, i in told["model"]["vocab"].items()}
    x.files["tokenizer.json"] = json.dumps(told).encode()
    done = call("pack", written(tmp_path, x), *pack(method, "6bit", tmp_path / "m.hold"))
    assert done.code == 2 and "tokenizer" in done.one_line() and "64" in done.one_line()
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("method", CODECS)
def test_columns_that_the_group_does_not_divide(call, tmp_path: Path, method: str) -> None:
    """No mistake at all: a last group is shorter. 50 columns, groups of 64 and 32."""
    w = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    Model({"model.layers.0.w.weight": w}).write(str(tmp_path / "odd.safetensors"))
    out, back = tmp_path / "m.hold", tmp_path / "back.safetensors"
    assert call("pack", tmp_path / "odd.safetensors", *pack(method, "60%", out)).code == 0
    assert call("unpack", out, "-o", back).code == 0
    found = Model.read(str(back)).state["model.layers.0.w.weight"]
    assert float((found - w).norm() / w.norm()) < 0.1


def test_unpack_to_gguf_and_a_folder(call, tmp_path: Path) -> None:
    model = written(tmp_path, tiny())
    assert call("pack", model, "--with", "weights.rtn", "--bits", "4", "--group", "32").code == 0
    hold, out = f"{model}.hold", tmp_path / "m.gguf"
    row = json.loads(call("unpack", hold, "-o", out, "--json").out)
    assert row["bytes"] == out.stat().st_size
    truth = call("unpack", hold, "-o", tmp_path / "folder")
    assert truth.code == 0
    a, b = Model.read(str(tmp_path / "folder")).state, Model.read(str(out)).state
    assert a.keys() == b.keys() and all(torch.equal(a[n].float(), b[n].float()) for n in a)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "m.gguf"], "--gguf Q8_0"),
        (["-o", "m.gguf", "--gguf", "Q9"], "Q8_0"),
        (["-o", "m.safetensors", "--gguf", "Q8_0"], ".gguf"),
        (["-o", "m.bin"], ".safetensors or .gguf"),
    ],
)
def test_what_gguf_cannot_hold(call, tmp_path: Path, monkeypatch, words: list[str], told: str) -> None:
    model = written(tmp_path, tiny())
    assert call("pack", model, "--with", "weights.rtn", "--bits", "6", "-o", tmp_path / "m.hold").code == 0
    monkeypatch.chdir(tmp_path)
    done = call("unpack", tmp_path / "m.hold", *words)
    assert done.code == 2 and told in done.one_line()
    assert sorted(os.listdir(tmp_path)) == ["m.hold", "model"]
