"""HQQ and torchao on SmolLM2-135M, shipped and re-gauged, beside MixLLM on the same windows.

    python benchmarks/weights_rivals.py [--models shipped,regauged] [--windows 16] [--cache FOLDER]

Needs the packages hqq and torchao, each left out with a word where it is missing. 16 windows are those of the llama.cpp
rows that benchmarks/weights.py --llama-python keeps in results/weights.json. HQQ and torchao have no file of their own
for this: their bytes are those of all tensors that the model then holds, each storage once, floats that they leave
alone in half precision. GPTQ's tools need other versions of torch than this environment's. Results are merged into
results/weights_rivals.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from weights_judge import Judge, packed, regauge, text

from holdall.report import provenance
from holdall.weights import MixLLM, Model
from holdall.weights.texts import calibration_text

RESULTS = Path(__file__).parent / "results" / "weights_rivals.json"
SIZES = ("105MB", "85MB", "60MB", "45MB")


def linears(module: Any) -> Iterator[tuple[Any, str, torch.nn.Linear]]:
    """(owner, name, linear) of the decoder's blocks."""
    for owner in list(module.model.layers.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is torch.nn.Linear:
                yield owner, name, child


def hqq(bits: int) -> Callable[[Any], int]:
    def rounded(module: Any) -> int:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        how = BaseQuantizeConfig(nbits=bits, group_size=64)
        for owner, name, linear in linears(module):
            made = HQQLinear(linear, how, compute_dtype=torch.float32, device="cpu")
            setattr(owner, name, made)
        return sum(map(held, {t.data_ptr(): t for t in tensors(module)}.values()))

    return rounded


def tensors(module: Any) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    for part in module.modules():
        yield from (v for v in (getattr(part, "meta", None) or {}).values() if isinstance(v, torch.Tensor))


def held(t: torch.Tensor) -> int:
    return t.numel() * min(2, t.element_size()) if t.is_floating_point() else t.nbytes


def torchao(how: Callable[[], Any], half: bool = False) -> Callable[[Any], int]:
    def rounded(module: Any) -> int:
        if half:
            module.bfloat16()
        from torchao.quantization import quantize_

        rest = sum(held(p) for p in module.parameters())
        rest -= sum(held(linear.weight) for _, _, linear in linears(module))
        quantize_(module.model.layers, how())
        found = 0
        for _, _, linear in linears(module):
            inner, _ = linear.weight.__tensor_flatten__()
            found += sum(held(getattr(linear.weight, name)) for name in inner)
        return rest + found

    return rounded


def int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def four() -> Any:
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=64)


RIVALS: dict[str, tuple[str, Callable[[Any], int]]] = {
    "hqq 4 bits, groups of 64": ("hqq", hqq(4)),
    "hqq 3 bits, groups of 64": ("hqq", hqq(3)),
    "hqq 2 bits, groups of 64": ("hqq", hqq(2)),
    "torchao int8": ("torchao", torchao(int8)),
    "torchao prototype 4 bits, groups of 64, bfloat16": (
        "torchao",
        torchao(four, half=True),  # in float32 its product takes sixty times as long
    ),
}


def rows(x: Model, judge: Judge, cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (package, rounded) in RIVALS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: skipped, {package} is not installed", flush=True)
            continue
        module, begun = x.build(), time.process_time()
        size = rounded(module)
        spent = time.process_time() - begun
        yield name, judge(module, size, x.elements) | {"cpu_seconds": spent, "version": version(package)}
    for size in SIZES:
        file = packed(MixLLM(), x, size, cache)
        yield f"mixllm {size}", judge(MixLLM().decode(file).build(), file.nbytes, x.elements)


def show(name: str, row: dict[str, Any]) -> None:
    told = "  ".join(f"{k} {v:.5g}" for k, v in row.items() if isinstance(v, float | int))
    print(f"{name:50s}{told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="shipped,regauged")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--cache", type=Path, help="folder of packed models to keep")
    asked = parser.parse_args()
    shipped = Model.read("smollm2")
    shipped.calibration = text("wikitext2-valid.txt", calibration_text())
    judge = Judge(shipped, asked.windows, asked.length)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models.split(","):
            print(f"{name}:", flush=True)
            x = regauge(shipped) if name == "regauged" else shipped
            cache = (asked.cache or Path(folder)) / name
            cache.mkdir(parents=True, exist_ok=True)
            told = {"rows": {}, "provenance": provenance(windows=list(judge.tokens.shape))}
            for row, figures in rows(x, judge, cache):  # each is written as soon as it is known
                show(row, figures)
                told["rows"][row] = figures
                found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
                RESULTS.write_text(json.dumps(found | {name: told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
