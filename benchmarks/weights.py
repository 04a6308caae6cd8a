"""Weights side by side: total file bytes against perplexity on SmolLM2, one run, the protocol of the room.

    python benchmarks/weights.py [--parts frontier,regauged,ablations,sort,minilm,speed] [--windows 16]
        [--length 1024] [--cache FOLDER] [--llama-python /path/to/python]

Protocol: 16 windows of 1,024 tokens of WikiText-2 test at equally spaced starts (fewer with --windows), calibration on
WikiText-2 valid only (without ../shared: Python's language reference, two halves). "regauged" is the same function
moved off the 4-bit grid on which the shipped weights sit. Each finished part is merged into results/weights.json.
--cache keeps packed files between runs. --llama-python names an interpreter that has llama-cpp-python; llama.cpp's
K-quants then run on the same token ids (see peers/llama_perplexity.py), and are skipped with a line otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights_judge import RESULTS, TEXTS, Judge, llama, packed, picture, regauge, served, text

from holdall.report import provenance
from holdall.weights import BitStack, Model, Random, RoundToNearest
from holdall.weights.iavd import factors
from holdall.weights.perplexity import embedding_quality, spread
from holdall.weights.quality import probe
from holdall.weights.texts import calibration_text, held_out_text

TOP = "72MB"
SIZES = [f"{mb}MB" for mb in (36, 38, 40, 42, 44, 45, 46, 48, 50, 52, 54, 56, 58, 60, 62, 64, 66, 68, 70, 72)]
FEWER = ["40MB", "45MB", "50MB", "56MB", "60MB", "66MB", "72MB"]  # of the re-gauged model
EVERY_LAYER = (
    5  # the sorts are compared on every fifth layer: the paper's sort alone measures 210 times a level
)
SMALL = BitStack(
    windows=4, slope_windows=2
)  # the ablations' common setting: cheap, and equal for all of them


def frontier(model: Model, judge: Judge, cache: Path, sizes: list[str] = SIZES) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "float32": {"bytes": model.nbytes, "perplexity": judge.float, "perplexity_ratio": 1.0}
    }
    with packed(BitStack(), model, TOP, cache) as file:
        for size, module, stack, read in served(file, model, sizes):
            rows[f"bitstack {size}"] = judge(module, stack.nbytes, model.elements) | {"read_bytes": read}
            show(f"bitstack {size}", rows)
    for bits in (2, 3, 4, 8):
        rows[f"rtn {bits} bit"] = decoded(RoundToNearest(bits=bits), model, None, judge, cache)
        show(f"rtn {bits} bit", rows)
    rows["random 60MB"] = decoded(Random(), model, "60MB", judge, cache)
    show("random 60MB", rows)
    return rows


def decoded(method: Any, model: Model, budget: str | None, judge: Judge, cache: Path) -> dict[str, float]:
    with packed(method, model, budget, cache) as file:
        return judge(method.decode(file).build(), file.nbytes, model.elements)


def show(name: str, rows: dict[str, Any]) -> None:
    print(f"{name:34s}" + "  ".join(f"{k} {v:.6g}" for k, v in rows[name].items()), flush=True)


def ablations(model: Model, judge: Judge, cache: Path) -> dict[str, Any]:
    """Each without one part, at the same bytes and with the same small calibration."""
    budget, rows = "48MB", {}
    paper = {"feedback": 0.0, "refit": False, "stretch": 1.0, "aim": 1}
    for name, knobs in {
        "all parts": {}, "aim 1": {"aim": 1}, "the paper's blocks": paper,
        "the paper's, no scaling": paper | {"scaling": False}, "the paper's, rank 16": paper | {"rank": 16},
    }.items():  # fmt: skip
        rows[name] = decoded(SMALL.but(**knobs), model, budget, judge, cache)
        show(name, rows)
    rows["plain SVD of W, equal bytes"] = plain(model, judge, budget)
    show("plain SVD of W, equal bytes", rows)
    return rows


def plain(model: Model, judge: Judge, budget: str) -> dict[str, float]:
    """No signs: a low-rank W in half precision; the embeddings are left whole, which flatters it."""
    state, linears = dict(model.state), model.linears()
    total = sum(state[n].numel() for n in linears)
    for name in linears:
        m, n = state[name].shape
        rank = max(1, int(2.5 * m * n / 8) // (2 * (m + n)))
        a, b = factors(state[name], rank)
        state[name] = a @ b
    return judge(Model(state, model.files).build(), int(2.5 * total / 8), total)


def sort(model: Model, judge: Judge, cache: Path) -> dict[str, Any]:
    """Three orders within the level from two blocks to three, on every fifth layer; the others keep float weights."""
    rows: dict[str, Any] = {}
    with packed(BitStack(), model, TOP, cache) as file:
        _, _, stack, _ = next(served(file, model, [TOP]))
    base = 2
    names = [stack.layout.tensors[part.piece.tensor][0] for part in stack.parts]
    linears = [
        i for i, name in enumerate(names) if "layers." in name and int(name.split(".")[2]) % EVERY_LAYER == 0
    ]
    order = stack.layout.stack
    gain = [i for at, i in enumerate(order) if i in linears and order[:at].count(i) == base]
    state = {n: t.clone() for n, t in model.state.items()}
    module = Model(state, model.files).build()

    def put(i: int, levels: int) -> None:
        part, piece = stack.parts[i], stack.parts[i].piece
        whole = (part.words, part.a, part.b)
        part.words, part.a, part.b = (x[:levels] for x in whole)
        part.dense(state[stack.layout.tensors[piece.tensor][0]][piece.start : piece.stop].numpy())
        part.words, part.a, part.b = whole

    for i in linears:
        put(i, base)
    from holdall.weights.perplexity import mean_loss
    from holdall.weights.scaling import windows

    tokens = windows(model, 2, 256, skip=256)
    tried = {}
    started = time.process_time()
    for i in linears:
        put(i, base + 1)
        tried[i] = mean_loss(module, tokens)
        put(i, base)
    rows["perplexity sort, one level"] = {"cpu_seconds": time.process_time() - started}
    sorts = {"gain": gain, "perplexity": sorted(linears, key=lambda i: tried[i]), "layer order": linears}
    for name, order in sorts.items():
        loaded = 0
        for share in (0.25, 0.5, 0.75):
            goal = share * sum(stack.parts[i].piece.block_bytes for i in linears)
            size = 0
            for i in order:
                if size + stack.parts[i].piece.block_bytes > goal:
                    break
                size += stack.parts[i].piece.block_bytes
                put(i, base + 1)
                loaded += 1
            rows[f"{name}, {share:.0%} of the level"] = judge(module, size, model.elements)
            show(f"{name}, {share:.0%} of the level", rows)
        for i in order[:]:
            put(i, base)
    return rows


def minilm(_model: Model, _judge: Judge, cache: Path) -> dict[str, Any]:
    """Float originals: cosine of sentence embeddings to the original's, and neighbours kept, at 2 to 3.5 bits."""
    x = Model.read("minilm")
    x.calibration = text("wikitext2-valid.txt", calibration_text())
    original, rows = x.build(), {}
    tokens = spread(x.tokenizer().encode(text("wikitext2-test-raw.txt", held_out_text())[:400_000]), 256, 64)
    for bits in ("2bit", "2.5bit", "3bit", "3.5bit"):
        for method in (BitStack(), RoundToNearest(), Random()):
            try:
                with packed(method, x, bits, cache) as file:
                    quality = embedding_quality(original, method.decode(file).build(), tokens)
                    rows[f"{method.name} {bits}"] = {"bytes": file.nbytes, **quality}
                    show(f"{method.name} {bits}", rows)
            except Exception as fault:  # noqa: BLE001 (a budget that a rival cannot hold is a row, not an end)
                print(f"{method.name} {bits}: {fault}", flush=True)
    return rows


