"""How fast packed matrices multiply, and how fast packed models answer: python benchmarks/weights_speed.py

    [--parts kernels,tokens,activations] [--llama-python /path/to/python] [--quick]

One thread; the CPU's clock, and the best of several rounds that take all rows in turn, so that a busy machine slows
all alike. --llama-python names an interpreter that has xllamacpp (llama.cpp); its rows are left out otherwise.
Prints tables and writes results/weights_speed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from transformers import DynamicCache
from weights_judge import Judge, text
from weights_q4 import q4_0

from holdall.dropins.hub import installed
from holdall.report import provenance
from holdall.weights import Coded, Model, RoundToNearest
from holdall.weights import open as open_packed
from holdall.weights.coded import WIDTHS
from holdall.weights.coded_linear import CodedMatrix
from holdall.weights.lean import Lean
from holdall.weights.texts import held_out_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "weights_speed.json"
ROWS, COLUMNS = 1536, 576  # of SmolLM2's gate and up
FAR = 40_000_000  # bytes of matrices taken in turn, beyond a core's own caches


@njit(fastmath=True)
def _sum(x: np.ndarray) -> int:
    total = 0
    for i in range(x.size):
        total += x[i]
    return total


def best(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each, over rounds in turn."""
    found = {}
    for at in range(rounds + 1):
        for name, act in ways.items():
            start = time.process_time()
            act()
            seconds = time.process_time() - start
            if at:  # the first round compiles and warms
                found[name] = min(seconds, found.get(name, np.inf))
    return found


