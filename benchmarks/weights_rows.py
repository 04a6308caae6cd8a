"""Rows of several widths, and a step for each row: MixLLM's arms, sizes and grids on SmolLM2, shipped and re-gauged.

    python benchmarks/weights_rows.py [--parts arms,sizes,tuned,low,grids,parts] [--models regauged,shipped]
        [--windows 8]

Protocol of benchmarks/weights.py: 8 (quick) windows of WikiText-2 test, calibration on WikiText-2 valid, whole files
with embeddings. `arms`: a tenth of all rows in 8 bits and the rest in 3 (the shipped weights sit on a 4-bit grid, which
would flatter 4), chosen by nothing, at random, by size, layer by layer, and over the whole model; equal average bits;
embeddings are left alone there. `sizes`: a step a row at 85, 60 and 45 MB. `tuned`: 45 MB, steps and columns learned
end to end, and a novel (War and Peace) that nothing was learned from. `low`: the same at 35 MB. Both with how many
of eight plain questions, which the float model answers, are answered greedily. `grids`: at equal bytes, two widths in
groups, two widths in whole rows, a step a row. `parts`: a step a row without one of its parts. Results are merged into
results/weights_rows.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from weights_judge import Judge, regauge, text

from holdall.packed import Packed
from holdall.report import provenance
from holdall.weights import MixLLM, Model, coded_file
from holdall.weights.mixing import Mixed, Rows
from holdall.weights.stepping import Stepped
from holdall.weights.texts import calibration_text

RESULTS = Path(__file__).parent / "results" / "weights_rows.json"
PAPER = MixLLM(widths=(8, 3), weighted=False)  # groups of 64: 128 does not divide 576
GOALS = {"85MB": 1.05, "60MB": 1.15, "45MB": 1.45}
LESS: dict[str, dict[str, Any]] = {
    "all parts": {}, "no compensation": {"compensate": False}, "columns alike": {"even": 0.0},
    "costs alike": {"trust": 0.0}, "costs as told": {"trust": 1.0}, "tokens alike": {"weighted": False},
    "no thrift": {"thrift": 0.0},
}  # fmt: skip

ASKED = {
    "What is the capital of France?": "paris", "What is the capital of Japan?": "tokyo",
    "What is the capital of China?": "beijing", "What is the capital of Russia?": "moscow",
    "What is the capital of Germany?": "berlin", "What is the capital of Egypt?": "cairo",
    "Who wrote Romeo and Juliet?": "shakespeare", "What colour is the sky?": "blue",
}  # fmt: skip


def show(name: str, row: dict[str, Any]) -> None:
    told = "  ".join(f"{k} {v:.5g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{name:38s}{told}", flush=True)


def judged(packed: Packed, x: Model, judge: Judge) -> dict[str, Any]:
    return judge(MixLLM().decode(packed).build(), packed.nbytes, x.elements)


def mean_bits(rows: Rows, x: Model) -> float:
    bits = sum(float(w.sum()) * x.state[n].shape[1] for n, w in rows.items())
    return bits / sum(x.state[n].numel() for n in rows)


def arms(x: Model, judge: Judge) -> dict[str, Any]:
    """Linears only, as in the paper: embeddings stay as they are."""
    table = set(x.embeddings())
    bare, found = Model({n: t for n, t in x.state.items() if n not in table}), {}
    made = Mixed(PAPER, x, PAPER.widths or ())
    for name in table & set(made._known):
        made._known.pop(name)
    plans = {"all rows 3 bits": ((0.0,), "global"), "all rows 8 bits": ((1.0,), "global")}
    plans |= {f"a tenth in 8 bits, {by}": ((0.1,), by) for by in ("random", "magnitude", "layer", "global")}
    for name, (shares, by) in plans.items():
        rows = made.rows(shares, made.widths, by)
        coded = made.coded(rows)
        state = dict(x.state) | {n: _tensor(c.dense()) for n, c in coded.items()}
        size = coded_file.write(PAPER, bare, coded).nbytes
        found[name] = judge(Model(state, x.files).build(), size, bare.elements) | {
            "mean_width": mean_bits(rows, bare)
        }
        if by in ("global", "random", "magnitude") and shares == (0.1,):
            share = sorted(float((w == 8).mean()) for w in rows.values())
            found[name] |= {
                "least_share": share[0],
                "largest_share": share[-1],
                "median_share": float(np.median(share)),
            }
        show(name, found[name])
    return found


def _tensor(w: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(w)


def sizes(x: Model, judge: Judge) -> dict[str, Any]:
    found, started = {}, time.process_time()
    made = Stepped(MixLLM(), x)
    begun = time.process_time() - started
    for size, goal in GOALS.items():
        started = time.process_time()
        packed = made.fit(int(size[:-2]) * 1_000_000)
        spent = begun + time.process_time() - started
        opened = {"resident": coded_file.resident(packed), "cpu_seconds": spent, "goal": goal}
        found[size] = judged(packed, x, judge) | opened
        show(size, found[size])
    return found


def tuned(x: Model, judge: Judge, size: str = "45MB") -> dict[str, Any]:
    """Beside the same bytes without, on the protocol's text and on a novel, and by questions."""
    novel, found = Judge(x, 4, 1024, "war-and-peace.txt"), {}
    found["float"] = {"answered": answered(x)}
    show("float", found["float"])
    for name, method in {size: MixLLM(), f"{size}, tuned": MixLLM(tune=100)}.items():
        started = time.process_time()
        packed = method.encode(x, size)
        spent = time.process_time() - started
        found[name] = judged(packed, x, judge) | {"cpu_seconds": spent}
        found[name] |= {
            f"novel {k}": v for k, v in judged(packed, x, novel).items() if k in ("perplexity_ratio", "top1")
        }
        found[name]["answered"] = answered(MixLLM().decode(packed))
        show(name, found[name])
    return found