def speed(model: Model, _judge: Judge, cache: Path) -> dict[str, Any]:
    """Decode on one thread, memory above the interpreter's; the share of 16 GB/s that its packed bytes a token are."""
    rows: dict[str, Any] = {}
    file = packed(BitStack(), model, TOP, cache)
    path = file.arrays.reader.name  # type: ignore[attr-defined]
    prompt = model.tokenizer().encode("The history of the city begins with")
    for size in ("45MB", "60MB", TOP):
        row = probe(path, prompt, 32, memory=size, threads=1)
        row["peak_per_packed_byte"] = row["peak_bytes"] / row["read_bytes"]
        row["share_of_bandwidth"] = row["tokens_per_cpu_second"] * row["read_bytes"] / 16e9
        rows[f"bitstack {size}"] = row
        show(f"bitstack {size}", rows)
    module, ids = model.build(), torch.tensor([prompt])
    with torch.inference_mode():
        out = module(input_ids=ids, use_cache=True)
        cpu = time.process_time()
        for _ in range(16):
            out = module(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
    rows["transformers float32"] = {"tokens_per_cpu_second": 16 / (time.process_time() - cpu)}
    show("transformers float32", rows)
    return rows


def merged(part: str, rows: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """All results so far, with this part's in their place."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[part] = {"rows": rows, "provenance": provenance(**told)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="frontier,regauged,ablations,sort,minilm,speed")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--cache")
    parser.add_argument("--llama-python")
    asked = parser.parse_args()
    model = Model.read("smollm2")
    model.calibration = text("wikitext2-valid.txt", calibration_text())
    cache = Path(asked.cache or tempfile.mkdtemp())
    cache.mkdir(exist_ok=True)
    work: dict[str, Callable[..., dict[str, Any]]] = {
        "frontier": frontier, "ablations": ablations, "sort": sort, "minilm": minilm, "speed": speed,
    }  # fmt: skip
    found: dict[str, Any] = {}
    judge = Judge(model, asked.windows, asked.length)
    for part in filter(None, asked.parts.split(",")):
        print(f"{part}:", flush=True)
        rows = (
            frontier(regauge(model), judge, cache, FEWER)
            if part == "regauged"
            else work[part](model, judge, cache)
        )
        told = {
            "windows": list(judge.tokens.shape),
            "texts": "wikitext2" if TEXTS.exists() else "python reference",
        }
        found = merged(part, rows, told)
    if rows := llama(asked.llama_python, judge):
        found = merged("llama.cpp", rows, {"windows": list(judge.tokens.shape)})
    picture(found)
    print(f"{np.sum([len(p['rows']) for p in found.values()])} rows: {RESULTS}")


if __name__ == "__main__":
    main()