def bandwidth(rounds: int) -> float:
    """Bytes a second that one core reads."""
    x = np.ones(FAR // 8, np.int64)
    return x.nbytes / best({"read": lambda: _sum(x)}, 3 * rounds)["read"]


def coded(bits: int, table: bool = False) -> Coded:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (ROWS, COLUMNS)).astype(np.uint8)
    scale, low = rng.random((ROWS, COLUMNS // 64)), rng.normal(size=(ROWS, COLUMNS // 64))
    if table:
        return Coded.of(codes, bits, scale=scale, table=rng.normal(size=1 << bits), group=64)
    return Coded.of(codes, bits, scale=scale, low=low, group=64)


def kernels(rounds: int) -> dict[str, dict[str, float]]:
    """Rows by kernel and tokens: bytes and products a second, share of bandwidth, how many times torch's speed."""
    kinds: dict[str, list[Any]] = {}
    for bits in WIDTHS:
        one = coded(bits)
        for n in (32, 16, 8) if bits <= 4 else (16, 8):
            many = [CodedMatrix(coded(bits), n) for _ in range(max(2, FAR // one.nbytes))]
            kinds[f"{bits} bit, tokens of {n}"] = many
    for bits in (4, 3):
        kinds[f"{bits} bit palette"] = [
            CodedMatrix(coded(bits, True)) for _ in range(FAR // coded(bits).nbytes)
        ]
    for dtype in (torch.float32, torch.bfloat16):
        size = ROWS * COLUMNS * dtype.itemsize
        kinds[str(dtype)] = [torch.randn(ROWS, COLUMNS).to(dtype) for _ in range(FAR // size)]
    limit, rows = bandwidth(rounds), {}
    for tokens in (1, 8, 128):
        x = torch.randn(tokens, COLUMNS)
        held = {k: m if tokens == 1 else m[: 16 if tokens == 8 else 4] for k, m in kinds.items()}
        with torch.inference_mode():
            seconds = best({k: _turn(m, x) for k, m in held.items()}, rounds)
        each = {k: seconds[k] / len(m) for k, m in held.items()}
        for kind, m in held.items():
            size = m[0].nbytes
            rows[f"{kind}, {tokens} tokens"] = {
                "bytes_per_second": size / each[kind], "share_of_bandwidth": size / each[kind] / limit,
                "products_per_second": tokens * ROWS * COLUMNS / each[kind],
                "times_float32": each["torch.float32"] / each[kind],
                "times_bfloat16": each["torch.bfloat16"] / each[kind],
            }  # fmt: skip
    rows["read bandwidth"] = {"bytes_per_second": limit}
    return rows


def _turn(matrices: list[Any], x: torch.Tensor) -> Callable[[], None]:
    def act() -> None:
        for m in matrices:
            if isinstance(m, CodedMatrix):
                m.multiply(x)
            else:
                torch.nn.functional.linear(x.to(m.dtype), m)

    return act


class Greedy:
    """Answers by transformers, or the lean way."""

    def __init__(self, module: Any, lean: bool):
        self.module, self.lean = module, Lean.of(module) if lean else None

    def answer(self, ids: list[int], tokens: int) -> float:
        """CPU seconds of `tokens` tokens, or of reading the prompt if they are 0."""
        context = self.lean.context(len(ids) + tokens) if self.lean else DynamicCache()
        start = time.process_time()
        last = self._next(ids, context)
        if tokens:
            start = time.process_time()
        for _ in range(tokens):
            last = self._next([last], context)
        return time.process_time() - start

    def _next(self, ids: list[int], context: Any) -> int:
        if self.lean:
            return int(self.lean.read(ids, context).argmax())
        out = self.module(
            input_ids=torch.tensor([ids]), past_key_values=context, use_cache=True, logits_to_keep=1
        )
        return int(out.logits[0, -1].argmax())


def speed(path: str, kind: str, ids: list[int], tokens: int, repeat: int) -> dict[str, float]:
    """In this process: one model, opened, read and answered with; and the memory that took."""
    from holdall.meter import Meter
    from holdall.weights.quality import warm

    torch.set_num_threads(1)
    warm()
    for _ in range(2):  # kernels are compiled, and what that took given back, before memory is counted
        with Meter() as meter:
            if kind == "float32":
                way = Greedy(Model.read("smollm2").build(), False)
            else:
                way = Greedy(open_packed(path, activations=8 if "8" in kind else 16), "lean" in kind)
            with torch.inference_mode():
                prefill = min(way.answer(ids, 0) for _ in range(repeat))
                decode = min(way.answer(ids[:16], tokens) for _ in range(repeat))
        del way
    return {"prefill": len(ids) / prefill, "decode": tokens / decode, "peak_bytes": meter.peak_bytes}


def tokens(folder: str, llama: str | None, quick: bool) -> dict[str, dict[str, float]]:
    """Tokens a second, each row in a process of its own, the rounds in turn."""
    model, jobs, sizes = Model.read("smollm2"), {}, {}
    ids = model.tokenizer().encode(text("wikitext2-test-raw.txt", held_out_text()))[:512]
    asked = {"ids": ids, "tokens": 32 if quick else 64, "repeat": 2}
    told = Path(folder) / "asked.json"
    told.write_text(json.dumps(asked))
    for bits in (4,) if quick else (4, 6):
        path = f"{folder}/{bits}.hold"
        RoundToNearest(bits=bits).encode(model, to=path)
        for kind in ("transformers", "lean", "lean, tokens of 8")[0 if bits == 4 else 1 :]:
            name = f"rtn {bits} bit, {kind}"
            jobs[name] = [sys.executable, __file__, "--one", path, "--kind", kind, "--asked", str(told)]
            sizes[name] = Path(path).stat().st_size
    jobs["transformers float32"] = [
        sys.executable,
        __file__,
        "--one",
        "",
        "--kind",
        "float32",
        "--asked",
        str(told),
    ]
    sizes["transformers float32"] = model.nbytes
    if llama:
        q4_0(installed("smollm2"), f"{folder}/q4_0.gguf")
        for name, path in (("Q4_0", f"{folder}/q4_0.gguf"), ("Q4_1 (shipped)", installed("smollm2"))):
            jobs[f"llama.cpp {name}"] = [llama, str(HERE / "peers" / "llama_speed.py"), path, str(told)]
            sizes[f"llama.cpp {name}"] = Path(path).stat().st_size
    rows: dict[str, dict[str, float]] = {}
    for _ in range(1 if quick else 2):
        for name, command in jobs.items():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            new = json.loads(done.stdout.splitlines()[-1])
            old = rows.setdefault(name, {"bytes": sizes[name]})
            for key in ("prefill", "decode"):
                old[key] = max(new[key], old.get(key, 0))
            if "peak_bytes" in new:
                old["peak_bytes"] = min(new["peak_bytes"], old.get("peak_bytes", np.inf))
    return rows


def activations(folder: str, quick: bool) -> dict[str, dict[str, float]]:
    """What rounding tokens costs: the packed model beside its own decoded weights in float32."""
    model, method, path = Model.read("smollm2"), RoundToNearest(bits=4), f"{folder}/a.hold"
    packed = method.encode(model, to=path)
    judge = Judge(method.decode(packed), 2 if quick else 8, 1024)
    size = (packed.nbytes, model.elements)
    return {f"tokens of {n}": judge(open_packed(path, activations=n), *size) for n in (32, 16, 8)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="kernels,tokens,activations")
    parser.add_argument("--llama-python")
    parser.add_argument("--quick", action="store_true")
    for name in ("--one", "--kind", "--asked"):  # a row of `tokens`, in a process of its own
        parser.add_argument(name, help=argparse.SUPPRESS)
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.one is not None:
        print(json.dumps(speed(told.one, told.kind, **json.loads(Path(told.asked).read_text()))))
        return
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for part in told.parts.split(","):
            made = {
                "kernels": lambda: kernels(3 if told.quick else 8),
                "tokens": lambda: tokens(folder, told.llama_python, told.quick),
                "activations": lambda: activations(folder, told.quick),
            }[part]()
            found[part] = {"rows": made, "provenance": provenance(quick=told.quick)}
            for name, row in made.items():
                print(f"{name:32}", *(f"{k} {v:.4g}" for k, v in row.items()), sep="  ", flush=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