def low(x: Model, judge: Judge) -> dict[str, Any]:
    return tuned(x, judge, "35MB")


def answered(x: Model) -> int:
    """How many answers of 40 tokens have the word."""
    import torch

    module, tokenizer, right = x.build(), x.tokenizer(), 0
    for question, word in ASKED.items():
        ids = tokenizer.chat([{"role": "user", "content": question}])
        made = module.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
        right += word in tokenizer.decode(made[0, len(ids) :].tolist()).lower()
    return right


def grids(x: Model, judge: Judge, limit: int = 60_000_000) -> dict[str, Any]:
    """Two widths are (8, 3) in groups of 64, or (6, 4) in whole rows: what comes nearest to the bytes."""
    found = {}
    plans = {
        "8 and 3 bits, groups of 64": MixLLM(widths=(8, 3)),
        "8 and 3 bits, groups of 192": MixLLM(widths=(8, 3), group=192),
        "6 and 4 bits, whole rows": MixLLM(widths=(6, 4), group=0),
        "a step a row": MixLLM(),
    }
    for name, method in plans.items():
        found[name] = judged(method.encode(x, limit), x, judge)
        show(name, found[name])
    return found


def parts(x: Model, judge: Judge, limit: int = 45_000_000) -> dict[str, Any]:
    found = {}
    for name, less in LESS.items():
        found[name] = judged(Stepped(MixLLM(**less), x).fit(limit), x, judge)
        show(name, found[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="arms,sizes,tuned,low,grids,parts")
    parser.add_argument("--models", default="regauged,shipped")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    asked = parser.parse_args()
    shipped = Model.read("smollm2")
    shipped.calibration = text("wikitext2-valid.txt", calibration_text())
    judge = Judge(shipped, asked.windows, asked.length)
    models = {"regauged": regauge, "shipped": lambda m: m}
    work = {"arms": arms, "sizes": sizes, "tuned": tuned, "low": low, "grids": grids, "parts": parts}
    for part in asked.parts.split(","):
        for name in asked.models.split(","):
            if name == "shipped" and part in ("grids", "parts"):
                continue
            print(f"{part}, {name}:", flush=True)
            rows = work[part](models[name](shipped), judge)
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            told = provenance(windows=list(judge.tokens.shape), model=name)
            found[f"{part}, {name}"] = {"rows": rows, "provenance": told}
            RESULTS.write_text(json.dumps(found, indent=1))
    print(RESULTS)


if __name__ == "__main__":
    main()
